"""torchvision's classification networks as feature extractors of a chosen output stride.

A backbone maps images (B, 3, H, W) to two maps, ``low`` at stride 4 and ``high`` at the output stride. Its parameters keep
torchvision's own names (``layer1.0.conv1.weight``, ``features.0.0.weight``), so that a torchvision state dict fits.
"""

from torch import Tensor, nn

from sda.errors import SdaError
from sda.models.grid import Grid
from sda.models.torchvision_shim import models

RESNETS = {"resnet50": models.resnet50, "resnet101": models.resnet101}

# name: constructor, blocks of `features` up to stride 4 and their channels, blocks used and their channels.
# As in DeepLab, MobileNetV2 ends at its last bottleneck (320 channels, without the 1x1 convolution to 1280 that serves the
# classifier), and MobileNetV3 after its last 1x1 convolution, before which its features have only 160 or 96 channels.
MOBILENETS = {
    "mobilenet_v2": (models.mobilenet_v2, 4, 24, 18, 320),
    "mobilenet_v3_small": (models.mobilenet_v3_small, 2, 16, 13, 576),
    "mobilenet_v3_large": (models.mobilenet_v3_large, 4, 24, 17, 960),
}

# The blocks between which activations may be computed again (see `recompute_activations`).
BLOCKS = (models.resnet.Bottleneck, models.mobilenetv2.InvertedResidual, models.mobilenetv3.InvertedResidual)

BACKBONES = (*RESNETS, *MOBILENETS)
OUTPUT_STRIDES = (8, 16)


class ResNetBackbone(nn.Module):
    """ResNet up to ``layer4``; ``low`` is the output of ``layer1``.

    With `caffe`, that of the original release, for which DeepLabv2's weights are: a block strides in its first convolution,
    all blocks of a dilated layer dilate alike, and the pooling rounds up.
    """

    low_channels = 256
    high_channels = 2048
    unused = ()

    def __init__(self, name: str, output_stride: int, caffe: bool = False):
        super().__init__()
        resnet = RESNETS[name](replace_stride_with_dilation=[False, output_stride == 8, True])
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4
        self.grid = Grid(corners=caffe)
        if caffe:
            self.maxpool.ceil_mode = True
            for layer in (self.layer2, self.layer3, self.layer4):
                first, second = layer[0], layer[1]
                first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
                first.conv2.dilation, first.conv2.padding = second.conv2.dilation, second.conv2.padding

    def stages(self) -> list[nn.Module]:
        """The parts of one resolution or less each, from the image on."""
        return [nn.ModuleList([self.conv1, self.bn1]), self.layer1, self.layer2, self.layer3, self.layer4]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        return low, self.layer4(self.layer3(self.layer2(low)))


class MobileNetBackbone(nn.Module):
    """MobileNet V2 or V3 without its classifier; ``low`` is the last block at stride 4."""

    grid = Grid()

    def __init__(self, name: str, output_stride: int):
        super().__init__()
        constructor, self.low_blocks, self.low_channels, blocks, self.high_channels = MOBILENETS[name]
        features = constructor().features
        self.unused = tuple(f"features.{block}." for block in range(blocks, len(features)))
        self.features = features[:blocks]
        self._strides = [any(max(m.stride) > 1 for m in block.modules() if isinstance(m, nn.Conv2d)) for block in self.features]
        replace_stride_with_dilation(self.features, output_stride)

    def stages(self) -> list[nn.Module]:
        """The parts of one resolution each (that of the network without dilation), from the image on."""
        stages = []
        for block, strides in zip(self.features, self._strides, strict=True):
            if strides:
                stages.append([])
            stages[-1].append(block)
        return [nn.ModuleList(stage) for stage in stages]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        high = images
        for number, block in enumerate(self.features, start=1):
            high = block(high)
            if number == self.low_blocks:
                low = high
        return low, high


def replace_stride_with_dilation(features: nn.Sequential, output_stride: int) -> None:
    """Keep a MobileNet's resolution from `output_stride` on, in place: later strides become dilation.

    The convolution that loses its stride keeps the dilation before it; those after it dilate. Then the dilated network
    computes, on a finer grid, exactly what the original computes at its own positions, so pretrained weights still fit.
    Relies on the modules being in the order in which they are applied, with one stride path, as in all MobileNets.
    """
    stride, dilation = 1, 1
    for module in features.modules():
        # Squeeze-and-excitation and pointwise convolutions are 1x1 with stride 1: nothing to change.
        if not isinstance(module, nn.Conv2d) or module.kernel_size == (1, 1):
            continue
        kernel = module.kernel_size[0]
        module.dilation = (dilation, dilation)
        module.padding = (dilation * (kernel - 1) // 2,) * 2
        if stride < output_stride:
            stride *= module.stride[0]
        elif module.stride[0] > 1:
            dilation *= module.stride[0]
            module.stride = (1, 1)


def build_backbone(name: str, output_stride: int, caffe: bool = False) -> ResNetBackbone | MobileNetBackbone:
    """The backbone called `name`, randomly initialised by torchvision's own rule.

    Raises SdaError for an unknown name, an output stride other than 8 and 16, and `caffe` for a MobileNet.
    """
    if name not in BACKBONES:
        raise SdaError(f"unknown backbone {name!r}: expected one of {', '.join(BACKBONES)}")
    if output_stride not in OUTPUT_STRIDES:
        raise SdaError(f"output stride {output_stride!r}: expected 8 or 16, or 0 for the network's own")
    if name in RESNETS:
        return ResNetBackbone(name, output_stride, caffe)
    if caffe:
        raise SdaError(f"weights of the Caffe format: expected resnet50 or resnet101, found {name}")
    return MobileNetBackbone(name, output_stride)
