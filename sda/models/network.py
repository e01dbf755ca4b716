"""The network: preprocessing, a backbone, and a head on its maps; and operations on its batch norms."""

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sda.models.backbones import Backbone
from sda.models.grid import Grid
from sda.models.heads import Head
from sda.models.preprocessing import Normalise, Preprocessing
from sda.system import distributed

# PyTorch's own, for all backbones. torchvision's MobileNetV3 has 0.01: after a few hundred steps its running statistics are
# still those of the start, and a network that is right in training is useless in evaluation.
NORM_MOMENTUM = 0.1


class SegmentationNetwork(nn.Module):
    """Images (B, 3, H, W), RGB, uint8 or float in 0..1, H and W at least 32 → logits (B, C, h, w) and features (B, F, h, w).

    The first layer normalises the images as the weights expect. h = ceil(H / stride), w = ceil(W / stride), with Caffe's ResNets
    up to one more; F is `feature_channels`. Logits are not upsampled to the size of the image: `grid.enlarge` does that.

    `precision` is that of the convolutions; logits and features are float32 in any case, so losses and heads never lose digits.
    The network runs in channels-last memory format, which is faster on every device that was tried.
    """

    grid: Grid

    def __init__(self, preprocessing: Preprocessing, backbone: Backbone, head: Head, precision: torch.dtype = torch.float32):
        super().__init__()
        self.precision = precision
        self.grid = backbone.grid
        self.normalise = Normalise(preprocessing)
        self.backbone = backbone
        self.head = head
        self.feature_channels = head.feature_channels
        self.stride = head.stride
        self.frozen_norms = False
        if precision != torch.float32:
            keep_awkward_convolutions_in_float32(self)
        self.to(memory_format=torch.channels_last)

    @property
    def preprocessing(self) -> Preprocessing:
        """What its weights expect of images."""
        return self.normalise.preprocessing

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, images: Tensor, note_statistics: bool = True) -> tuple[Tensor, Tensor]:
        """Logits and features. With `note_statistics` False, training leaves the batch norms' running statistics alone."""
        if self.training:
            for norm in norms_of(self):
                norm.momentum = NORM_MOMENTUM if note_statistics else 0.0
        x = self.normalise(images).contiguous(memory_format=torch.channels_last)
        lower = self.precision != torch.float32
        with torch.autocast(x.device.type, self.precision) if lower else contextlib.nullcontext():
            logits, features = self.head(self.backbone(x))
        return logits.float(), features.float()

    def train(self, mode: bool = True) -> "SegmentationNetwork":
        super().train(mode)
        if self.frozen_norms:
            for norm in norms_of(self.backbone):
                norm.eval()
        return self

    def freeze_norms(self, statistics: bool) -> None:
        """Stop training the scales and offsets of the backbone's batch norms; with `statistics`, freeze their running statistics
        too. The head's norms, which no weights were loaded into, keep learning."""
        for norm in norms_of(self.backbone):
            norm.requires_grad_(False)
        self.frozen_norms = statistics
        self.train(self.training)


def recompute_activations(network: SegmentationNetwork) -> None:
    """Keep only the input and output of each block of the backbone, in place, and recompute the rest in the backward pass.

    Do not copy the network afterwards: the copy would compute with the original's blocks.
    """
    for block in network.backbone.blocks():
        block.forward = functools.partial(  # type: ignore[method-assign]
            checkpoint,
            block.forward,
            use_reentrant=False,
            context_fn=lambda block=block: (contextlib.nullcontext(), _frozen_statistics(block)),
        )


@contextlib.contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Inside, the norms of a block do not update their running statistics: they have seen this batch already."""
    norms = list(norms_of(block))
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)


def norms_of(module: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """Yield all batch norms in a module."""
    return (part for part in module.modules() if isinstance(part, nn.BatchNorm2d))


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with statistics over the images of all processes, on any device (PyTorch's own needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.size() == 1:
            return super().forward(x)
        wide = x.float()
        count = distributed.total(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        mean = distributed.total(wide.sum(dim=(0, 2, 3))) / count
        var = distributed.total((wide - mean[:, None, None]).square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = (var + self.eps).rsqrt() * self.weight
        return ((wide - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise_norms(network: nn.Module) -> None:
    """Turn the batch norms of a network into `SyncedBatchNorm2d`, in place."""
    for norm in norms_of(network):
        norm.__class__ = SyncedBatchNorm2d


class Float32OnCPU(nn.Conv2d):
    """A convolution that autocast leaves in float32 on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def keep_awkward_convolutions_in_float32(module: nn.Module) -> None:
    """Turn depthwise convolutions with stride or dilation into `Float32OnCPU`, in place: in bfloat16 their backward pass takes
    two to eight times as long (oneDNN in PyTorch 2.13, on a CPU with bfloat16 instructions)."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups > 1 and (max(conv.stride) > 1 or max(conv.dilation) > 1):
            conv.__class__ = Float32OnCPU
