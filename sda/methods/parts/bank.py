"""The class-wise memory bank, and the selection of pixels by class for the bank and the contrastive loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOURCE, TARGET = 0, 1  # domain of a bank entry or pixel


class ClassBank(nn.Module):
    """C first-in-first-out queues of ψ feature vectors, newest first (Alonso et al., ICCV 2021, section 3.3).

    Args:
        classes: C. size: ψ. channels: D.

    Attributes:
        features: (C, ψ, D). valid: (C, ψ) bool, which entries are filled.
        domain: (C, ψ) int64, SOURCE or TARGET. confidence: (C, ψ), the teacher's, 0 to 1.
        step: (C, ψ) int64, training step at which the entry was added.
    """

    features: Tensor
    valid: Tensor
    domain: Tensor
    confidence: Tensor
    step: Tensor

    def __init__(self, classes: int, size: int, channels: int):
        super().__init__()
        self.register_buffer("features", torch.zeros(classes, size, channels))
        self.register_buffer("valid", torch.zeros(classes, size, dtype=torch.bool))
        self.register_buffer("domain", torch.zeros(classes, size, dtype=torch.int64))
        self.register_buffer("confidence", torch.zeros(classes, size))
        self.register_buffer("step", torch.zeros(classes, size, dtype=torch.int64))

    def diagnostics(self) -> dict[str, float]:
        """Return the share of filled entries, the share of these that come from the source, and the number of empty classes."""
        filled, source = self.valid.sum().item(), (self.valid & (self.domain == SOURCE)).sum().item()
        return {
            "bank_fill": filled / self.valid.numel(),
            "bank_source": source / filled if filled else 0.0,
            "bank_empty": float((~self.valid.any(dim=1)).sum().item()),
        }

    @torch.no_grad()
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and variance of the entries of each class, scaled to unit length.

        They are computed from the entries, source and target alike, and not kept as running moments of all labelled pixels as
        in SePiCo: the entries come from recent teachers, while SePiCo's moments average over all teachers since the first step;
        only pixels that the teacher classifies correctly and with confidence are entries, which is stricter than SePiCo's rule
        that a label must cover 75 % of a cell; and a bank from a file or a checkpoint has its moments at once. The price is
        sampling error: the mean of ψ = 256 entries is off by 1/16 of their standard deviation.

        Returns:
            mean: (C, D). variance: (C, D) ≥ 0, divided by the number of entries. filled: (C,) bool; where False, both are 0.
        """
        z, valid = F.normalize(self.features, dim=2), self.valid.unsqueeze(2)
        count = valid.sum(dim=1).clamp(min=1)
        mean = torch.where(valid, z, 0.0).sum(dim=1) / count
        variance = torch.where(valid, (z - mean.unsqueeze(1)).square(), 0.0).sum(dim=1) / count
        return mean, variance, self.valid.any(dim=1)

    @torch.no_grad()
    def admit(
        self, features: Tensor, scores: Tensor, valid: Tensor, domain: Tensor, confidence: Tensor, step: int, count: int
    ) -> None:
        """Add the `count` highest-scored valid candidates of each class, and drop the oldest entries.

        Args:
            features: (C, N, D) candidates by class. scores, domain, confidence: (C, N). valid: (C, N) bool.
            step: current training step. count: maximum number of new entries per class.
        """
        order = torch.where(valid, scores, -torch.inf).topk(min(count, scores.shape[1]), dim=1).indices
        candidates = {"features": features, "valid": valid, "domain": domain, "confidence": confidence}
        whole = {name: torch.cat([_rows(new, order), getattr(self, name)], dim=1) for name, new in candidates.items()}
        whole["step"] = torch.cat([torch.full_like(order, step), self.step], dim=1)
        keep = torch.argsort(~whole["valid"], dim=1, stable=True)[:, : self.valid.shape[1]]
        for name, values in whole.items():
            getattr(self, name).copy_(_rows(values, keep))


def _rows(values: Tensor, order: Tensor) -> Tensor:
    """Select rows by index, order (C, K), from values (C, N) or (C, N, D)."""
    return values.gather(1, order if values.ndim == 2 else order.unsqueeze(2).expand(-1, -1, values.shape[2]))


def pixels_by_class(
    labels: Tensor, valid: Tensor, classes: int, most: int, scores: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose up to `most` pixels of each class, as indices, without waiting for the device.

    Args:
        labels: (N,) int64 train ids. valid: (N,) bool, the pixels that may be chosen. most: K.
        scores: (N,); the highest-scored pixels are chosen, highest first. None: random pixels.

    Returns:
        indices: (C, K') int64 into N, K' = min(K, N). chosen: (C, K') bool; where False the index is padding.
    """
    n = len(labels)
    groups = torch.where(valid, labels, classes)
    if scores is None:
        # sort by class, randomly within a class; float64 leaves enough digits for the random part
        order = (groups.double() + torch.rand(n, dtype=torch.float64, device=labels.device)).argsort()
    else:
        order = scores.argsort(descending=True)
        order = order[groups[order].argsort(stable=True)]
    counts = torch.zeros(classes + 1, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(0, groups, torch.ones_like(groups))
    starts = counts.cumsum(0) - counts
    place = torch.arange(min(most, n), device=labels.device)
    chosen = place < counts[:classes, None]
    return order[(starts[:classes, None] + place).clamp(max=n - 1)], chosen
