"""The contract of the segmentation heads, and the layers that they share."""

import math

from torch import Tensor, nn


class Head(nn.Module):
    """Base class of the heads: maps of a backbone, fine to coarse → logits (B, C, h, w) and features (B, F, h, w).

    The constructor takes the backbone, the number of classes, and `released`: whether to reproduce the authors' released code.

    Attributes:
        output_stride: default output stride of the backbone. feature_channels: F. stride: stride of logits and features.
        classifiers: the names of the tensors with a row per class begin with this.
    """

    classifiers = "classifier."

    output_stride: int
    feature_channels: int
    stride: float

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def conv_block(channels: int, width: int, kernel: int = 3, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a size-preserving convolution, batch norm and ReLU."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, padding=padding, dilation=dilation, groups=groups, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    )


def separable_block(channels: int, width: int, dilation: int = 1) -> nn.Sequential:
    """Return a depthwise 3x3 and a pointwise 1x1 convolution, each with batch norm and ReLU."""
    return nn.Sequential(
        *conv_block(channels, channels, dilation=dilation, groups=channels), *conv_block(channels, width, kernel=1)
    )


def initialise_convolutions(module: nn.Module) -> None:
    """Initialise every convolution in `module`: He initialisation for weights, 0 for biases. Leave batch norms unchanged."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise_classifier(layer: nn.Conv2d, inputs: int) -> None:
    """Initialise a classifier to predict nearly uniformly: its logits are about 0.1 times as large as its features.

    The first loss is then close to log C for every backbone, and the first gradients do not destroy pretrained weights. The
    usual fixed standard deviation of 0.01 would give logits of several units in v2, which sums 4 x 9 x 2048 products.

    Args:
        inputs: number of products that are summed in one logit.
    """
    nn.init.normal_(layer.weight, std=0.1 / math.sqrt(inputs))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
