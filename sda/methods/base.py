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


@dataclass(frozen=True)
class Task:
    """What a method is trained for.

    Attributes:
        classes: C. steps: K, of the whole training. labelled_images: |X_l|, in all labelled streams.
    """

    classes: int
    steps: int = 1
    labelled_images: int = 1


class Method(nn.Module):
    """What the loop asks of a method. A new one sets its parts in `__init__` and writes `step`; everything else has a default.

    All parameters of the module are trained, and its state dict is what a run resumes from.

    Args:
        student: the network θ that is trained and scored.
        settings: an object of the class of this method in `sda.methods.settings.SETTINGS`.

    Attributes:
        balance: the class weights; None for a method without class balancing.
        teacher: the EMA teacher of the student: it is checkpointed, compared with the student in evaluation, and drawn on boards.
        bank: the class-wise memory bank: `--bank FILE` fills it, `sda bank` shows it, the guard warns of its empty classes.
        watched_loss: the name in `step` of a loss on true labels: the guard warns when it rises.
        teacher_top: share of the last step's unlabelled pixels that the teacher assigns to its most frequent class: the guard
            warns when it nears 1.
        weak, strong: the augmentations.
    """

    def __init__(self, student: SegmentationNetwork, settings: SupervisedSettings, task: Task):
        super().__init__()
        self.student, self.settings, self.classes = student, settings, task.classes
        self.balance: ClassBalance | None = None
        self.teacher: Teacher | None = None
        self.bank: ClassBank | None = None
        self.watched_loss: str | None = None
        self.teacher_top: Tensor | None = None
        self.weak, self.strong = Augment(WEAK), Augment(STRONG)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Compute the named losses of one step, already weighted; the loop minimises their sum.

        Nothing here may wait for the device: no `.item()`, no branch on values.
        """
        raise NotImplementedError

    def follow(self, step: int) -> None:
        """Update what follows the student, after the optimizer's step."""

    def diagnostics(self) -> dict[str, float]:
        """Numbers for the log, every few steps; this may wait for the device."""
        found = {}
        if self.teacher is not None:
            found["teacher_top"] = 0.0 if self.teacher_top is None else self.teacher_top.item()
        if self.bank is not None:
            found |= self.bank.diagnostics()
        return found

    def networks(self) -> list[nn.Module]:
        """The networks that `compile` compiles: the student and what its teachers wrap."""
        return [self.student, *(part.model for part in self.children() if isinstance(part, Teacher))]
