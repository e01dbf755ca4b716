"""Augmented views of a batch's images."""

from dataclasses import replace

import torch
from torch import Tensor

from sda.data.batch import Batch
from sda.methods.parts.augment import Augment, classmix, color_transfer
from sda.methods.parts.bank import SOURCE, TARGET
from sda.models.preprocessing import as_float


def in_target_colors(batch: Batch, probability: float) -> Batch:
    """Give each source image, with this probability, the colours of a random unlabelled image of the batch."""
    if probability == 0 or batch.source is None or batch.unlabelled is None:
        return batch
    images = color_transfer(as_float(batch.source.images), as_float(batch.unlabelled), probability)
    return replace(batch, source=replace(batch.source, images=images))


def labelled_views(batch: Batch, weak: Augment, classes: int, mix: float) -> tuple[Tensor, Tensor, Tensor]:
    """Augment source and labelled target images as one batch x_l.

    Args:
        mix: probability of ClassMix per image.

    Returns:
        images (B, 3, H, W) in 0..1; labels (B, H, W) int64, 255 = ignored; domain (B, H, W) int64, SOURCE or TARGET, per pixel
        because ClassMix pastes between the two.
    """
    streams = [(domain, part) for domain, part in ((SOURCE, batch.source), (TARGET, batch.labelled)) if part is not None]
    images = torch.cat([as_float(part.images) for _, part in streams])
    labels = torch.cat([part.labels for _, part in streams]).long()
    domain = torch.cat([torch.full_like(part.labels, domain, dtype=torch.int64) for domain, part in streams])
    images, labels, _ = weak(images, labels)
    return classmix(images, labels, domain, classes, mix)


def strong_views(
    images: Tensor, labels: Tensor, weights: Tensor, strong: Augment, views: int, classes: int, mix: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Augment `views` copies of each image x_a with its pseudo-label ŷ and pixel weights.

    Args:
        images: (B, 3, H, W) in 0..1. labels: (B, H, W) int64. weights: (B, H, W). mix: probability of ClassMix per view.

    Returns:
        The same three for views·B images; where the augmentation pads, labels are 255 and weights 0.
    """
    # one view at a time, so that ClassMix never mixes two views of the same image
    made = [classmix(*strong(images, labels, weights), classes, mix) for _ in range(views)]
    images, labels, weights = (torch.cat(parts) for parts in zip(*made, strict=True))
    return images, labels, weights
