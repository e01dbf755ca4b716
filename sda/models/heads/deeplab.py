"""Segmentation heads, DeepLabv2 and DeepLabv3+: from a backbone's feature maps to logits, and the features before the classifier.

Sources: Chen et al., "DeepLab", TPAMI 2018 (v2); Chen et al., "Encoder-Decoder with Atrous Separable Convolution", ECCV
2018 (v3+). The contrastive loss compares the returned features (Alonso et al., ICCV 2021, section 4).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sda.errors import SdaError
from sda.models.backbones.base import Backbone
from sda.models.heads.base import Head, conv_block, initialise_classifier, initialise_convolutions, separable_block

V2_RATES = (6, 12, 18, 24)
V3PLUS_RATES = {32: (3, 6, 9), 16: (6, 12, 18), 8: (12, 24, 36)}  # output stride → rates
LOW_LEVEL_CHANNELS = 48


class DeepLabV2Head(Head):
    """The logits are the sum of four dilated 3x3 convolutions of the backbone's last map; this map is also the features.

    `released` sums only the first two, as the method's released code does.
    """

    output_stride = 8
    classifiers = "branches."

    def __init__(self, backbone: Backbone, classes: int, released: bool = False):
        super().__init__()
        branches = 2 if released else 4
        self.feature_channels = backbone.channels[-1]
        self.stride = backbone.strides[-1]
        convolutions = [nn.Conv2d(self.feature_channels, classes, 3, padding=rate, dilation=rate) for rate in V2_RATES[:branches]]
        self.branches = nn.ModuleList(convolutions)
        for convolution in convolutions:
            initialise_classifier(convolution, inputs=branches * 9 * self.feature_channels)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        features = maps[-1]
        return sum(branch(features) for branch in self.branches), features


class DeepLabV3PlusHead(Head):
    """ASPP at the output stride, then a decoder at stride 4 that combines its output with the backbone's first map.

    For a light backbone (a MobileNet): half the width, depthwise-separable 3x3 convolutions, and one convolution in the decoder
    instead of two.
    """

    output_stride = 16

    def __init__(self, backbone: Backbone, classes: int, released: bool = False):
        super().__init__()
        if backbone.strides[0] != 4 or backbone.strides[-1] not in V3PLUS_RATES:
            strides = ", ".join(map(str, dict.fromkeys(backbone.strides)))
            raise SdaError(
                f"network deeplabv3plus needs a backbone whose maps have strides from 4 to 8, 16 or 32, but those of this one "
                f"have {strides}: choose another network (linear or dpt for vision transformers, segformer or deeplabv2 for all)"
            )
        separable = backbone.light
        width = 128 if separable else 256
        conv: Callable[..., nn.Sequential] = separable_block if separable else conv_block
        self.feature_channels, self.stride = width, backbone.strides[0]
        self.grid = backbone.grid
        self.aspp = ASPP(backbone.channels[-1], width, V3PLUS_RATES[backbone.strides[-1]], separable)
        self.low_level = conv_block(backbone.channels[0], LOW_LEVEL_CHANNELS, kernel=1)
        self.decoder = conv(width + LOW_LEVEL_CHANNELS, width)
        if not separable:
            self.decoder.extend(conv(width, width))
        self.classifier = nn.Conv2d(width, classes, 1)
        initialise_convolutions(self)
        initialise_classifier(self.classifier, inputs=width)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        low, high = maps[0], maps[-1]
        context = self.grid.align(self.aspp(high), low.shape[-2:])
        features = self.decoder(torch.cat([context, self.low_level(low)], dim=1))
        return self.classifier(features), features


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (B, C, h, w) → (B, width, h, w)."""

    def __init__(self, channels: int, width: int, rates: tuple[int, ...], separable: bool):
        super().__init__()
        conv: Callable[..., nn.Sequential] = separable_block if separable else conv_block
        self.branches = nn.ModuleList([conv_block(channels, width, kernel=1)])
        self.branches.extend(conv(channels, width, dilation=rate) for rate in rates)
        # No batch norm here: this map has one position per image. With one image there is no variance (PyTorch raises an
        # error), and with a few the statistics are mostly noise.
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1), nn.ReLU())
        self.project = nn.Sequential(*conv_block((len(rates) + 2) * width, width, kernel=1), nn.Dropout(0.1))

    def forward(self, high: Tensor) -> Tensor:
        pooled = self.pooling(high).expand(-1, -1, *high.shape[-2:])
        return self.project(torch.cat([*(branch(high) for branch in self.branches), pooled], dim=1))
