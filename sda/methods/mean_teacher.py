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
from sda.methods.parts.augment import mask_patches
from sda.methods.parts.balance import ClassBalance
from sda.methods.parts.losses import cross_entropy, entropy, ramp
from sda.methods.parts.teacher import Teacher, pseudo_label, top_share
from sda.methods.parts.views import Views, donors, in_target_colors, labelled_views, strong_views
from sda.methods.settings import MeanTeacherSettings, TeacherSettings
from sda.models.network import SegmentationNetwork
from sda.models.preprocessing import as_float


@dataclass(frozen=True)
class Seen:
    """The student's inputs in a step and its features, of labelled images (l) and of strong views of unlabelled images (a).

    Attributes:
        x_l: (B, 3, H, W) images in 0..1. y_l: (B, H, W) labels. domain: (B, H, W) SOURCE or TARGET. f_l: (B, F, h, w) features.
        y_a: (A·B_u, H, W) pseudo-labels. f_a: (A·B_u, F, h, w) features.
        logits_l: (B, C, H, W) logits of the labelled images.
    """

    x_l: Tensor
    y_l: Tensor
    domain: Tensor
    f_l: Tensor
    y_a: Tensor
    f_a: Tensor
    logits_l: Tensor


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
    """L = L_sup + L_pseudo + 0.01 L_ent + λ_m L_masked, where λ_m = `weight_masked` is 0 by default.

    The paper does not say which labelled images L_sup uses: here, those of source and target.

    L_masked is L_pseudo in a further view, of which random patches are hidden (MIC: Hoyer et al., CVPR 2023). There, the share
    of confident pixels in an image weights all its pixels; here, each has the weight of its own confidence, as in L_pseudo.
    Masked views never enter the running statistics of the batch norms.
    """

    settings: MeanTeacherSettings

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.self_training(batch, step)[0]

    def self_training(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Seen]:
        """Compute the losses and return them with the views they were computed from."""
        s, grid = self.settings, self.student.grid
        batch = in_target_colors(batch, s.color_transfer)
        x_l, y_l, domain = labelled_views(batch, self.weak, self.classes, s.classmix_labelled)
        assert batch.unlabelled is not None
        x_u = as_float(batch.unlabelled)

        y_u, confidence = self.pseudo_labels(x_u, step)
        self.teacher_top = top_share(y_u, self.classes)
        mix = s.classmix_unlabelled if step >= s.unlabelled_start else 0.0
        u = Views(x_u, y_u, confidence**s.confidence_power)
        pool = donors(batch, u, s.mix_from) if mix else None
        x_a, y_a, w_a = strong_views(u, self.strong, s.views, self.classes, mix, pool, s.mix_from == "all")

        # student
        logits_l, f_l = self.student(x_l)
        drop_in = s.views if s.channel_dropout else 0
        logits_a, f_a = self.student(x_a, s.strong_statistics or s.released, drop_in)
        logits_l, logits_a = grid.enlarge(logits_l, y_l.shape[1:]), grid.enlarge(logits_a, y_a.shape[1:])
        alpha, ramped = self.balance(y_l, y_a), ramp(step, s.ramp_steps)
        losses = {
            "sup": cross_entropy(logits_l, y_l, alpha),
            "pseudo": s.weight_pseudo * ramped * cross_entropy(logits_a, y_a, alpha, w_a),
            "entropy": s.weight_entropy * entropy(logits_a, y_a != IGNORE),
        }
        if s.weight_masked > 0:
            x_m, y_m, w_m = strong_views(u, self.strong, 1, self.classes, 0.0)
            x_m = mask_patches(x_m, s.mask_patch, s.mask_ratio, self.student.normalise.mean_color)
            logits_m = grid.enlarge(self.student(x_m, note_statistics=False)[0], y_m.shape[1:])
            losses["masked"] = s.weight_masked * ramped * cross_entropy(logits_m, y_m, alpha, w_m)
        return losses, Seen(x_l, y_l, domain, f_l, y_a, f_a, logits_l)

    @torch.no_grad()
    def pseudo_labels(self, x_u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the teacher's pseudo-labels ŷ of images (B, 3, H, W) and their confidence, both (B, H, W)."""
        return pseudo_label(self.student.grid.enlarge(self.teacher(x_u)[0], x_u.shape[2:]))
