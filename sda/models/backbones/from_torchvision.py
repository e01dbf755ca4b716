"""Encoders from torchvision: its classification networks as feature extractors of a chosen output stride.

Their parameters keep torchvision's names (``layer1.0.conv1.weight``, ``features.0.0.weight``), so that torchvision's state
dicts can be loaded.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from sda.models.backbones.base import Backbone
from sda.models.grid import Grid
from sda.models.torchvision_shim import models

RESNETS: dict[str, Callable[..., Any]] = {"resnet50": models.resnet50, "resnet101": models.resnet101}

# Name → constructor and number of blocks of its `features` to use. As in DeepLab, MobileNetV2 ends at its last bottleneck
# (320 channels, without the 1x1 convolution to 1280 channels that only the classifier needs). MobileNetV3 ends after its last
# 1x1 convolution, because before it the features have only 160 or 96 channels.
MOBILENETS: dict[str, tuple[Callable[..., Any], int]] = {
    "mobilenet_v2": (models.mobilenet_v2, 18),
    "mobilenet_v3_small": (models.mobilenet_v3_small, 13),
    "mobilenet_v3_large": (models.mobilenet_v3_large, 17),
}

_BLOCKS = (models.resnet.Bottleneck, models.mobilenetv2.InvertedResidual, models.mobilenetv3.InvertedResidual)


def _strides(output_stride: int) -> list[int]:
    return [min(stride, output_stride) for stride in (4, 8, 16, 32)]


class _FromTorchvision(Backbone):
    def blocks(self) -> Iterator[nn.Module]:
        return (module for module in self.modules() if isinstance(module, _BLOCKS))


class ResNetBackbone(_FromTorchvision):
    """ResNet up to ``layer4``; the maps are the outputs of its four layers.

    With `caffe`, it is the ResNet of the original release in Caffe, which DeepLabv2's weights need: the stride is in the first
    convolution of a block, all blocks of a dilated layer have the same dilation, and the pooling rounds sizes up.
    """

    def __init__(self, name: str, output_stride: int, caffe: bool = False):
        super().__init__()
        resnet = RESNETS[name](replace_stride_with_dilation=[False, output_stride == 8, output_stride <= 16])
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.channels, self.strides = [256, 512, 1024, 2048], _strides(output_stride)
        self.grid = Grid(corners=caffe)
        if caffe:
            self.maxpool.ceil_mode = True
            for layer in (self.layer2, self.layer3, self.layer4):
                first, second = layer[0], layer[1]
                first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
                first.conv2.dilation, first.conv2.padding = second.conv2.dilation, second.conv2.padding

    def parameter_layers(self) -> list[list[nn.Parameter]]:
        stages = [nn.ModuleList([self.conv1, self.bn1]), self.layer1, self.layer2, self.layer3, self.layer4]
        return [list(stage.parameters()) for stage in stages]

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = self.maxpool(self.relu(self.bn1(self.conv1(images)))), []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class MobileNetBackbone(_FromTorchvision):
    """MobileNet V2 or V3 without its classifier; the maps are the outputs of the last block of each resolution."""

    light = True

    def __init__(self, name: str, output_stride: int):
        super().__init__()
        constructor, blocks = MOBILENETS[name]
        features = constructor().features
        self.unused = tuple(f"features.{block}." for block in range(blocks, len(features)))
        self.features = features[:blocks]
        reduces = [any(max(m.stride) > 1 for m in block.modules() if isinstance(m, nn.Conv2d)) for block in self.features]
        self._starts = [number for number, strides in enumerate(reduces) if strides]  # first block of each resolution
        self._ends = [*(start - 1 for start in self._starts[2:]), blocks - 1]  # last block at strides 4, 8, 16 and 32
        self.channels, self.strides = [self.features[end].out_channels for end in self._ends], _strides(output_stride)
        replace_stride_with_dilation(self.features, output_stride)

    def parameter_layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the blocks of each resolution of the undilated network."""
        ends = [*self._starts[1:], len(self.features)]
        return [list(self.features[start:end].parameters()) for start, end in zip(self._starts, ends, strict=True)]

    def forward(self, images: Tensor) -> list[Tensor]:
        x, maps = images, []
        for number, block in enumerate(self.features):
            x = block(x)
            if number in self._ends:
                maps.append(x)
        return maps


def replace_stride_with_dilation(features: nn.Sequential, output_stride: int) -> None:
    """Keep a MobileNet's resolution once it has reached `output_stride`, in place: replace later strides with dilation.

    The convolution that loses its stride keeps the current dilation; the convolutions after it are dilated. On a finer grid,
    the dilated network then computes exactly what the original computes at its own positions, so pretrained weights still fit.
    This requires modules in the order in which they are applied, on a single path, as in all MobileNets.
    """
    stride, dilation = 1, 1
    for module in features.modules():
        # Squeeze-and-excitation and pointwise convolutions are 1x1 with stride 1: nothing to change.
        if not isinstance(module, nn.Conv2d) or module.kernel_size == (1, 1):
            continue
        kernel = module.kernel_size[0]
        module.dilation = (dilation, dilation)
        padding = dilation * (kernel - 1) // 2
        module.padding = (padding, padding)
        if stride < output_stride:
            stride *= module.stride[0]
        elif module.stride[0] > 1:
            dilation *= module.stride[0]
            module.stride = (1, 1)
