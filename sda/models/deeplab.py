"""DeepLabv2 and DeepLabv3+: a backbone, and a head that gives logits and the features they are read from.

Sources: Chen et al., "DeepLab", TPAMI 2018 (v2); Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV
2018 (v3+). The features are those that the contrastive loss compares (Alonso et al., ICCV 2021, section 4).
"""

import contextlib
import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
from torchvision.models.resnet import Bottleneck

from sda import distributed

BLOCKS = (Bottleneck, InvertedResidual, InvertedResidualV3)
V2_RATES = (6, 12, 18, 24)
V3PLUS_RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
LOW_LEVEL_CHANNELS = 48

# PyTorch's own, for all backbones. torchvision's MobileNetV3 has 0.01: after a few hundred steps its running statistics are
# still those of the start, and a network that is right in training is useless in evaluation.
NORM_MOMENTUM = 0.1


class SegmentationNetwork(nn.Module):
    """Images (B, 3, H, W), float, normalised, H and W at least 32 → logits (B, C, h, w) and features (B, F, h, w).

    h = ceil(H / stride), w = ceil(W / stride), with Caffe's ResNets up to one more; F is `feature_channels`. Logits are not
    upsampled to the image: `grid` knows the way.

    `precision` is that of the convolutions; what comes out is float32 in any case, so losses and heads never lose digits.
    The network runs in channels-last memory format, which is faster on every device that was tried.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, precision: torch.dtype = torch.float32):
        super().__init__()
        self.precision = precision
        self.grid = backbone.grid
        self.backbone = backbone
        self.head = head
        self.feature_channels: int = head.feature_channels
        self.stride: int = head.stride
        self.frozen_norms = False
        if precision != torch.float32:
            keep_awkward_convolutions_in_float32(self)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, note_statistics: bool = True) -> tuple[Tensor, Tensor]:
        """With `note_statistics` False, training leaves the batch norms' running statistics alone."""
        if self.training:
            for norm in norms_of(self):
                norm.momentum = NORM_MOMENTUM if note_statistics else 0.0
        images = images.contiguous(memory_format=torch.channels_last)
        lower = self.precision != torch.float32
        with torch.autocast(images.device.type, self.precision) if lower else contextlib.nullcontext():
            logits, features = self.head(*self.backbone(images))
        return logits.float(), features.float()

    def train(self, mode: bool = True) -> "SegmentationNetwork":
        super().train(mode)
        if self.frozen_norms:
            for norm in norms_of(self.backbone):
                norm.eval()
        return self

    def freeze_norms(self, statistics: bool) -> None:
        """No training of the backbone's batch norms' scales and offsets; with `statistics`, their running statistics stay for
        good. The head's, which no weights were loaded into, go on learning."""
        for norm in norms_of(self.backbone):
            norm.requires_grad_(False)
        self.frozen_norms = statistics
        self.train(self.training)


def recompute_activations(network: SegmentationNetwork) -> None:
    """Keep only what enters and leaves each block of the backbone, in place, and compute the rest again backwards.

    Not for a network that is still to be copied: the copy would compute with the original's blocks.
    """
    for block in network.backbone.modules():
        if isinstance(block, BLOCKS):
            block.forward = functools.partial(
                checkpoint,
                block.forward,
                use_reentrant=False,
                context_fn=lambda block=block: (contextlib.nullcontext(), _statistics_at_rest(block)),
            )


@contextlib.contextmanager
def _statistics_at_rest(block: nn.Module) -> Iterator[None]:
    """Meanwhile, a block's norms leave their running statistics alone: they have noted this batch already."""
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
    """All batch norms in a module."""
    return (part for part in module.modules() if isinstance(part, nn.BatchNorm2d))


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose statistics are those of all processes' images, on any device (PyTorch's own needs a GPU)."""

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
    """Make the batch norms of a network `SyncedBatchNorm2d`, in place."""
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
    """Make depthwise convolutions with stride or dilation `Float32OnCPU`, in place: in bfloat16 their backward pass takes two
    to eight times as long (oneDNN in PyTorch 2.13, on a CPU with bfloat16 instructions)."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and conv.groups > 1 and (max(conv.stride) > 1 or max(conv.dilation) > 1):
            conv.__class__ = Float32OnCPU


