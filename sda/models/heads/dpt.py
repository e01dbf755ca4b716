"""DPT: maps of a plain vision transformer, reassembled at four resolutions and fused from coarse to fine.

Source: Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021, with the widths of Depth Anything and UniMatch V2.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from sda.errors import SdaError
from sda.models.backbones.base import Backbone
from sda.models.heads.base import Head, conv_block, initialise_classifier, initialise_convolutions

WIDTHS = {384: 64, 768: 128}  # channels of the transformer, at most → width of the fusion; 256 for larger ones
SCALES = (4, 2, 1, 0.5)  # of the reassembled maps, relative to the grid of patches


class DPTHead(Head):
    """Logits and features on a grid four times as fine as that of the patches: stride 3.5 for patches of 14 pixels.

    The original enlarges once more, to stride 1.75; this costs four times the memory in the losses and the bank.
    """

    output_stride = 16

    def __init__(self, backbone: Backbone, classes: int, released: bool = False):
        super().__init__()
        if not backbone.patch or len(backbone.channels) != len(SCALES):
            raise SdaError(
                "network dpt needs a plain vision transformer, such as vit_small_patch14_dinov2: for this backbone choose "
                "network segformer or deeplabv3plus"
            )
        channels = backbone.channels[-1]
        width = next((width for most, width in WIDTHS.items() if channels <= most), 256)
        self.feature_channels, self.stride = width, backbone.patch / 4
        self.reassemble = nn.ModuleList(_reassemble(channels, scale, width) for scale in SCALES)
        self.fusions = nn.ModuleList(_Fusion(width) for _ in SCALES)
        self.output = conv_block(width, width)
        self.classifier = nn.Conv2d(width, classes, 1)
        initialise_convolutions(self)
        initialise_classifier(self.classifier, inputs=width)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        parts = [layer(part) for layer, part in zip(self.reassemble, maps, strict=True)]
        fused = self.fusions[-1](parts[-1], None)
        for fusion, part in zip(self.fusions[-2::-1], parts[-2::-1], strict=True):
            fused = fusion(part, fused)
        features = self.output(fused)
        return self.classifier(features), features


def _reassemble(channels: int, scale: float, width: int) -> nn.Sequential:
    """Return layers from the tokens of one block, on the grid of patches, to a map at `scale` times this grid."""
    inner = int(channels / (2 * scale))
    resize: nn.Module = nn.Identity()
    if scale > 1:
        resize = nn.ConvTranspose2d(inner, inner, kernel_size=int(scale), stride=int(scale))
    elif scale < 1:
        resize = nn.Conv2d(inner, inner, 3, stride=2, padding=1)
    return nn.Sequential(nn.Conv2d(channels, inner, 1), resize, nn.Conv2d(inner, width, 3, padding=1, bias=False))


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(*(_pre_activated(width) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _pre_activated(width: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))


class _Fusion(nn.Module):
    """Add a map to the fused coarser ones, which are enlarged to its size first."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second, self.project = _Residual(width), _Residual(width), nn.Conv2d(width, width, 1)

    def forward(self, part: Tensor, coarser: Tensor | None) -> Tensor:
        x = self.first(part)
        if coarser is not None:
            x = x + F.interpolate(coarser, size=part.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(self.second(x))
