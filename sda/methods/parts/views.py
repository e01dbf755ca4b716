"""The augmented images that methods train on."""

import torch
from torch import Tensor

from sda.data.streams import Batch
from sda.methods.parts.augment import STRONG, WEAK, Augment, classmix
from sda.models.preprocessing import Preprocessing

SOURCE, TARGET = 0, 1
_weak, _strong = Augment(WEAK), Augment(STRONG)


def labelled_views(batch: Batch, classes: int, mix: float, normalise: Preprocessing) -> tuple[Tensor, Tensor, Tensor]:
    """Source and labelled target images as one weakly augmented batch x_l.

    Returns:
        images (B, 3, H, W), normalised; labels (B, H, W) int64, 255 = ignored; domain (B, H, W) int64, SOURCE or TARGET,
        of every pixel: ClassMix pastes from one onto the other.
    """
    streams = [(domain, part) for domain, part in ((SOURCE, batch.source), (TARGET, batch.labelled)) if part is not None]
    images = torch.cat([part.images for _, part in streams]).float() / 255
    labels = torch.cat([part.labels for _, part in streams]).long()
    domain = torch.cat([torch.full_like(part.labels, domain, dtype=torch.int64) for domain, part in streams])
    images, labels, _ = _weak(images, labels)
    images, labels, domain = classmix(images, labels, domain, classes, mix)
    return normalise(images), labels, domain


def strong_views(
    images: Tensor, labels: Tensor, weights: Tensor, views: int, classes: int, mix: float, normalise: Preprocessing
) -> tuple[Tensor, Tensor, Tensor]:
    """`views` strongly augmented copies of each image x_a with its pseudo-label ŷ and pixel weights.

    Args:
        images: (B, 3, H, W) in 0..1. labels: (B, H, W) int64. weights: (B, H, W).

    Returns:
        The same for (views·B): images normalised; where the augmentation pads, labels 255 and weights 0.
    """
    # view by view, so that ClassMix never takes another view of an image for another image
    made = [classmix(*_strong(images, labels, weights), classes, mix) for _ in range(views)]
    images, labels, weights = (torch.cat(parts) for parts in zip(*made, strict=True))
    return normalise(images), labels, weights
