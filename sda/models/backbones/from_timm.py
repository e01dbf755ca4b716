"""Encoders from timm, by their names there: `convnext_tiny`, `vit_small_patch14_dinov2.lvd142m`.

timm (https://huggingface.co/docs/timm) gives the feature maps of all its networks through `forward_intermediates`. Their
parameters keep timm's names, so that timm's files can be loaded.
"""

import functools
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sda import shelf
from sda.errors import SdaError
from sda.models.backbones.base import Backbone
from sda.models.grid import Grid
from sda.models.names import TORCHVISION
from sda.models.preprocessing import IMAGENET, Preprocessing
from sda.models.torchvision_shim import import_timm

timm = import_timm()

LEVELS = 4  # number of maps
FINEST = 4  # stride of the finest map of a hierarchical encoder
LIGHT = 10_000_000  # encoders with fewer parameters have light heads


@dataclass(frozen=True)
class Layout:
    """The maps of an encoder, found by running it without data.

    Attributes:
        indices: the maps that are used, of all that timm offers.
        channels, strides: of these maps.
        plain: whether it is a plain vision transformer: all maps have the stride of a patch.
        multiple: images are padded so that their sides are multiples of this; 1: any size.
        options: options for `timm.create_model`.
        parameters: number of parameters of the encoder.
    """

    indices: list[int]
    channels: list[int]
    strides: list[int]
    plain: bool
    multiple: int
    options: dict
    parameters: int


class TimmBackbone(Backbone):
    """An encoder of timm.

    Hierarchical encoders give the last map of each stride from 4; plain vision transformers the normalised tokens after each
    quarter of their blocks. Where images must have sides that are multiples of a patch, they are padded on the right and at the
    bottom, with the mean colour. Position embeddings are interpolated to the size of the images.
    """

    def __init__(self, name: str, output_stride: int, drop_path: float | None = None):
        super().__init__()
        found = layout(name, output_stride)
        extra = {} if drop_path is None else {"drop_path_rate": drop_path}
        try:
            self.model: Any = _create(name, **found.options, **extra)
        except TypeError:
            raise SdaError(f"drop_path = {drop_path}: {name} has no stochastic depth: leave drop_path empty") from None
        self.unused = tuple(_prune(self.model, found))
        self.channels, self.strides = found.channels, found.strides
        self.grid = Grid(multiple=found.multiple)
        self.patch = found.strides[0] if found.plain else 0
        self.light = found.parameters < LIGHT
        self._indices, self._plain = found.indices, found.plain

    @property
    def body(self) -> nn.Module:
        return self.model

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.grid.multiple > 1:
            missing = [self.grid.padded(side) - side for side in images.shape[-2:]]
            images = F.pad(images, (0, missing[1], 0, missing[0]))
        return _maps(self.model, images, self._indices, self._plain)

    def parameter_layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters in the layers of timm's `group_matcher`, as timm's layer-wise decay uses them."""
        if not hasattr(self.model, "group_matcher"):
            return [list(self.model.parameters())]
        groups = timm.models.group_parameters(self.model, self.model.group_matcher(coarse=False), return_values=True)
        return [groups[number] for number in sorted(groups)]

    def without_decay(self) -> set[str]:
        return set(self.model.no_weight_decay()) if hasattr(self.model, "no_weight_decay") else set()

    def blocks(self) -> Iterator[nn.Module]:
        return _blocks(self.model)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules in the lists of a network, such as `blocks.3` and `stages.1.blocks.0`."""
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList) or hasattr(child, "blocks"):
            yield from _blocks(child)
        elif isinstance(module, nn.Sequential | nn.ModuleList) and any(True for _ in child.children()):
            yield child


def names(pattern: str) -> list[str]:
    """Return the names of timm's encoders that match a pattern with * and ?."""
    return timm.list_models(pattern)


def check_name(name: str) -> None:
    """Raise SdaError if timm has no encoder of this name."""
    if not timm.is_model(name.partition(".")[0]):
        near = shelf.nearest(name, [*timm.list_models(), *TORCHVISION])
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise SdaError(
            f"unknown backbone {name!r}: not in torchvision or timm {timm.__version__}{hint}; to find one: sda backbones PATTERN"
        )
    model, _, tag = name.partition(".")
    if tag and tag not in (tags := [each.partition(".")[2] for each in timm.list_pretrained(f"{model}.*")]):
        raise SdaError(f"unknown backbone {name!r}: timm has no weights {tag!r} for {model}; it has {', '.join(tags) or 'none'}")


