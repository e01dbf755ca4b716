"""Where the cells of a network's output are in its input image, and resampling between the two."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Grid:
    """Cells (h, w) on an image (H, W).

    Attributes:
        corners: the outermost cells are centred on the outermost pixels, as in Caffe's ResNets, whose pooling rounds sizes up:
            41 cells for 321 pixels, 65 for 513 and, to within a pixel, for 512. (For sizes far from a multiple of the stride,
            such as 526, the farthest cell is off by up to 5 pixels; DeepLabv2's own code has the same error.) Otherwise all
            cells cover equal shares of the image: 64 for 512.
        multiple: the cells cover the image after padding on the right and at the bottom, so that its sides are multiples of
            this: with 14, 37 cells cover 518 pixels for an image of 512.
    """

    corners: bool = False
    multiple: int = 1

    def padded(self, side: int) -> int:
        """Return the side of an image after padding."""
        return (side + self.multiple - 1) // self.multiple * self.multiple  # no negative numbers: they break torch.export

    def enlarge(self, values: Tensor, size: tuple[int, ...]) -> Tensor:
        """Resize logits (B, C, h, w) to `size`, (height, width) of the images, with bilinear interpolation."""
        padded = [self.padded(side) for side in size]
        large = self.align(values, padded)
        return large[..., : size[0], : size[1]] if self.multiple > 1 else large

    def align(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """Resize a map (B, C, h, w) to the cells of another map of the same images, which covers the same padding."""
        return F.interpolate(values, size=list(size), mode="bilinear", align_corners=self.corners)

    def shrink(self, labels: Tensor, size: tuple[int, ...]) -> Tensor:
        """Resize label maps (B, H, W) to `size`, (h, w): each cell gets the label of the pixel under its centre."""
        rows, columns = (self.pixels(*sides, labels.device) for sides in zip(size, labels.shape[1:], strict=True))
        return labels[:, rows[:, None], columns]

    def pixels(self, cells: int, side: int, device: torch.device | None = None) -> Tensor:
        """Return the index of the pixel under the centre of each cell, for `cells` cells on `side` pixels: (cells,) int64."""
        cell = torch.arange(cells, device=device)
        if self.corners:
            steps = max(cells - 1, 1)
            return (2 * cell * (side - 1) + steps) // (2 * steps)
        padded = self.padded(side)
        return ((2 * cell + 1) * padded // (2 * cells)).clamp(max=side - 1)
