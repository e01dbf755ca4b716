"""The optimizer, and the learning rates of its parameter groups."""

import torch

from sda.methods.base import Method
from sda.recipe import Recipe


def make_optimizer(method: Method, recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimizer, with one parameter group per stage of the backbone and one for all other parameters.

    The last stage has the recipe's learning rate, each earlier stage `layer_decay` times that of the next, and the other
    parameters `head_rate_factor` times that of the last stage.
    """
    stages = method.student.backbone.stages()
    known = {id(parameter) for stage in stages for parameter in stage.parameters()}
    rates = [recipe.learning_rate * recipe.layer_decay**depth for depth in reversed(range(len(stages)))]
    parts = [(list(stage.parameters()), rate) for stage, rate in zip(stages, rates, strict=True)]
    parts.append(([p for p in method.parameters() if id(p) not in known], recipe.learning_rate * recipe.head_rate_factor))
    groups = [{"params": [p for p in part if p.requires_grad], "base": rate} for part, rate in parts]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


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