def pretrained_cfg(name: str) -> dict:
    """Return timm's description of the default weights of an encoder, or of those that its name has after a dot."""
    cfg = timm.models.get_pretrained_cfg(name)
    return cfg.to_dict() if cfg is not None else {}


def preprocessing_of(cfg: dict) -> Preprocessing:
    """Return the preprocessing that the weights of an encoder expect, from timm's description of them."""
    mean, std = cfg.get("mean") or IMAGENET.mean, cfg.get("std") or IMAGENET.std
    return Preprocessing.from_dict({"mean": mean, "std": std, "order": "RGB", "maximum": 1.0})


def whole_encoder(name: str) -> nn.Module:
    """Return an encoder with all its layers, whose names and shapes pretrained files have."""
    return _flexible(name, 0)[1]


def converted(state: dict[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a file under timm's names, such as those of DINOv2's own files.

    timm has a function for each family of encoders, which it does not offer by a public name.
    """
    convert = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", None)
    try:
        return dict(convert(dict(state), encoder)) if convert else state
    except Exception:  # a file of another network, which the report of the loaded tensors describes
        return state


@functools.cache
def layout(name: str, output_stride: int = 0) -> Layout:
    """Find the maps of an encoder.

    Args:
        output_stride: stride of the last map, if the encoder offers a choice; 0: its own.

    Raises:
        SdaError: no such encoder, or it only takes images of one size.
    """
    check_name(name)
    with torch.device("meta"), torch.no_grad():
        options, model = _flexible(name, output_stride)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        for multiple in (1, _patch(model), 32, 64):
            sizes = _sizes(multiple)
            try:
                found = [[map.shape[1:] for map in _maps(model, torch.zeros(1, 3, *size), None, False)] for size in sizes]
            except Exception:  # timm asserts, or its tensors do not fit
                continue
            strides = [round(sizes[0][0] / shape[1]) for shape in found[0]]
            if all(
                shape[1:] == tuple(-(-side // stride) for side in size)
                for size, shapes in zip(sizes, found, strict=True)
                for shape, stride in zip(shapes, strides, strict=True)
            ):
                return _choose([shape[0] for shape in found[0]], strides, multiple, options, parameters)
    raise SdaError(
        f"backbone {name} cannot be used: timm gives no maps of it for images of any size; to find another: sda backbones PATTERN"
    )


def _sizes(multiple: int) -> list[tuple[int, int]]:
    return [(256, 384), (131, 197)] if multiple == 1 else [(8 * multiple, 12 * multiple), (5 * multiple, 7 * multiple)]


def _flexible(name: str, output_stride: int) -> tuple[dict, Any]:
    """Return the options of `timm.create_model` for images of any size and, if possible, the output stride; and the model."""
    tried: list[dict] = [{"dynamic_img_size": True}, *([{"output_stride": output_stride}] if output_stride else []), {}]
    for options in tried:
        try:
            return options, _create(name, **options)
        except (TypeError, AssertionError, NotImplementedError, AttributeError):
            if not options:
                raise
    raise AssertionError("unreachable")


def _create(name: str, **options) -> Any:  # a module with timm's methods
    with warnings.catch_warnings(action="ignore"):
        return timm.create_model(name, pretrained=False, num_classes=0, **options)


def _patch(model: nn.Module) -> int:
    size = getattr(getattr(model, "patch_embed", None), "patch_size", 32)
    return size[0] if isinstance(size, tuple | list) else int(size)


def _maps(model: Any, images: Tensor, indices: list[int] | None, norm: bool) -> list[Tensor]:
    return model.forward_intermediates(images, indices=indices, norm=norm, output_fmt="NCHW", intermediates_only=True)


def _choose(channels: list[int], strides: list[int], multiple: int, options: dict, parameters: int) -> Layout:
    plain = len(set(strides)) == 1
    if plain:
        levels = min(LEVELS, len(strides))
        indices = [round(len(strides) * (level + 1) / levels) - 1 for level in range(levels)]
    else:
        indices = [index for index, stride in enumerate(strides) if stride >= FINEST][-LEVELS:]
    chosen = [channels[index] for index in indices], [strides[index] for index in indices]
    return Layout(indices, *chosen, plain, multiple, options, parameters)


def _prune(model: Any, found: Layout) -> list[str]:
    """Remove what is after the last map, and return the names of the parameters and buffers that were there."""
    before = model.state_dict().keys()
    model.prune_intermediate_layers(found.indices, prune_norm=not found.plain, prune_head=True)
    return sorted(before - model.state_dict().keys())
