"""Curriculum class balancing: class weights from running frequencies of the classes in labels and pseudo-labels."""

import torch
from torch import Tensor, nn

from sda.labels import IGNORE
from sda.methods.parts.losses import class_weights
from sda.system.distributed import all_reduce_sum


class ClassBalance(nn.Module):
    """Tracks f_c, the running share of class c in the labels so far, and computes α_c = sqrt(median(f) / f_c).

    The running mean is a plain mean at first and an exponential moving average later, so that it follows the pseudo-labels
    slowly: a rare class can be absent for hundreds of steps without its weight growing out of bounds.

    Args:
        classes: C.
        active: False gives weights of 1 (the paper's VOC setting).
        momentum: momentum of the moving average.
    """

    frequency: Tensor
    updates: Tensor

    def __init__(self, classes: int, active: bool, momentum: float = 0.999):
        super().__init__()
        self.active, self.momentum = active, momentum
        self.register_buffer("frequency", torch.zeros(classes))
        self.register_buffer("updates", torch.zeros(()))

    def start(self, frequency: Tensor) -> None:
        """Start from known class frequencies (C,) instead of those of the first batch."""
        self.frequency.copy_(frequency / frequency.sum().clamp(min=1e-12))
        self.updates.fill_(1 / (1 - self.momentum))

    @torch.no_grad()
    def forward(self, *labels: Tensor) -> Tensor:
        """Update the frequencies with label maps (any shapes, int64, 255 = ignored) and return the class weights (C,)."""
        if self.active:
            classes = len(self.frequency)
            counts = torch.zeros(classes + 1, device=self.frequency.device)
            for label in labels:
                flat = torch.where(label == IGNORE, classes, label).flatten()
                counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))
            counts = all_reduce_sum(counts)
            share = counts[:classes] / counts[:classes].sum().clamp(min=1)
            keep = torch.clamp(1 - 1 / (self.updates + 1), max=self.momentum)
            self.frequency.mul_(keep).add_(share * (1 - keep))
            self.updates.add_(1)
        return class_weights(self.frequency) if self.active else torch.ones_like(self.frequency)
