"""Where the cells of a network's output lie in its image, and the ways between the two."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Grid:
    """Cells (h, w) on an image (H, W).

    Attributes:
        corners: the outermost cells lie on the outermost pixels, as those of Caffe's ResNets do, whose pooling rounds up: 41
            cells on 321 pixels, 65 on 513 and, to a pixel, on 512. (The farthest cell is up to 5 pixels aside where a multiple of
            the stride is far, as with 526; DeepLabv2's own code does the same.) Otherwise every cell covers its share of the
            image: 64 on 512.
    """

    corners: bool = False

    def enlarge(self, values: Tensor, size: tuple[int, ...]) -> Tensor:
        """Logits (B, C, h, w) at a size (height, width), as that of the images: bilinear."""
        return F.interpolate(values, size=size, mode="bilinear", align_corners=self.corners)

    def shrink(self, labels: Tensor, size: tuple[int, ...]) -> Tensor:
        """Label maps (B, H, W) at a size (h, w): of the pixel under the centre of each cell."""
        rows, columns = (self.pixels(*sides, labels.device) for sides in zip(size, labels.shape[1:], strict=True))
        return labels[:, rows[:, None], columns]

    def pixels(self, cells: int, side: int, device: torch.device | None = None) -> Tensor:
        """(cells,) int64: the pixel of a row of `side` pixels in which the centre of each cell lies."""
        cell = torch.arange(cells, device=device)
        if self.corners:
            steps = max(cells - 1, 1)
            return (2 * cell * (side - 1) + steps) // (2 * steps)
        return (2 * cell + 1) * side // (2 * cells)
