"""Replace what PyTorch cannot export, or not for images of any size, by layers that compute the same."""

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sda.models.network import SegmentationNetwork


def exportable(network: SegmentationNetwork) -> SegmentationNetwork:
    """Replace layers of a network, in place, and return it."""
    pool = getattr(network.backbone, "maxpool", None)
    if pool is not None and pool.ceil_mode:
        network.backbone.maxpool = _plain_pooling(pool)
    for module in [*network.modules()]:
        child: Any
        for name, child in module.named_children():
            if type(child).__name__.startswith("Conv2dSame"):
                setattr(module, name, SamePadding(child))
    return network


def branches_on_size(network: nn.Module) -> bool:
    """Whether a network computes differently for each size, such as Swin's masks of shifted windows.

    PyTorch cannot export it for all sizes, and takes many minutes to find that out.
    """
    return any(type(module).__name__.startswith("SwinTransformer") for module in network.modules())


def _plain_pooling(pool: nn.MaxPool2d) -> nn.Sequential:
    """Return zero padding and plain max pooling for Caffe's ceil_mode, which torch.export does not support.

    The result is the same: the input of the pooling has passed a ReLU, so padded zeros never exceed a value of the image.
    """
    assert isinstance(pool.padding, int) and isinstance(pool.stride, int)
    near, far = pool.padding, pool.padding + pool.stride - 1
    return nn.Sequential(nn.ZeroPad2d((near, far, near, far)), nn.MaxPool2d(pool.kernel_size, pool.stride))


class SamePadding(nn.Module):
    """timm's convolution with TensorFlow's padding, computed without `max` and `math.ceil`, which torch.export cannot store."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        conv, pads = self.conv, []
        for side, kernel, stride, dilation in zip(
            x.shape[-1:1:-1], conv.kernel_size[::-1], conv.stride[::-1], conv.dilation[::-1], strict=True
        ):
            reach = (kernel - 1) * dilation + 1
            total = ((side + stride - 1) // stride - 1) * stride + reach - side if reach >= stride else 0
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


@contextlib.contextmanager
def positions_of_any_size() -> Iterator[None]:
    """Meanwhile, timm's transformers interpolate their position embeddings by products of matrices.

    ONNX has no antialiased interpolation, and timm's function branches on the size.
    """
    held: list[tuple[Any, Any]] = [
        (module, getattr(module, "resample_abs_pos_embed"))  # noqa: B009
        for name, module in [*sys.modules.items()]
        if name.startswith("timm.models.") and hasattr(module, "resample_abs_pos_embed")
    ]
    try:
        for module, _ in held:
            module.resample_abs_pos_embed = resample_positions
        yield
    finally:
        for module, function in held:
            module.resample_abs_pos_embed = function


def resample_positions(
    posemb: Tensor, new_size: list[int], old_size: list[int] | None = None, num_prefix_tokens: int = 1, **_: object
) -> Tensor:
    """Interpolate position embeddings (1, prefix + h·w, D) to another grid, as `timm.layers.resample_abs_pos_embed`."""
    prefix, positions = posemb[:, :num_prefix_tokens], posemb[:, num_prefix_tokens:]
    side = math.isqrt(positions.shape[1])
    height, width = old_size or (side, side)
    rows, columns = (_bicubic(new, old, posemb) for new, old in zip(new_size, (height, width), strict=True))
    grid = torch.einsum("ih,hwc,jw->ijc", rows, positions.reshape(height, width, -1), columns)
    return torch.cat([prefix, grid.reshape(1, -1, grid.shape[-1])], dim=1)


def _bicubic(new: int, old: int, like: Tensor) -> Tensor:
    """Return the weights (new, old) of antialiased bicubic interpolation with a = -0.5, as in `F.interpolate`."""
    scale = old / new
    centres = (torch.arange(new, device=like.device, dtype=torch.float32) + 0.5) * scale
    cells = torch.arange(old, device=like.device, dtype=torch.float32) + 0.5
    x = ((cells - centres[:, None]) / torch.sym_max(scale, 1.0)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return (weights / weights.sum(dim=1, keepdim=True)).to(like.dtype)
