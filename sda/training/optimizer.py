"""The optimizer: which parameters learn at which rate."""

import torch

from sda.recipe import Recipe


def make_optimizer(method: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """A group per stage of the pretrained backbone, at rates that rise by 1/`layer_decay`, and one of everything else, at
    `head_rate_factor` times the rate of the last stage."""
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
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor
