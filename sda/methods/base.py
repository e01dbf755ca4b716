"""The contract between the training loop and a method."""

from dataclasses import dataclass

from torch import Tensor, nn

from sda.data.batch import Batch
from sda.methods.parts.augment import STRONG, WEAK, Augment
from sda.methods.parts.balance import ClassBalance
from sda.methods.parts.bank import ClassBank
from sda.methods.parts.teacher import Teacher
from sda.methods.settings import SupervisedSettings
from sda.models.network import SegmentationNetwork

LOG_EVERY = 10  # steps between log entries; reading the losses waits for the device


@dataclass(frozen=True)
class Task:
    """Facts about the training that methods need.

    Attributes:
        classes: C. steps: K, number of training steps. labelled_images: |X_l|, total number of images in the labelled streams.
    """

    classes: int
    steps: int = 1
    labelled_images: int = 1


class Method(nn.Module):
    """Base class of the methods. A new method sets its parts in `__init__` and implements `step`; the rest has defaults.

    All parameters of the module are trained, and runs resume from its state dict.

    Args:
        student: the network θ to train and score.
        settings: an instance of the method's class in `sda.methods.settings.SETTINGS`.

    Attributes:
        balance: the class weights; None for methods without class balancing.
        teacher: EMA teacher of the student: it is checkpointed, compared with the student in evaluation, and shown on boards.
        bank: class-wise memory bank: `--bank FILE` fills it, `sda bank` shows it, and the guard warns about its empty classes.
        watched_loss: name, among the losses of `step`, of a loss on true labels: the guard warns if it rises.
        teacher_top: share of the last step's unlabelled pixels that the teacher assigned to its most frequent class: the guard
            warns if it is close to 1.
        weak, strong: the augmentations.
    """

    watched_loss: str | None = None

    def __init__(self, student: SegmentationNetwork, settings: SupervisedSettings, task: Task):
        super().__init__()
        self.student, self.settings, self.classes = student, settings, task.classes
        self.balance: ClassBalance | None = None
        self.teacher: Teacher[SegmentationNetwork] | None = None
        self.bank: ClassBank | None = None
        self.teacher_top: Tensor | None = None
        self.weak, self.strong = Augment(WEAK), Augment(STRONG)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Compute the losses of one step by name, already weighted; the loop minimises their sum.

        A step must not wait for the device: no `.item()`, no branching on tensor values.
        """
        raise NotImplementedError

    def follow(self, step: int) -> None:
        """Update the teacher, if any, after the optimizer's step."""

    def diagnostics(self) -> dict[str, float]:
        """Return numbers for the log. Called every few steps; may wait for the device."""
        found = {}
        if self.teacher is not None:
            found["teacher_top"] = 0.0 if self.teacher_top is None else self.teacher_top.item()
        if self.bank is not None:
            found |= self.bank.diagnostics()
        return found

    def networks(self) -> list[nn.Module]:
        """Return the networks to compile with `compile = true`: the student and the models inside the teachers."""
        return [self.student, *(part.model for part in self.children() if isinstance(part, Teacher))]
