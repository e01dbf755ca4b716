"""The images of one step, as a method receives them."""

from dataclasses import dataclass

import torch
from torch import Tensor

STREAMS = ("source", "labelled", "unlabelled")


@dataclass(frozen=True)
class Labelled:
    """Labelled images.

    Attributes:
        images: uint8 (B, 3, H, W) RGB; after `in_target_colors`, float in 0..1.
        labels: uint8 (B, H, W) train ids, 255 = ignored.
    """

    images: Tensor
    labels: Tensor

    def chunk(self, count: int) -> "list[Labelled]":
        """Split into `count` parts."""
        parts = zip(self.images.chunk(count), self.labels.chunk(count), strict=True)
        return [Labelled(images, labels) for images, labels in parts]

    def pin_memory(self) -> "Labelled":
        """Copy to page-locked memory, from which the copy to a GPU is fast."""
        return Labelled(self.images.pin_memory(), self.labels.pin_memory())

    def to(self, device: torch.device, non_blocking: bool = False) -> "Labelled":
        """Copy to a device."""
        return Labelled(self.images.to(device, non_blocking=non_blocking), self.labels.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class Batch:
    """The images of one step, by stream; None for streams that are not used.

    Attributes:
        unlabelled: uint8 (B, 3, H, W) RGB.
    """

    source: Labelled | None = None
    labelled: Labelled | None = None
    unlabelled: Tensor | None = None

    def parts(self, count: int) -> "list[Batch]":
        """Split into `count` parts of equal size."""
        if count == 1:
            return [self]
        chunks = {name: part.chunk(count) for name in STREAMS if (part := getattr(self, name)) is not None}
        return [Batch(**{name: parts[place] for name, parts in chunks.items()}) for place in range(count)]
