"""`sda backbones`: the encoders that fit a pattern, with what one chooses by."""

import contextlib
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sda.errors import SdaError
from sda.models.backbones import from_timm
from sda.models.backbones.by_name import BUILDERS, build_backbone
from sda.models.weights import hub, packages
from sda.models.weights.read import DOWNLOADS
from sda.system.console import Count, ignore_count

# Shown without a pattern: one or two sizes of the families that are used for segmentation.
USUAL = (
    *("tf_efficientnet_lite0", "tf_efficientnet_lite2", "mobilenetv4_conv_medium", "efficientnet_b0", "resnet50d"),
    *("convnext_atto", "convnext_tiny", "convnext_base", "pvt_v2_b0", "pvt_v2_b2", "swin_tiny_patch4_window7_224"),
    *("hieradet_small", "vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_base_patch14_dinov2"),
    *("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "vit_base_patch16_dinov3", "eva02_small_patch14_224"),
)
MOST = 60  # more encoders are listed by name only, because each takes up to a second to look at


@dataclass(frozen=True)
class Entry:
    """An encoder.

    Attributes:
        origin: torchvision or timm. parameters: their number. strides: of its maps, at output stride 16 if it has a choice.
        choice: whether the output stride can be chosen. patch: patch size of a plain vision transformer, else 0.
        weights: where its default weights are: "installed" (a package), "cached" (an earlier download), "download" or "none".
    """

    name: str
    origin: str
    parameters: int
    strides: list[int]
    choice: bool
    patch: int
    weights: str


def matching(pattern: str) -> list[str]:
    """Return the names that match a pattern, torchvision's first. A pattern without wildcards matches anywhere in a name.

    Raises:
        SdaError: no name matches.
    """
    if not pattern:
        return [*BUILDERS, *USUAL]
    wild = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    found = [*fnmatch.filter(BUILDERS, wild), *(name for name in from_timm.names(wild) if name not in BUILDERS)]
    if not found:
        raise SdaError(f"no encoder matches {pattern!r}: patterns may have * and ?, such as vit_*dinov2")
    return found


def entries(names: list[str], progress: Count = ignore_count) -> Iterator[Entry]:
    """Yield the encoders among `names` that can be used with images of any size."""
    for number, name in enumerate(names, 1):
        with contextlib.suppress(SdaError):
            yield _entry(name)
        progress("encoders", number, len(names))


def _entry(name: str) -> Entry:
    if name in BUILDERS:
        with torch.device("meta"):
            body = build_backbone(name, 16)
        cached = name in DOWNLOADS["imagenet"] and hub.in_torch_cache(DOWNLOADS["imagenet"][name].url).is_file()
        weights = ("cached" if cached else "download") if name in DOWNLOADS["imagenet"] else "none"
        count = sum(parameter.numel() for parameter in body.parameters())
        return Entry(name, "torchvision", count, body.strides, True, 0, weights)
    layout = from_timm.layout(name, 16)
    choice = "output_stride" in layout.options
    return Entry(
        name, "timm", layout.parameters, layout.strides, choice, layout.strides[0] if layout.plain else 0, where_weights(name)
    )


def where_weights(name: str) -> str:
    """Return where the default weights of an encoder of timm are: see `Entry.weights`."""
    if packages.file_of(name):
        return "installed"
    published = hub.Published.of(from_timm.pretrained_cfg(name))
    return ("cached" if published.cached else "download") if published else "none"
