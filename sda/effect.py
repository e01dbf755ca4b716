"""Which of a recipe's settings have an effect."""

from collections.abc import Iterable
from dataclasses import fields

from sda.methods.build import METHODS
from sda.recipe import Recipe


def without_effect(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Of the recipe's fields named, those that have none: other methods or settings read them."""
    read = {name: {field.name for field in fields(kind.Settings)} for name, kind in METHODS.items()}
    idle = set().union(*read.values()) - read[recipe.method] - {"steps", "released"}  # which loop and networks read as well
    if recipe.optimizer != "sgd":
        idle.add("momentum")
    if not recipe.balance_classes:
        idle.add("class_statistics")
    if recipe.released:
        idle |= {"strong_statistics", "attention_bank"}
    if not recipe.weight_contrast:
        idle |= read["class_bank"] - read["mean_teacher"] - {"weight_contrast"}
    return [name for name in names if name in idle]