class DeepLabV2Head(nn.Module):
    """Logits = the sum of four dilated 3x3 convolutions on the backbone's output, which is itself the features.

    All four are summed, as in DeepLabv2. (The released code of the method returns after the second: `branches` = 2.)
    """

    def __init__(self, backbone: nn.Module, classes: int, output_stride: int, branches: int = 4):
        super().__init__()
        self.feature_channels = backbone.high_channels
        self.stride = output_stride
        self.branches = nn.ModuleList(
            nn.Conv2d(self.feature_channels, classes, 3, padding=rate, dilation=rate) for rate in V2_RATES[:branches]
        )
        for branch in self.branches:
            initialise_classifier(branch, inputs=branches * 9 * self.feature_channels)

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        return sum(branch(high) for branch in self.branches), high


class DeepLabV3PlusHead(nn.Module):
    """ASPP at the output stride, then a decoder at stride 4 that joins it with the low-level features.

    `separable` (for MobileNets): half the width, depthwise-separable 3x3 convolutions, and one of them in the decoder
    instead of two full ones.
    """

    stride = 4

    def __init__(self, backbone: nn.Module, classes: int, output_stride: int, separable: bool):
        super().__init__()
        width = 128 if separable else 256
        conv = separable_block if separable else conv_block
        self.feature_channels = width
        self.grid = backbone.grid
        self.aspp = ASPP(backbone.high_channels, width, V3PLUS_RATES[output_stride], separable)
        self.low_level = conv_block(backbone.low_channels, LOW_LEVEL_CHANNELS, kernel=1)
        self.decoder = conv(width + LOW_LEVEL_CHANNELS, width)
        if not separable:
            self.decoder.extend(conv(width, width))
        self.classifier = nn.Conv2d(width, classes, 1)
        initialise_convolutions(self)
        initialise_classifier(self.classifier, inputs=width)

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        context = self.grid.enlarge(self.aspp(high), low.shape[-2:])
        features = self.decoder(torch.cat([context, self.low_level(low)], dim=1))
        return self.classifier(features), features


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (B, C, h, w) → (B, width, h, w)."""

    def __init__(self, channels: int, width: int, rates: tuple[int, ...], separable: bool):
        super().__init__()
        conv = separable_block if separable else conv_block
        self.branches = nn.ModuleList([conv_block(channels, width, kernel=1)])
        self.branches.extend(conv(channels, width, dilation=rate) for rate in rates)
        # No batch norm here: this map has one position per image, so with one image there is no variance (PyTorch refuses)
        # and with a few it is nearly noise.
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1), nn.ReLU())
        self.project = nn.Sequential(*conv_block((len(rates) + 2) * width, width, kernel=1), nn.Dropout(0.1))

    def forward(self, high: Tensor) -> Tensor:
        pooled = self.pooling(high).expand(-1, -1, *high.shape[-2:])
        return self.project(torch.cat([*(branch(high) for branch in self.branches), pooled], dim=1))


def conv_block(channels: int, width: int, kernel: int = 3, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=padding, dilation=dilation, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def separable_block(channels: int, width: int, dilation: int = 1) -> nn.Sequential:
    """3x3 convolution per channel, then 1x1 across channels, each with batch norm and ReLU."""
    return nn.Sequential(
        *conv_block(channels, channels, dilation=dilation, groups=channels), *conv_block(channels, width, kernel=1)
    )


def initialise_convolutions(module: nn.Module) -> None:
    """He's rule for every convolution in `module`, biases 0. Batch norms start as PyTorch makes them, 1 and 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise_classifier(layer: nn.Conv2d, inputs: int) -> None:
    """Start near the uniform prediction: logits about 0.1 times the features' size, where `inputs` numbers are summed.

    Then the first loss is close to log C, whatever the backbone, and the first gradients do not tear up its weights. The
    customary fixed deviation of 0.01 gives logits of several units where v2 sums 4 x 9 x 2048 numbers.
    """
    nn.init.normal_(layer.weight, std=0.1 / math.sqrt(inputs))
    nn.init.zeros_(layer.bias)
