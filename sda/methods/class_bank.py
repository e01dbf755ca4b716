"""Pixel-level contrastive learning from a class-wise memory bank: Alonso et al., ICCV 2021 (arXiv 2104.13415).

The same method serves semi-supervised learning and semi-supervised domain adaptation; only their streams differ. Two settings go
beyond the paper: `contrast` (other contrastive losses) and `correct` (pseudo-labels corrected by the bank's prototypes).
"""

import math

import torch
from torch import Tensor, nn

from sda.data.batch import Batch
from sda.labels import IGNORE
from sda.methods.base import LOG_EVERY, Task
from sda.methods.mean_teacher import MeanTeacher, Seen
from sda.methods.parts.bank import SOURCE, TARGET, ClassBank, pixels_by_class
from sda.methods.parts.gradients import gradient_norms
from sda.methods.parts.losses import contrast, contrast_distribution, contrast_infonce, mean_one
from sda.methods.parts.mlp import attention, projection
from sda.methods.parts.teacher import Teacher, corrected, prototype_weights, pseudo_label
from sda.methods.settings import ClassBankSettings
from sda.models.network import SegmentationNetwork
from sda.system import distributed

FEATURES = 256  # D, size of projected features


class ClassBankMethod(MeanTeacher):
    """L = L_sup + L_pseudo + 0.01 L_ent + λ_c (L_contr on labelled + L_contr on unlabelled pixels).

    The paper does not say which images B and |X_l| count when pixels enter the bank: here, those of source and target.
    Difference from the paper: L_contr uses at most `contrast_pixels` random pixels per class, stream and step. The mean over a
    class is then an estimate, but all classes cost the same, and nothing waits for the device.
    """

    bank: ClassBank
    settings: ClassBankSettings

    def __init__(self, student: SegmentationNetwork, settings: ClassBankSettings, task: Task):
        super().__init__(student, settings, task)
        s = settings
        self.g = projection(student.feature_channels, FEATURES)
        self.q = projection(FEATURES, FEATURES)
        self.S = attention(task.classes, FEATURES)  # S_c for features
        self.S_bank = attention(task.classes, FEATURES, shared=True)  # S_c for bank entries
        self.g_teacher = Teacher(self.g, s.teacher_momentum, s.teacher_schedule, task.steps, s.released)
        self.bank = ClassBank(task.classes, s.bank_size, FEATURES)
        self.admissions = max(1, round(s.bank_size / task.labelled_images))  # per class and labelled image of a batch
        self.gradients: dict[str, Tensor] = {}  # norms at the features in the last step, if it measured them

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        s = self.settings
        losses, seen = self.self_training(batch, step)
        if step >= s.bank_start and s.weight_contrast > 0:
            self._fill_bank(seen.x_l, seen.y_l, seen.domain, step)
        if step >= s.unlabelled_start and s.weight_contrast > 0:
            if s.contrast_on != "unlabelled":
                losses["contrast_l"] = s.weight_contrast * self._contrast(seen.f_l, seen.y_l)
            if s.contrast_on != "labelled":
                losses["contrast_u"] = s.weight_contrast * self._contrast(seen.f_a, seen.y_a)
        # in float16, gradients without the loop's scaling are too small for the format
        measure = step % LOG_EVERY == 0 and "contrast_l" in losses and self.student.precision != torch.float16
        self.gradients = self._measure(losses, seen) if measure else {}
        return losses

    def diagnostics(self) -> dict[str, float]:
        """Return the numbers of the base class and the gradient norms of `_measure`, without those of no pixels."""
        norms = {name: norm.item() for name, norm in self.gradients.items()}
        return super().diagnostics() | {name: norm for name, norm in norms.items() if math.isfinite(norm)}

    @torch.no_grad()
    def pseudo_labels(self, x_u: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return pseudo-labels and their confidence, corrected by the bank's prototypes with `correct = "prototype"`.

        The correction begins with the contrast, which trains the projection.
        """
        if self.settings.correct == "none" or step < self.settings.unlabelled_start:
            return super().pseudo_labels(x_u, step)
        logits, features = self.teacher(x_u)
        rows = features.permute(0, 2, 3, 1)
        everywhere = torch.ones(1, rows[..., 0].numel(), dtype=torch.bool, device=rows.device)
        z = self.g_teacher.model(rows.flatten(0, 2).unsqueeze(0), everywhere).view(*rows.shape[:3], -1).permute(0, 3, 1, 2)
        mean, _, filled = self.bank.moments()
        weights = prototype_weights(z, mean, filled, self.settings.correct_temperature)
        logits, weights = (self.student.grid.enlarge(part, x_u.shape[2:]) for part in (logits, weights))
        return pseudo_label(corrected(logits, weights))

    def follow(self, step: int) -> None:
        super().follow(step)
        self.g_teacher.follow(self.g, step)

    def _contrast(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute L_contr between features (B, F, h, w) with labels (B, H, W) and the bank."""
        s = self.settings
        f, chosen = self._gather(features, self.student.grid.shrink(labels, features.shape[2:]), s.contrast_pixels)
        p = self._heads(f, chosen, self.g, self.q)
        z, valid = self.bank.features, self.bank.valid
        w_p = self._weights(self.S, p.detach(), chosen, s.attention_features)
        if s.contrast == "distribution":
            return contrast_distribution(p, w_p, *self.bank.moments(), s.temperature)
        # the released code normalises these weights along the wrong axis, so that they are all 1
        w_z = self._weights(self.S_bank, z, valid, s.attention_bank and not s.released, shared=True)
        return contrast(p, w_p, z, w_z) if s.contrast == "positive" else contrast_infonce(p, w_p, z, w_z, s.temperature)

    def _measure(self, losses: dict[str, Tensor], seen: Seen) -> dict[str, Tensor]:
        """Measure L_contr and L_sup at the features of labelled pixels that the student classifies correctly and wrongly."""
        right, y = (
            self.student.grid.shrink(part, seen.f_l.shape[2:]) for part in (seen.logits_l.argmax(1) == seen.y_l, seen.y_l)
        )
        found: dict[str, Tensor] = {}
        for name in ("contrast_l", "sup"):
            norms = gradient_norms(losses[name], seen.f_l, right, ~right & (y != IGNORE))
            found |= {f"gradient_{name}_{cells}": norm for cells, norm in norms.items()}
        return found

    @staticmethod
    def _weights(attention: nn.Module, rows: Tensor, valid: Tensor, attentive: bool, shared: bool = False) -> Tensor:
        """Compute w = N·S_c / Σ S_c over the rows of each class, or equal weights if not `attentive`."""
        scores = attention(rows, valid).sigmoid().squeeze(2) if attentive else torch.ones_like(rows[:, :, 0])
        return mean_one(scores, valid, shared)

    def _fill_bank(self, x_l: Tensor, y_l: Tensor, domain: Tensor, step: int) -> None:
        """Add labelled pixels that the teacher classifies correctly and confidently, ranked by S_c within each class."""
        s = self.settings
        with torch.no_grad():
            logits, features = self.teacher(x_l)
            predicted, confidence = pseudo_label(logits)
            y, domain = (self.student.grid.shrink(part, features.shape[2:]) for part in (y_l, domain))
            right = (predicted == y) & (confidence > s.bank_confidence)
            if s.bank_streams != "both":
                right &= domain == (SOURCE if s.bank_streams == "source" else TARGET)
            y, right = y.flatten(), right.flatten()
            z = self.g_teacher.model(features.permute(0, 2, 3, 1).flatten(0, 2).unsqueeze(0), right.unsqueeze(0))[0]
            scores = self._scores(z, torch.where(right, y, self.classes))
            count = s.bank_size if s.bank_selection == "recent" else distributed.world_size() * len(x_l) * self.admissions
            indices, chosen = pixels_by_class(y, right, self.classes, count, scores)
            # gather the candidates of all processes, so that all have the same bank
            z, scores, domain, confidence = (part[indices] for part in (z, scores, domain.flatten(), confidence.flatten()))
            parts = (z, scores, chosen, domain, confidence)
            z, scores, chosen, domain, confidence = (distributed.all_gather(part, dim=1) for part in parts)
            self.bank.admit(z, scores, chosen, domain, confidence, step, count)

    def _scores(self, z: Tensor, classes: Tensor) -> Tensor:
        """Score candidates z (N, D) for the bank; the highest-scored of each class enter it.

        Args:
            classes: (N,) int64, C for pixels that are not candidates.
        """
        if self.settings.bank_selection != "attention":
            return torch.rand_like(z[:, 0])
        # of_rows normalises by the statistics of z: the running statistics belong to the predicted features p
        scores = self.S.of_rows(z, classes).squeeze(1)
        return -scores if self.settings.released else scores

    def _gather(self, features: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Choose up to `most` random pixels per class from features (B, F, h, w) with labels (B, h, w).

        Returns:
            Their features (C, K, F), and a mask (C, K) that is False for padding.
        """
        flat, y = features.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
        indices, chosen = pixels_by_class(y, y != IGNORE, self.classes, most)
        rows = flat[indices.flatten()].unflatten(0, indices.shape)
        return rows, chosen

    @staticmethod
    def _heads(f: Tensor, chosen: Tensor, *heads: nn.Module) -> Tensor:
        """Apply heads that all classes share to rows (C, K, F) with mask (C, K): (C, K, D)."""
        rows, valid = f.flatten(0, 1).unsqueeze(0), chosen.flatten().unsqueeze(0)
        for head in heads:
            rows = head(rows, valid)
        return rows[0].unflatten(0, chosen.shape)
