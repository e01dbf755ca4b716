"""Build backbones by name: torchvision's names first, then timm's."""

from collections.abc import Callable
from functools import partial

from sda.errors import SdaError
from sda.models.backbones.base import Backbone
from sda.models.backbones.from_torchvision import MOBILENETS, RESNETS, MobileNetBackbone, ResNetBackbone

OUTPUT_STRIDES = (8, 16, 32)

# Name → builder, called with the output stride. All other names are timm's.
BUILDERS: dict[str, Callable[..., Backbone]] = {
    **{name: partial(ResNetBackbone, name) for name in RESNETS},
    **{name: partial(MobileNetBackbone, name) for name in MOBILENETS},
}


def is_from_timm(name: str) -> bool:
    """Return whether a backbone is looked up in timm. A name with a tag, such as `resnet50.a1_in1k`, always is."""
    return name not in BUILDERS


def patch_of(name: str) -> int:
    """Return the patch size of a plain vision transformer, in pixels; 0 for other backbones. Raise SdaError for unknown names."""
    if not is_from_timm(name):
        return 0
    from sda.models.backbones.from_timm import layout  # timm takes a second to import

    found = layout(name)
    return found.strides[0] if found.plain else 0


def build_backbone(name: str, output_stride: int, caffe: bool = False, drop_path: float | None = None) -> Backbone:
    """Build the backbone `name` with random weights.

    Args:
        output_stride: 8, 16 or 32. Encoders of timm without a choice have their own.
        caffe: build the ResNet of the original release in Caffe.
        drop_path: rate of stochastic depth, 0 to 1, of an encoder of timm; None: timm's default.

    Raises:
        SdaError: unknown name, another output stride, or an option that the encoder does not have.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise SdaError(f"output stride {output_stride!r}: expected 8, 16 or 32, or 0 for the network's default")
    if caffe and name not in RESNETS:
        raise SdaError(f"weights in Caffe format need backbone {' or '.join(RESNETS)}, found {name}")
    if is_from_timm(name):
        from sda.models.backbones.from_timm import TimmBackbone  # timm takes a second to import

        return TimmBackbone(name, output_stride, drop_path)
    if drop_path:
        raise SdaError(f"drop_path = {drop_path}: {name} has no stochastic depth: leave drop_path empty")
    return BUILDERS[name](output_stride, **({"caffe": True} if caffe else {}))
