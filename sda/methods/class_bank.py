"""Pixel-level contrastive learning from a class-wise memory bank: Alonso et al., ICCV 2021 (arXiv 2104.13415).

For semi-supervised learning and for semi-supervised domain adaptation, which differ in the streams that there are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sda.data.streams import Batch
from sda.labels import IGNORE
from sda.methods import mean_teacher
from sda.methods.parts.bank import ClassBank, pixels_by_class
from sda.methods.parts.losses import contrast, mean_one
from sda.methods.parts.mlp import attention, projection
from sda.methods.parts.teacher import Teacher, pseudo_label
from sda.methods.parts.views import SOURCE, TARGET
from sda.models.preprocessing import Preprocessing
from sda.system import distributed

FEATURES = 256  # D: size of projected features


@dataclass(frozen=True)
class Settings(mean_teacher.Settings):
    """The fields of the same names in a recipe."""

    weight_contrast: float
    contrast_on: str
    contrast_pixels: int
    attention_features: bool
    attention_bank: bool
    bank_size: int
    bank_streams: str
    bank_selection: str
    bank_confidence: float
    bank_start: int


class ClassBankMethod(mean_teacher.MeanTeacher):
    """L = L_sup + L_pseudo + 0.01 L_ent + λ_c (L_contr on labelled + L_contr on unlabelled pixels).

    Where the paper leaves a choice open: B and |X_l| of the bank's admissions count source and target images alike.
    Where this departs from it: the contrast sees at most `contrast_pixels` random pixels per class, stream and step; the
    mean over a class is then an estimate, but all classes cost the same, and nothing waits for the device.

    Args:
        network: the student θ, images → (logits, features).
        classes: C.
        normalise: the preprocessing of the network's weights.
        labelled_images: |X_l|; fewer enter more of their pixels.
    """

    Settings = Settings

    def __init__(self, network: nn.Module, classes: int, normalise: Preprocessing, labelled_images: int, settings: Settings):
        super().__init__(network, classes, normalise, labelled_images, settings)
        s = settings
        self.g = projection(network.feature_channels, FEATURES)
        self.q = projection(FEATURES, FEATURES)
        self.S = attention(classes, FEATURES)  # S_c of features
        self.S_bank = attention(classes, FEATURES, shared=True)  # S_c of bank entries
        self.g_teacher = Teacher(self.g, s.teacher_momentum, s.teacher_schedule, s.steps, s.released)
        self.bank = ClassBank(classes, s.bank_size, FEATURES)
        self.admissions = max(1, round(s.bank_size / labelled_images))  # per class and labelled image of a batch

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The named losses of one step, already weighted; their sum is what is minimised."""
        s = self.settings
        losses, views = self.self_training(batch, step)
        if step >= s.bank_start and s.weight_contrast > 0:
            self._fill_bank(views.x_l, views.y_l, views.domain, step)
        if step >= s.unlabelled_start and s.weight_contrast > 0:
            if s.contrast_on != "unlabelled":
                losses["contrast_l"] = s.weight_contrast * self._contrast(views.f_l, views.y_l)
            if s.contrast_on != "labelled":
                losses["contrast_u"] = s.weight_contrast * self._contrast(views.f_a, views.y_a)
        return losses

    def follow(self, step: int) -> None:
        """ξ ← τ ξ + (1 - τ) θ, after the optimizer's step."""
        super().follow(step)
        self.g_teacher.follow(self.g, step)

    def diagnostics(self) -> dict[str, float]:
        """Also: bank fill (share), the source's share of what is in it, and the number of classes that are empty."""
        filled = self.bank.valid.sum().item()
        source = (self.bank.valid & (self.bank.domain == SOURCE)).sum().item()
        return {
            **super().diagnostics(),
            "bank_fill": filled / self.bank.valid.numel(),
            "bank_source": source / filled if filled else 0.0,
            "bank_empty": float((~self.bank.valid.any(dim=1)).sum().item()),
        }

    def _contrast(self, features: Tensor, labels: Tensor) -> Tensor:
        """L_contr of features (B, F, h, w) with labels (B, H, W) against the bank."""
        s = self.settings
        f, chosen = self._gather(features, self.student.grid.shrink(labels, features.shape[2:]), s.contrast_pixels)
        p = self._heads(f, chosen, self.g, self.q)
        z, valid = self.bank.features, self.bank.valid
        w_p = self._weights(self.S, p.detach(), chosen, s.attention_features)
        # released: these weights are normalised along the wrong axis, and cancel to 1
        w_z = self._weights(self.S_bank, z, valid, s.attention_bank and not s.released, shared=True)
        return contrast(p, w_p, z, w_z)

    @staticmethod
    def _weights(attention: nn.Module, rows: Tensor, valid: Tensor, attentive: bool, shared: bool = False) -> Tensor:
        """w = N·S_c / Σ S_c over a class's rows; 1 for all of them without attention."""
        scores = attention(rows, valid).sigmoid().squeeze(2) if attentive else torch.ones_like(rows[:, :, 0])
        return mean_one(scores, valid, shared)

    def _fill_bank(self, x_l: Tensor, y_l: Tensor, domain: Tensor, step: int) -> None:
        """Admit labelled pixels that the teacher gets right with confidence, of each class the highest-scored by S_c first."""
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
            count = s.bank_size if s.bank_selection == "recent" else distributed.size() * len(x_l) * self.admissions
            indices, chosen = pixels_by_class(y, right, self.classes, count, scores)
            # the best of all processes: the bank is the same in each
            best = (z[indices], scores[indices], chosen, domain.flatten()[indices], confidence.flatten()[indices])
            self.bank.admit(*(distributed.gathered(part, dim=1) for part in best), step, count)

    def _scores(self, z: Tensor, classes: Tensor) -> Tensor:
        """What the candidates z (N, D) for the bank are ranked by within their classes (N,), C for none: the highest enter."""
        if self.settings.bank_selection != "attention":
            return torch.rand_like(z[:, 0])
        # normalised by their own statistics: the running ones are those of predicted features p, not of z
        scores = self.S.of_rows(z, classes).squeeze(1)
        return -scores if self.settings.released else scores

    def _gather(self, features: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Up to `most` random pixels per class of features (B, F, h, w) with labels (B, h, w).

        Returns:
            Their features (C, K, F), and which of them are real (C, K).
        """
        flat, y = features.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
        indices, chosen = pixels_by_class(y, y != IGNORE, self.classes, most)
        rows = flat[indices.flatten()].unflatten(0, indices.shape)
        return rows, chosen

    @staticmethod
    def _heads(f: Tensor, chosen: Tensor, *heads: nn.Module) -> Tensor:
        """Heads shared by all classes, on (C, K, F) rows: (C, K, D)."""
        rows, valid = f.flatten(0, 1).unsqueeze(0), chosen.flatten().unsqueeze(0)
        for head in heads:
            rows = head(rows, valid)
        return rows[0].unflatten(0, chosen.shape)
