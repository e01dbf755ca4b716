"""Self-training: pseudo-labels of a mean teacher on strong views with ClassMix. The method of `class_bank` without its bank.

Tarvainen and Valpola, NeurIPS 2017 (the teacher); Olsson et al., WACV 2021 (ClassMix); weights, balancing and entropy as in
Alonso et al., ICCV 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sda.data.streams import Batch
from sda.labels import IGNORE
from sda.methods.parts.balance import ClassBalance
from sda.methods.parts.losses import cross_entropy, entropy, ramp
from sda.methods.parts.teacher import Teacher, pseudo_label, top_share
from sda.methods.parts.views import labelled_views, strong_views
from sda.models.preprocessing import Preprocessing


@dataclass(frozen=True)
class TeacherSettings:
    """What every method with a teacher reads: the fields of the same names in a recipe."""

    steps: int
    balance_classes: bool
    classmix_labelled: float
    teacher_momentum: float
    teacher_schedule: str
    weight_pseudo: float
    strong_statistics: bool
    released: bool


@dataclass(frozen=True)
class Settings(TeacherSettings):
    """The fields of the same names in a recipe."""

    classmix_unlabelled: float
    views: int
    confidence_power: float
    ramp_steps: int
    weight_entropy: float
    unlabelled_start: int


@dataclass(frozen=True)
class Views:
    """What the student saw in a step, and its features of it: labelled images x_l, and strong views a of unlabelled ones.

    Attributes:
        x_l: (B, 3, H, W), normalised. y_l, domain: (B, H, W). f_l, f_a: (B, F, h, w). y_a: (A·B_u, H, W) pseudo-labels.
    """

    x_l: Tensor
    y_l: Tensor
    domain: Tensor
    f_l: Tensor
    y_a: Tensor
    f_a: Tensor


class MeanTeacher(nn.Module):
    """L = L_sup + L_pseudo + 0.01 L_ent.

    Where the paper leaves a choice open: labelled images are those of all streams, source and target alike.

    Args:
        network: the student θ, images → (logits, features).
        classes: C.
        normalise: the preprocessing of the network's weights.
        labelled_images: |X_l|, not used here.
    """

    Settings = Settings

    def __init__(
        self, network: nn.Module, classes: int, normalise: Preprocessing, labelled_images: int, settings: TeacherSettings
    ):
        super().__init__()
        s = settings
        self.student = network
        self.teacher = Teacher(network, s.teacher_momentum, s.teacher_schedule, s.steps, s.released)
        self.balance = ClassBalance(classes, s.balance_classes)
        self.classes, self.normalise, self.settings = classes, normalise, s
        self.teacher_top: Tensor | None = None

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The named losses of one step, already weighted; their sum is what is minimised."""
        return self.self_training(batch, step)[0]

    def self_training(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Views]:
        """The losses, and the views that they were made from."""
        s, grid = self.settings, self.student.grid
        x_l, y_l, domain = labelled_views(batch, self.classes, s.classmix_labelled, self.normalise)
        x_u = batch.unlabelled.float() / 255

        # teacher: pseudo-labels ŷ
        with torch.no_grad():
            y_u, confidence = pseudo_label(grid.enlarge(self.teacher(self.normalise(x_u))[0], x_u.shape[2:]))
        self.teacher_top = top_share(y_u, self.classes)
        mix = s.classmix_unlabelled if step >= s.unlabelled_start else 0.0
        x_a, y_a, w_a = strong_views(x_u, y_u, confidence**s.confidence_power, s.views, self.classes, mix, self.normalise)

        # student
        logits_l, f_l = self.student(x_l)
        logits_a, f_a = self.student(x_a, note_statistics=s.strong_statistics or s.released)
        logits_l, logits_a = grid.enlarge(logits_l, y_l.shape[1:]), grid.enlarge(logits_a, y_a.shape[1:])
        alpha = self.balance(y_l, y_a)
        losses = {
            "sup": cross_entropy(logits_l, y_l, alpha),
            "pseudo": s.weight_pseudo * ramp(step, s.ramp_steps) * cross_entropy(logits_a, y_a, alpha, w_a),
            "entropy": s.weight_entropy * entropy(logits_a, y_a != IGNORE),
        }
        return losses, Views(x_l, y_l, domain, f_l, y_a, f_a)

    def follow(self, step: int) -> None:
        """ξ ← τ ξ + (1 - τ) θ, after the optimizer's step."""
        self.teacher.follow(self.student, step)

    def diagnostics(self) -> dict[str, float]:
        """Share of the unlabelled pixels that the teacher calls by its most frequent class, in the last step."""
        return {"teacher_top": 0.0 if self.teacher_top is None else self.teacher_top.item()}
