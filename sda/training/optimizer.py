"""The optimizer, and the learning rates of its parameter groups."""

import torch

from sda.methods.base import Method
from sda.recipe import Recipe


def make_optimizer(method: Method, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimizer, with one parameter group per layer of the backbone and one for all other parameters.

    The last layer has the recipe's learning rate, each earlier layer `layer_decay` times that of the next, and the other
    parameters `head_rate_factor` times that of the last layer. Parameters of the backbone that must not decay, such as position
    embeddings, have groups of their own.
    """
    backbone = method.student.backbone
    layers = backbone.parameter_layers()
    known = {id(parameter) for layer in layers for parameter in layer}
    names = dict(backbone.body.named_parameters())
    fixed = {id(names[name]) for name in backbone.without_decay() if name in names}
    rates = [recipe.learning_rate * recipe.layer_decay**depth for depth in reversed(range(len(layers)))]
    parts = [*zip(layers, rates, strict=True)]
    parts.append(([p for p in method.parameters() if id(p) not in known], recipe.learning_rate * recipe.head_rate_factor))
    groups: list[dict] = []
    for part, rate in parts:
        trained = [parameter for parameter in part if parameter.requires_grad]
        groups.append({"params": [p for p in trained if id(p) not in fixed], "base": rate})
        groups.append({"params": [p for p in trained if id(p) in fixed], "base": rate, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def rate_factor(step: int, recipe: Recipe) -> float:
    """Return the factor of all learning rates at a step: linear warm-up, then polynomial decay, both counted from step 0."""
    rising = recipe.in_steps("warmup_steps")
    warm = min(1.0, (step + 1) / rising) if rising else 1.0
    return warm * (1 - step / recipe.steps) ** recipe.poly_power


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to `factor` times its initial value."""
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Restore the result of `optimizer.state_dict()`. PyTorch alone would also accept other settings and shapes.

    Raises:
        ValueError: another setting, or a tensor of another shape; PyTorch raises other errors for other structures.
    """
    for found, own in zip(state["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        for key in found.keys() & own.keys() - {"lr"}:  # versions of PyTorch differ in their keys; the loop sets the rate
            if found[key] != own[key]:
                raise ValueError(f"it has another {key}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, held in state["state"].items():
        for name, value in held.items():
            found, own = tuple(getattr(value, "shape", ())), tuple(parameters[index].shape)
            if found not in ((), own):
                raise ValueError(f"{name} of parameter {index} has shape {found}, expected {own}")
    optimizer.load_state_dict(state)
