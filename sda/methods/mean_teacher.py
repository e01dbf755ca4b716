"""Self-training with pseudo-labels of a mean teacher on strong views with ClassMix: `class_bank` without its bank.

Tarvainen and Valpola, NeurIPS 2017 (the teacher); Olsson et al., WACV 2021 (ClassMix); weights, balancing and entropy as in
Alonso et al., ICCV 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sda.data.batch import Batch
from sda.labels import IGNORE
from sda.methods.base import Method, Task
from sda.methods.parts.balance import ClassBalance
from sda.methods.parts.losses import cross_entropy, entropy, ramp
from sda.methods.parts.teacher import Teacher, pseudo_label, top_share
from sda.methods.parts.views import in_target_colors, labelled_views, strong_views
from sda.methods.settings import MeanTeacherSettings, TeacherSettings
from sda.models.network import SegmentationNetwork
from sda.models.preprocessing import as_float


@dataclass(frozen=True)
class Views:
    """The student's inputs in a step and its features, of labelled images (l) and of strong views of unlabelled images (a).

    Attributes:
        x_l: (B, 3, H, W) images in 0..1. y_l: (B, H, W) labels. domain: (B, H, W) SOURCE or TARGET. f_l: (B, F, h, w) features.
        y_a: (A·B_u, H, W) pseudo-labels. f_a: (A·B_u, F, h, w) features.
    """

    x_l: Tensor
    y_l: Tensor
    domain: Tensor
    f_l: Tensor
    y_a: Tensor
    f_a: Tensor


class TeacherMethod(Method):
    """Base class of methods with class balancing and an EMA teacher ξ of the student θ."""

    balance: ClassBalance
    teacher: Teacher[SegmentationNetwork]
    watched_loss = "sup"

    def __init__(self, student: SegmentationNetwork, settings: TeacherSettings, task: Task):
        super().__init__(student, settings, task)
        s = settings
        self.teacher = Teacher(student, s.teacher_momentum, s.teacher_schedule, task.steps, s.released)
        self.balance = ClassBalance(task.classes, s.balance_classes)

    def follow(self, step: int) -> None:
        """Update the teacher: ξ ← τ ξ + (1 - τ) θ."""
        self.teacher.follow(self.student, step)


class MeanTeacher(TeacherMethod):
    """L = L_sup + L_pseudo + 0.01 L_ent.

    The paper does not say which labelled images L_sup uses: here, those of source and target.
    """

    settings: MeanTeacherSettings

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.self_training(batch, step)[0]

    def self_training(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Views]:
        """Compute the losses and return them with the views they were computed from."""
        s, grid = self.settings, self.student.grid
        batch = in_target_colors(batch, s.color_transfer)
        x_l, y_l, domain = labelled_views(batch, self.weak, self.classes, s.classmix_labelled)
        assert batch.unlabelled is not None
        x_u = as_float(batch.unlabelled)

        # teacher: pseudo-labels ŷ
        with torch.no_grad():
            y_u, confidence = pseudo_label(grid.enlarge(self.teacher(x_u)[0], x_u.shape[2:]))
        self.teacher_top = top_share(y_u, self.classes)
        mix = s.classmix_unlabelled if step >= s.unlabelled_start else 0.0
        x_a, y_a, w_a = strong_views(x_u, y_u, confidence**s.confidence_power, self.strong, s.views, self.classes, mix)

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
