"""The EMA teacher ξ and its pseudo-labels."""

import copy
import math
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sda.system.distributed import all_reduce_sum

Module = TypeVar("Module", bound=nn.Module)


class Teacher(nn.Module, Generic[Module]):
    """An exponential moving average of any module's parameters and batch-norm statistics: ξ ← τ_k ξ + (1 - τ_k) θ.

    Args:
        student: the module θ to follow.
        momentum: τ at step 0.
        schedule: "cosine": τ_k = 1 - (1 - τ)(cos(πk/K) + 1)/2, which ends at 1; or "constant". With both, τ_k is at most
            1 - 1/(k+1), so that the teacher starts as the plain average of all students so far.
        steps: K.
        released: behave like the released code: average parameters only, and stay in train mode, so that batch norms use
            the statistics of the current batch. Otherwise the teacher is always in eval mode.
    """

    model: Module

    def __init__(self, student: Module, momentum: float, schedule: str = "cosine", steps: int = 1, released: bool = False):
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.momentum, self.schedule, self.steps, self.released = momentum, schedule, steps, released
        self.train()

    def train(self, mode: bool = True) -> "Teacher[Module]":
        return super().train(self.released)

    def forward(self, *inputs: Tensor):
        return self.model(*inputs)

    def tau(self, step: int) -> float:
        """Return τ_k for the update after step `step`, counted from 0."""
        tau = self.momentum
        if self.schedule == "cosine":
            tau = 1 - (1 - tau) * (math.cos(math.pi * step / self.steps) + 1) / 2
        return min(tau, 1 - 1 / (step + 1))

    @torch.no_grad()
    def follow(self, student: Module, step: int) -> None:
        """Move the teacher towards the student."""
        if self.released:
            ours, theirs = dict(self.model.named_parameters()), dict(student.named_parameters())
        else:
            ours, theirs = self.model.state_dict(), student.state_dict()
        floating = [name for name, value in ours.items() if value.is_floating_point()]
        torch._foreach_lerp_([ours[name] for name in floating], [theirs[name] for name in floating], 1 - self.tau(step))
        for name in ours.keys() - set(floating):
            ours[name].copy_(theirs[name])


def pseudo_label(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the most probable class and its probability.

    Args:
        logits: (B, C, H, W).

    Returns:
        labels: (B, H, W) int64; confidence: (B, H, W) in (0, 1].
    """
    confidence, labels = logits.softmax(dim=1).max(dim=1)
    return labels, confidence


def prototype_weights(features: Tensor, prototypes: Tensor, filled: Tensor, temperature: float) -> Tensor:
    """Return the factors that correct a teacher's probabilities: p'_k ∝ p_k ω_k (Zhang et al., ProDA, CVPR 2021).

    ω_k = softmax_k(-‖f - η_k‖/τ), with f scaled to unit length: the contrast trains only the directions of features, so their
    lengths mean nothing. Classes without a prototype get the mean of the others' factors, which is neutral.

    Args:
        features: (B, D, h, w) projections f. prototypes: (C, D) η, means of unit-length projections.
        filled: (C,) bool, the classes that have a prototype. temperature: τ > 0.

    Returns:
        (B, C, h, w) ω; over the classes with a prototype, the sum is 1. All 1 if no class has one.
    """
    f = F.normalize(features, dim=1).permute(0, 2, 3, 1)
    # not by matrix products, which lose the small distances
    distance = torch.cdist(f.flatten(1, 2), prototypes, compute_mode="donot_use_mm_for_euclid_dist").view(*f.shape[:3], -1)
    weights = torch.where(filled, -distance / temperature, -torch.inf).softmax(dim=3)
    return torch.where(filled, weights, 1 / filled.sum().clamp(min=1)).permute(0, 3, 1, 2)


def corrected(logits: Tensor, weights: Tensor) -> Tensor:
    """Return logits of the probabilities p'_k ∝ p_k ω_k, from logits of p and weights ω ≥ 0, both (B, C, H, W)."""
    return logits + weights.clamp(min=torch.finfo(weights.dtype).tiny).log()


def top_share(labels: Tensor, classes: int) -> Tensor:
    """Return the share, 0 to 1, of the most frequent class among labels (any shape, int64, none ignored)."""
    counts = torch.zeros(classes, device=labels.device)
    flat = labels.flatten()
    counts = all_reduce_sum(counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype)))
    return counts.max() / counts.sum()
