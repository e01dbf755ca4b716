"""The MLPs of the contrastive loss: projection, prediction and per-class attention, all as one grouped MLP."""

import torch
from torch import Tensor, nn

from sda.system.distributed import all_reduce_sum

TILE = 128  # rows per tile in `GroupedMLP.of_rows`


class MaskedBatchNorm(nn.Module):
    """Batch normalisation of padded rows with separate statistics per group.

    Equals `torch.nn.BatchNorm1d` on each group's valid rows. A group with fewer than two valid rows does not update its
    running statistics.

    Args:
        groups: G. channels: D.
        shared: all processes normalise the same rows; otherwise each process has its share of the rows.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, groups: int, channels: int, shared: bool = False, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.shared, self.momentum, self.eps = shared, momentum, eps
        self.weight = nn.Parameter(torch.ones(groups, 1, channels))
        self.bias = nn.Parameter(torch.zeros(groups, 1, channels))
        self.register_buffer("running_mean", torch.zeros(groups, 1, channels))
        self.register_buffer("running_var", torch.ones(groups, 1, channels))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Normalise rows x (G, N, D) of which `valid` (G, N) marks the real ones: (G, N, D)."""
        if self.training:
            rows = valid.unsqueeze(2)
            add = (lambda part: part) if self.shared else all_reduce_sum
            count = add(valid.sum(dim=1)[:, None, None])
            mean = add(torch.where(rows, x, 0.0).sum(dim=1, keepdim=True)) / count.clamp(min=1)
            var = add(torch.where(rows, x - mean, 0.0).square().sum(dim=1, keepdim=True)) / count.clamp(min=1)
            with torch.no_grad():
                rate = torch.where(count > 1, self.momentum, 0.0).to(x.dtype)
                self.running_mean.lerp_(mean, rate.expand_as(mean))
                self.running_var.lerp_(var * count / (count - 1).clamp(min=1), rate.expand_as(var))
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) * (var + self.eps).rsqrt() * self.weight + self.bias


class GroupedMLP(nn.Module):
    """G independent MLPs, Linear-BN-LeakyReLU-Linear, computed in parallel on padded rows.

    With one group and slope 0 this is the paper's projection or prediction head. With one group per class, slope 0.2 and one
    output it is the attention of all classes.

    Args:
        groups: G. inputs, hidden, outputs: layer sizes.
        slope: negative slope of the LeakyReLU; 0 makes it a ReLU.
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

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Apply the MLPs to rows x (G, N, inputs) with mask `valid` (G, N): (G, N, outputs), undefined for invalid rows."""
        hidden = self.norm(torch.baddbmm(self.bias1, x, self.weight1), valid)
        hidden = nn.functional.leaky_relu(hidden, self.slope)
        return torch.baddbmm(self.bias2, hidden, self.weight2)

    @torch.no_grad()
    def of_rows(self, x: Tensor, group: Tensor) -> Tensor:
        """Apply the MLP of its group to each row.

        Like `forward` in training mode, this normalises by the statistics of the given rows, but it does not update the running
        statistics, and it needs no padding to the largest group.

        Args:
            x: (N, inputs). group: (N,) int64 in 0..G, G for rows without a group.

        Returns:
            (N, outputs); the values of rows without a group are undefined.
        """
        groups, n = len(self.weight1), len(x)
        index, valid, mine = _tiles(group, groups)

        def mean_by_group(values: Tensor) -> Tensor:
            sums = values.new_zeros(groups, values.shape[2])
            sums.index_add_(0, mine, torch.where(valid.unsqueeze(2), values, 0.0).sum(dim=1))
            return (sums if self.norm.shared else all_reduce_sum(sums)) / count

        count = torch.zeros(groups, 1, device=x.device).index_add_(0, mine, valid.sum(dim=1, keepdim=True).float())
        count = (count if self.norm.shared else all_reduce_sum(count)).clamp(min=1)
        hidden = torch.baddbmm(self.bias1[mine], x[index], self.weight1[mine])
        hidden = hidden - mean_by_group(hidden)[mine].unsqueeze(1)
        scale = (mean_by_group(hidden.square()) + self.norm.eps).rsqrt()
        hidden = hidden * scale[mine].unsqueeze(1) * self.norm.weight[mine] + self.norm.bias[mine]
        found = torch.baddbmm(self.bias2[mine], nn.functional.leaky_relu(hidden, self.slope), self.weight2[mine])
        out = x.new_zeros(n + 1, found.shape[2])
        out[torch.where(valid, index, n)] = found  # padding goes to an extra last row
        return out[:n]


def _tiles(group: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sort rows by group into tiles of one group each. The number of tiles depends only on the number of rows and groups.

    Returns:
        index: (T, TILE) row indices. valid: (T, TILE) bool; where False the index is padding. mine: (T,) group of each tile.
    """
    n = len(group)
    order = group.argsort(stable=True)
    counts = torch.zeros(groups + 1, dtype=torch.int64, device=group.device).scatter_add_(0, group, torch.ones_like(group))
    counts = counts[:groups]
    ends = (counts + TILE - 1).div(TILE, rounding_mode="floor").cumsum(0)  # number of tiles up to and including each group
    tile = torch.arange(n // TILE + groups, device=group.device)
    mine = torch.searchsorted(ends, tile, right=True)
    used, mine = mine < groups, mine.clamp(max=groups - 1)
    before = torch.where(mine > 0, ends[mine - 1], 0)
    place = (tile - before).unsqueeze(1) * TILE + torch.arange(TILE, device=group.device)  # within the group
    starts = counts.cumsum(0) - counts
    valid = used.unsqueeze(1) & (place < counts[mine].unsqueeze(1))
    return order[(starts[mine].unsqueeze(1) + place).clamp(max=n - 1)], valid, mine


def _uniform(*shape: int, fan_in: int) -> Tensor:
    """Return a tensor with the initial distribution of torch.nn.Linear."""
    return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)


def projection(inputs: int, size: int) -> GroupedMLP:
    """Build the head g or q: Linear-BN-ReLU-Linear, `inputs` → `size`."""
    return GroupedMLP(1, inputs, size, size)


def attention(classes: int, size: int, shared: bool = False) -> GroupedMLP:
    """Build S_c for all classes: Linear-BN-LeakyReLU(0.2)-Linear(1); the sigmoid of its output is the score."""
    return GroupedMLP(classes, size, size, 1, slope=0.2, shared=shared)
