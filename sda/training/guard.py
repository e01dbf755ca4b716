"""Warnings of what goes wrong in a training without an error: a diverging loss, a collapsed teacher, an empty bank."""

from collections import deque

import torch

from sda.methods.base import Method
from sda.recipe import Recipe

MEAN_OF = 10  # logged steps that a running mean takes in
RISEN = 2.0  # times its lowest mean: a supervised loss that grew so much, and above its first mean, diverges
LONGEST_WAIT = 5000  # steps until the bank is looked into; a quarter of the training, where that is less
COLLAPSED = 0.98  # share of the teacher's pixels in one class


class Guard:
    """Looks at every logged step.

    Args:
        recipe: what is trained. names: of the C classes.
    """

    def __init__(self, recipe: Recipe, names: list[str]):
        self.recipe, self.names = recipe, names
        self._losses, self._tops = deque(maxlen=MEAN_OF), deque(maxlen=MEAN_OF)
        self._first = self._lowest = None
        self._said: set[str] = set()

    def look(self, step: int, values: dict[str, float], method: Method) -> list[str]:
        """Return the warnings that are new.

        Args:
            step: the one that was taken. values: its losses and diagnostics. method: what is trained.
        """
        found = {"bank": self._bank(step, method), "teacher": self._teacher(values), "loss": self._loss(values, method)}
        new = {kind: text for kind, text in found.items() if text and kind not in self._said}
        self._said |= new.keys()
        return [f"step {step}: {text}" for text in new.values()]

    def _bank(self, step: int, method: Method) -> str:
        if method.bank is None or step < self.recipe.bank_start + min(self.recipe.steps // 4, LONGEST_WAIT):
            return ""
        empty = [self.names[index] for index in torch.nonzero(~method.bank.valid.any(dim=1)).flatten().tolist()]
        if not empty:
            return ""
        return (
            f"the bank holds nothing of {', '.join(empty)}, although it has been filling since step {self.recipe.bank_start}: "
            "no label shows them, or the teacher never gets them right with confidence (bank_confidence)"
        )

    def _teacher(self, values: dict[str, float]) -> str:
        self._tops.append(values.get("teacher_top", 0.0))
        if len(self._tops) < MEAN_OF or sum(self._tops) / MEAN_OF < COLLAPSED:
            return ""
        return (
            f"the teacher calls {100 * sum(self._tops) / MEAN_OF:.0f} % of the unlabelled pixels one class: has it collapsed? "
            "Lower learning_rate or weight_pseudo, or lengthen ramp_steps"
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
