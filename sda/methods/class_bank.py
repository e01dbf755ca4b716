"""Pixel-level contrastive learning from a class-wise memory bank: Alonso et al., ICCV 2021 (arXiv 2104.13415).

For semi-supervised learning and for semi-supervised domain adaptation, which differ in the streams that there are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sda.balance import ClassBalance
from sda.bank import ClassBank, pixels_by_class
from sda.data.streams import Batch
from sda.losses import IGNORE, contrast, cross_entropy, entropy, mean_one, ramp
from sda.methods.views import SOURCE, TARGET, enlarge, labelled_views, shrink, strong_views
from sda.models.heads import attention, projection
from sda.models.weights import Preprocessing
from sda.teacher import Teacher, pseudo_label

FEATURES = 256  # D: size of projected features


@dataclass(frozen=True)
class Settings:
    """The fields of the same names in a recipe."""

    steps: int
    balance_classes: bool
    classmix_labelled: float
    classmix_unlabelled: float
    views: int
    teacher_momentum: float
    confidence_power: float
    ramp_steps: int
    weight_pseudo: float
    weight_entropy: float
    weight_contrast: float
    bank_size: int
    bank_streams: str
    bank_confidence: float
    bank_start: int
    unlabelled_start: int
    contrast_pixels: int


class ClassBankMethod(nn.Module):
    """L = L_sup + L_pseudo + 0.01 L_ent + λ_c (L_contr on labelled + L_contr on unlabelled pixels).

    Where the paper leaves a choice open:
    - labelled images are those of all streams: B and |X_l| of the bank's admissions count source and target alike;
    - contrast and admissions see at most `contrast_pixels` random pixels per class, stream and step: the mean over a class
      is then an estimate, but all classes cost the same, and nothing waits for the device;
    - only labelled images enter the batch norms' running statistics: strong views are not what evaluation shows.

    Args:
        network: the student θ, images → (logits, features).
        classes: C.
        normalise: the preprocessing of the network's weights.
        labelled_images: |X_l|; fewer enter more of their pixels.
    """

    Settings = Settings

    def __init__(self, network: nn.Module, classes: int, normalise: Preprocessing, labelled_images: int, settings: Settings):
        super().__init__()
        self.student = network
        self.g = projection(network.feature_channels, FEATURES)
        self.q = projection(FEATURES, FEATURES)
        self.S = attention(classes, FEATURES)  # S_c of features
        self.S_bank = attention(classes, FEATURES)  # S_c of bank entries
        self.teacher = Teacher(nn.ModuleDict({"network": network, "g": self.g}), settings.teacher_momentum)
        self.bank = ClassBank(classes, settings.bank_size, FEATURES)
        self.balance = ClassBalance(classes, settings.balance_classes)
        self.classes, self.normalise, self.settings = classes, normalise, settings
        self.admissions = max(1, round(settings.bank_size / labelled_images))  # per class and labelled image of a batch

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The named losses of one step, already weighted; their sum is what is minimised."""
        s = self.settings
        contrasting = step >= s.unlabelled_start and s.weight_contrast > 0
        x_l, y_l, domain = labelled_views(batch, self.classes, s.classmix_labelled, self.normalise)
        x_u = batch.unlabelled.float() / 255

        # teacher: pseudo-labels ŷ, and features for the bank
        with torch.no_grad():
            y_u, confidence = pseudo_label(enlarge(self.teacher.model["network"](self.normalise(x_u))[0], x_u.shape[2:]))
            if step >= s.bank_start and s.weight_contrast > 0:
                self._fill_bank(x_l, y_l, domain)
        mix = s.classmix_unlabelled if step >= s.unlabelled_start else 0.0
        x_a, y_a, w_a = strong_views(x_u, y_u, confidence**s.confidence_power, s.views, self.classes, mix, self.normalise)

        # student: strong views are not what it meets in evaluation, so their statistics stay out of the running ones
        logits_l, f_l = self.student(x_l)
        logits_a, f_a = self.student(x_a, note_statistics=False)
        logits_l, logits_a = enlarge(logits_l, y_l.shape[1:]), enlarge(logits_a, y_a.shape[1:])
        alpha = self.balance(y_l, y_a)
        losses = {
            "sup": cross_entropy(logits_l, y_l, alpha),
            "pseudo": s.weight_pseudo * ramp(step, s.ramp_steps) * cross_entropy(logits_a, y_a, alpha, w_a),
            "entropy": s.weight_entropy * entropy(logits_a, y_a != IGNORE),
        }
        if contrasting:
            losses["contrast_l"] = s.weight_contrast * self._contrast(f_l, y_l)
            losses["contrast_u"] = s.weight_contrast * self._contrast(f_a, y_a)
        return losses

    def follow(self, step: int) -> None:
        """ξ ← τ ξ + (1 - τ) θ, after the optimizer's step."""
        self.teacher.follow(nn.ModuleDict({"network": self.student, "g": self.g}), step, self.settings.steps)

    def diagnostics(self) -> dict[str, float]:
        """Bank fill (share), the source's share of what is in it, and the number of classes that are empty."""
        filled = self.bank.valid.sum().item()
        source = (self.bank.valid & (self.bank.domain == SOURCE)).sum().item()
        return {
            "bank_fill": self.bank.fill().mean().item(),
            "bank_source": source / filled if filled else 0.0,
            "bank_empty": float((~self.bank.valid.any(dim=1)).sum().item()),
        }

    def _contrast(self, features: Tensor, labels: Tensor) -> Tensor:
        """L_contr of features (B, F, h, w) with labels (B, H, W) against the bank."""
        f, chosen, _ = self._gather(features, shrink(labels, features.shape[2:]))
        p = self._heads(f, chosen, self.g, self.q)
        w_p = mean_one(self.S(p.detach(), chosen).sigmoid().squeeze(2), chosen)
        z, valid = self.bank.features, self.bank.valid
        w_z = mean_one(self.S_bank(z, valid).sigmoid().squeeze(2), valid)
        return contrast(p, w_p, z, w_z)

    def _fill_bank(self, x_l: Tensor, y_l: Tensor, domain: Tensor) -> None:
        """Admit the labelled pixels that the teacher gets right with confidence, the highest-scored by S_c first."""
        s = self.settings
        logits, features = self.teacher.model["network"](x_l)
        predicted, confidence = pseudo_label(logits)
        y, domain = shrink(y_l, features.shape[2:]), shrink(domain, features.shape[2:])
        right = (predicted == y) & (confidence > s.bank_confidence)
        if s.bank_streams != "both":
            right &= domain == (SOURCE if s.bank_streams == "source" else TARGET)
        f, chosen, indices = self._gather(features, torch.where(right, y, IGNORE))
        z = self._heads(f, chosen, self.teacher.model["g"])
        training = self.S.training
        scores = self.S.eval()(z, chosen).squeeze(2)
        self.S.train(training)
        self.bank.admit(z, scores, chosen, domain.flatten()[indices], count=len(x_l) * self.admissions)

    def _gather(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Up to `contrast_pixels` random pixels per class of features (B, F, h, w) with labels (B, h, w).

        Returns:
            Their features (C, K, F), which of them are real (C, K), and their indices among the B·h·w pixels (C, K).
        """
        flat, y = features.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
        indices, chosen = pixels_by_class(y, y != IGNORE, self.classes, self.settings.contrast_pixels)
        rows = flat[indices.flatten()].unflatten(0, indices.shape)
        return rows, chosen, indices

    @staticmethod
    def _heads(f: Tensor, chosen: Tensor, *heads: nn.Module) -> Tensor:
        """Heads shared by all classes, on (C, K, F) rows: (C, K, D)."""
        rows, valid = f.flatten(0, 1).unsqueeze(0), chosen.flatten().unsqueeze(0)
        for head in heads:
            rows = head(rows, valid)
        return rows[0].unflatten(0, chosen.shape)
