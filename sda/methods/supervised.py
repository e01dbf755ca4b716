"""Supervised training: source-only, target-only, joint and oracle, by the streams that there are."""

from dataclasses import dataclass

from torch import Tensor, nn

from sda.data.streams import Batch
from sda.methods.parts.balance import ClassBalance
from sda.methods.parts.losses import cross_entropy
from sda.methods.parts.views import labelled_views
from sda.models.preprocessing import Preprocessing


@dataclass(frozen=True)
class Settings:
    balance_classes: bool
    classmix_labelled: float


class Supervised(nn.Module):
    """L = L_sup on all labelled images."""

    Settings = Settings

    def __init__(self, network: nn.Module, classes: int, normalise: Preprocessing, labelled_images: int, settings: Settings):
        super().__init__()
        self.student = network
        self.balance = ClassBalance(classes, settings.balance_classes)
        self.classes, self.normalise, self.settings = classes, normalise, settings

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The named losses of one step; their sum is what is minimised."""
        x_l, y_l, _ = labelled_views(batch, self.classes, self.settings.classmix_labelled, self.normalise)
        logits, _ = self.student(x_l)
        return {"sup": cross_entropy(self.student.grid.enlarge(logits, y_l.shape[1:]), y_l, self.balance(y_l))}

    def follow(self, step: int) -> None:
        """Nothing follows the student here."""

    def diagnostics(self) -> dict[str, float]:
        return {}
