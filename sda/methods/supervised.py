"""Supervised training. The streams decide the setting: source-only, target-only, joint or oracle."""

from torch import Tensor

from sda.data.batch import Batch
from sda.methods.base import Method, Task
from sda.methods.parts.balance import ClassBalance
from sda.methods.parts.losses import cross_entropy
from sda.methods.parts.views import labelled_views
from sda.methods.settings import SupervisedSettings
from sda.models.network import SegmentationNetwork


class Supervised(Method):
    """L = L_sup on all labelled images."""

    balance: ClassBalance
    watched_loss = "sup"

    def __init__(self, student: SegmentationNetwork, settings: SupervisedSettings, task: Task):
        super().__init__(student, settings, task)
        self.balance = ClassBalance(task.classes, settings.balance_classes)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        x_l, y_l, _ = labelled_views(batch, self.weak, self.classes, self.settings.classmix_labelled)
        logits, _ = self.student(x_l)
        return {"sup": cross_entropy(self.student.grid.enlarge(logits, y_l.shape[1:]), y_l, self.balance(y_l))}
