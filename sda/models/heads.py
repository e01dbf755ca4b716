"""The contrast's small networks: projection, prediction and the per-class attention, all as one grouped MLP."""

import torch
from torch import Tensor, nn

from sda.distributed import total


class MaskedBatchNorm(nn.Module):
    """Batch normalisation of padded rows, one set of statistics per group: padding takes no part in anything.

    As `torch.nn.BatchNorm1d` on each group's valid rows. A group with fewer than two valid rows leaves its running
    statistics alone.

    Args:
        groups: G. channels: D.
        shared: every process normalises the same rows; otherwise each has its share of them.
    """

    def __init__(self, groups: int, channels: int, shared: bool = False, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.shared, self.momentum, self.eps = shared, momentum, eps
        self.weight = nn.Parameter(torch.ones(groups, 1, channels))
        self.bias = nn.Parameter(torch.zeros(groups, 1, channels))
        self.register_buffer("running_mean", torch.zeros(groups, 1, channels))
        self.register_buffer("running_var", torch.ones(groups, 1, channels))

    def forward(self, x: Tensor, valid: Tensor, note_statistics: bool = True) -> Tensor:
        """x: (G, N, D); valid: (G, N) bool. Returns (G, N, D). Without `note_statistics` the running ones are left alone."""
        if self.training:
            rows = valid.unsqueeze(2)
            add = (lambda part: part) if self.shared else total
            count = add(valid.sum(dim=1)[:, None, None])
            mean = add(torch.where(rows, x, 0.0).sum(dim=1, keepdim=True)) / count.clamp(min=1)
            var = add(torch.where(rows, x - mean, 0.0).square().sum(dim=1, keepdim=True)) / count.clamp(min=1)
            if note_statistics:
                with torch.no_grad():
                    rate = torch.where(count > 1, self.momentum, 0.0).to(x.dtype)
                    self.running_mean.lerp_(mean, rate.expand_as(mean))
                    self.running_var.lerp_(var * count / (count - 1).clamp(min=1), rate.expand_as(var))
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) * (var + self.eps).rsqrt() * self.weight + self.bias


class GroupedMLP(nn.Module):
    """G independent MLPs Linear-BN-LeakyReLU-Linear, run side by side on padded rows.

    With one group and slope 0 this is the paper's projection or prediction head; with a group per class, slope 0.2 and
    one output it is the attention of every class at once.

    Args:
        groups, inputs, hidden, outputs: sizes.
        slope: of the LeakyReLU; 0 for ReLU.
        shared: see `MaskedBatchNorm`.
    """

    def __init__(self, groups: int, inputs: int, hidden: int, outputs: int, slope: float = 0.0, shared: bool = False):
        super().__init__()
        self.weight1 = nn.Parameter(_uniform(groups, inputs, hidden, fan_in=inputs))
        self.bias1 = nn.Parameter(_uniform(groups, 1, hidden, fan_in=inputs))
        self.norm = MaskedBatchNorm(groups, hidden, shared)
        self.weight2 = nn.Parameter(_uniform(groups, hidden, outputs, fan_in=hidden))
        self.bias2 = nn.Parameter(_uniform(groups, 1, outputs, fan_in=hidden))
        self.slope = slope

    def forward(self, x: Tensor, valid: Tensor, note_statistics: bool = True) -> Tensor:
        """x: (G, N, inputs); valid: (G, N) bool. Returns (G, N, outputs); rows that are not valid are meaningless."""
        hidden = self.norm(torch.baddbmm(self.bias1, x, self.weight1), valid, note_statistics)
        hidden = nn.functional.leaky_relu(hidden, self.slope)
        return torch.baddbmm(self.bias2, hidden, self.weight2)


def _uniform(*shape: int, fan_in: int) -> Tensor:
    """torch.nn.Linear's own initial distribution."""
    return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)


def projection(inputs: int, size: int) -> GroupedMLP:
    """The head g (or q): Linear-BN-ReLU-Linear, `inputs` → `size`."""
    return GroupedMLP(1, inputs, size, size)


def attention(classes: int, size: int, shared: bool = False) -> GroupedMLP:
    """S_c for all classes: Linear-BN-LeakyReLU(0.2)-Linear(1); its sigmoid is the score."""
    return GroupedMLP(classes, size, size, 1, slope=0.2, shared=shared)
