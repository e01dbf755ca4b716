"""Warnings about silent failures in training: a diverging loss, a collapsed teacher, a bank with empty classes."""

from collections import deque

import torch

from sda.methods.base import Method
from sda.recipe import Recipe

MEAN_OF = 10  # logged steps in a running mean
RISEN = 2.0  # a loss diverges if its mean is this many times its lowest mean, and above its first mean
LONGEST_WAIT = 5000  # steps from bank_start to the check of the bank, or a quarter of all steps if that is less
COLLAPSED = 0.98  # share of pixels that a collapsed teacher assigns to one class


class Guard:
    """Checks every logged step and gives each kind of warning once.

    Args:
        names: the C class names.
    """

    def __init__(self, recipe: Recipe, names: list[str]):
        self.recipe, self.names = recipe, names
        self._losses: deque[float] = deque(maxlen=MEAN_OF)
        self._tops: deque[float] = deque(maxlen=MEAN_OF)
        self._first: float | None = None
        self._lowest: float | None = None
        self._said: set[str] = set()

    def look(self, step: int, values: dict[str, float], method: Method) -> list[str]:
        """Return new warnings.

        Args:
            step: the step that was just taken. values: its losses and diagnostics.
        """
        found = {"bank": self._bank(step, method), "teacher": self._teacher(values), "loss": self._loss(values, method)}
        new = {kind: text for kind, text in found.items() if text and kind not in self._said}
        self._said |= new.keys()
        return [f"step {step}: {text}" for text in new.values()]

    def _bank(self, step: int, method: Method) -> str:
        start = self.recipe.in_steps("bank_start")
        if method.bank is None or step < start + min(self.recipe.steps // 4, LONGEST_WAIT):
            return ""
        empty = [self.names[index] for index in torch.nonzero(~method.bank.valid.any(dim=1)).flatten().tolist()]
        if not empty:
            return ""
        return (
            f"the bank has no entries of {', '.join(empty)}, although it has been filled since step {start}: "
            "either no label has them, or the teacher never predicts them correctly with enough confidence (bank_confidence)"
        )

    def _teacher(self, values: dict[str, float]) -> str:
        self._tops.append(values.get("teacher_top", 0.0))
        if len(self._tops) < MEAN_OF or sum(self._tops) / MEAN_OF < COLLAPSED:
            return ""
        return (
            f"the teacher assigns {100 * sum(self._tops) / MEAN_OF:.0f} % of the unlabelled pixels to one class: it may have "
            "collapsed; lower learning_rate or weight_pseudo, or raise ramp_steps"
        )

    def _loss(self, values: dict[str, float], method: Method) -> str:
        if method.watched_loss is None:
            return ""
        self._losses.append(values[method.watched_loss])
        if len(self._losses) < MEAN_OF:
            return ""
        mean = sum(self._losses) / MEAN_OF
        self._first = mean if self._first is None else self._first
        self._lowest = mean if self._lowest is None else min(mean, self._lowest)
        if mean < RISEN * self._lowest or mean < self._first:
            return ""
        return f"the supervised loss has risen from {self._lowest:.3g} to {mean:.3g}: it diverges; lower learning_rate"
