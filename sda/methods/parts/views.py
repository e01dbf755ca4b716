"""Augmented views of a batch's images."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sda.data.batch import Batch
from sda.methods.parts.augment import Augment, classmix, color_transfer
from sda.methods.parts.bank import SOURCE, TARGET
from sda.models.preprocessing import as_float


class Views(NamedTuple):
    """Images of any stream with labels and pixel weights.

    Attributes:
        x: (B, 3, H, W) in 0..1. y: (B, H, W) int64, 255 = ignored. w: (B, H, W), 0 or more.
    """

    x: Tensor
    y: Tensor
    w: Tensor

    @classmethod
    def joined(cls, parts: "Iterable[Views]") -> "Views":
        """Join images, one part after the other."""
        return cls(*(torch.cat(each) for each in zip(*parts, strict=True)))


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


def donors(batch: Batch, unlabelled: Views, mix_from: str) -> Views | None:
    """Return the images from which ClassMix pastes classes onto unlabelled images.

    Args:
        unlabelled: the unlabelled images with their pseudo-labels.
        mix_from: "source"; "labelled", the labelled target images; "all", these two and the unlabelled images; or "unlabelled".

    Returns:
        The images; true labels have weight 1. For "all", the unlabelled images come first. None for "unlabelled": the strong
        views are mixed with each other.
    """
    if mix_from == "unlabelled":
        return None
    wanted = {"source": [batch.source], "labelled": [batch.labelled], "all": [batch.source, batch.labelled]}[mix_from]
    parts = [unlabelled] if mix_from == "all" else []
    parts += [
        Views(as_float(part.images), part.labels.long(), torch.ones_like(part.labels, dtype=torch.float32))
        for part in wanted
        if part is not None
    ]
    return Views.joined(parts)


def strong_views(
    unlabelled: Views,
    strong: Augment,
    views: int,
    classes: int,
    mix: float,
    donors: Views | None = None,
    skip_own: bool = False,
) -> Views:
    """Augment `views` copies of each image x_a with its pseudo-label ŷ and pixel weights.

    Args:
        mix: probability of ClassMix per view.
        donors: images to paste from, each view from a random one; None: the views are mixed with each other.
        skip_own: the donors begin with the unlabelled images, and none of these is pasted onto itself.

    Returns:
        views·B images; where the augmentation pads, labels are 255 and weights 0.
    """
    made = []
    for _ in range(views):  # one view at a time, so that ClassMix never mixes two views of the same image
        if donors is None or mix == 0:
            made.append(Views(*classmix(*strong(*unlabelled), classes, mix)))
            continue
        count = len(unlabelled.x)
        chosen = torch.randint(len(donors.x) - skip_own, (count,))
        if skip_own:
            chosen += chosen >= torch.arange(count)
        chosen = chosen.to(donors.x.device, non_blocking=True)
        both = strong(*Views.joined([unlabelled, Views(*(part[chosen] for part in donors))]))
        own, others = Views(*(part[:count] for part in both)), Views(*(part[count:] for part in both))
        made.append(Views(*classmix(*own, classes, mix, others)))
    return Views.joined(made)
