"""The segmentation network (preprocessing, backbone, head), and operations on its batch norms."""

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sda.models.backbones.base import Backbone
from sda.models.channel_dropout import drop_channels
from sda.models.grid import Grid
from sda.models.heads.base import Head
from sda.models.preprocessing import Normalise, Preprocessing
from sda.system import distributed

# PyTorch's default, for all backbones. torchvision's MobileNetV3 has 0.01: after a few hundred steps its running statistics are
# still close to their initial values, and a network that works in training mode fails in evaluation mode.
NORM_MOMENTUM = 0.1


class SegmentationNetwork(nn.Module):
    """Images (B, 3, H, W), RGB, uint8 or float in 0..1, H and W at least 32 → logits (B, C, h, w) and features (B, F, h, w).

    The first layer normalises the images as the weights expect. h = ceil(H / stride) and w = ceil(W / stride), up to one more
    for Caffe's ResNets; F is `feature_channels`. Logits are not upsampled to the size of the image: `grid.enlarge` does that.

    `precision` is the precision of the convolutions. Logits and features are always float32, so that losses and heads keep full
    precision. The network uses the channels-last memory format, which was faster on every device tested.
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
        self.frozen_norms = self.frozen_encoder = False
        if precision != torch.float32:
            keep_awkward_convolutions_in_float32(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub requires a 4-d tensor's overload

    @property
    def preprocessing(self) -> Preprocessing:
        """How the first layer normalises images."""
        return self.normalise.preprocessing

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, images: Tensor, note_statistics: bool = True, drop_in: int = 0) -> tuple[Tensor, Tensor]:
        """Compute logits and features.

        Args:
            note_statistics: in training mode, update the batch norms' running statistics.
            drop_in: number of views of each image; apply channel dropout to them (see `drop_channels`). 0: no dropout.
        """
        if self.training:
            for norm in norms_of(self):
                norm.momentum = NORM_MOMENTUM if note_statistics else 0.0
        x = self.normalise(images).contiguous(memory_format=torch.channels_last)
        lower = self.precision != torch.float32
        with torch.autocast(x.device.type, self.precision) if lower else contextlib.nullcontext():
            maps = self.backbone(x)
            logits, features = self.head(drop_channels(maps, drop_in) if drop_in else maps)
        return logits.float(), features.float()

    def train(self, mode: bool = True) -> "SegmentationNetwork":
        super().train(mode)
        if self.frozen_encoder:
            self.backbone.eval()
        if self.frozen_norms:
            for norm in norms_of(self.backbone):
                norm.eval()
        return self

    def freeze_encoder(self) -> None:
        """Freeze all weights and statistics of the backbone; only the head is trained."""
        self.backbone.requires_grad_(False)
        self.frozen_encoder = True
        self.train(self.training)

    def freeze_norms(self, statistics: bool) -> None:
        """Freeze the scales and offsets of the backbone's batch norms and, with `statistics`, their running statistics too.

        The head's batch norms are not pretrained and stay trainable.
        """
        for norm in norms_of(self.backbone):
            norm.requires_grad_(False)
        self.frozen_norms = statistics
        self.train(self.training)


def recompute_activations(network: SegmentationNetwork) -> None:
    """Modify the backbone's blocks to store only their input and output and recompute the rest in the backward pass.

    Do not copy the network afterwards: the copy would compute with the original's blocks.
    """
    for block in network.backbone.blocks():
        block.forward = functools.partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=functools.partial(_contexts, block)
        )


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a block's forward pass and of its recomputation."""
    return contextlib.nullcontext(), _frozen_statistics(block)


@contextlib.contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Keep the running statistics of a block's batch norms unchanged, because recomputation sees each batch a second time."""
    before = []
    for norm in norms_of(block):
        assert norm.num_batches_tracked is not None
        before.append((norm, norm.momentum, norm.num_batches_tracked, norm.num_batches_tracked.clone()))
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counter, batches in before:
            norm.momentum = momentum
            counter.copy_(batches)


def norms_of(module: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """Yield all batch norms in a module."""
    return (part for part in module.modules() if isinstance(part, nn.BatchNorm2d))


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm with statistics over the images of all processes, on any device (PyTorch's own requires a GPU)."""

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        wide = x.float()
        count = distributed.all_reduce_sum(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        mean = distributed.all_reduce_sum(wide.sum(dim=(0, 2, 3))) / count
        var = distributed.all_reduce_sum((wide - mean[:, None, None]).square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = (var + self.eps).rsqrt() * self.weight
        return ((wide - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class SyncedBatchNormAct2d(SyncedBatchNorm2d):
    """The same for timm's batch norm that includes the activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def synchronise_norms(network: nn.Module) -> None:
    """Convert the batch norms of a network to `SyncedBatchNorm2d`, in place."""
    for norm in norms_of(network):
        norm.__class__ = SyncedBatchNormAct2d if hasattr(norm, "act") else SyncedBatchNorm2d


class _InFloat32OnCPU(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


@functools.cache
def in_float32_on_cpu(kind: Any) -> Any:
    """Return a kind of convolution, such as nn.Conv2d or one of timm's own, that runs in float32 on CPUs under autocast."""
    return type(f"{kind.__name__}InFloat32OnCPU", (_InFloat32OnCPU, kind), {})


def keep_awkward_convolutions_in_float32(module: nn.Module) -> None:
    """Convert depthwise convolutions with stride or dilation to `in_float32_on_cpu`, in place.

    In bfloat16 their backward pass takes two to eight times as long (oneDNN in PyTorch 2.13, on a CPU with bfloat16
    instructions).
    """
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups > 1 and (max(conv.stride) > 1 or max(conv.dilation) > 1):
            kind: Any = type(conv)
            conv.__class__ = in_float32_on_cpu(kind)
