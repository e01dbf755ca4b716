"""Channel dropout: a perturbation of the encoder's maps."""

import torch
from torch import Tensor


def drop_channels(maps: list[Tensor], images: int, views: int) -> list[Tensor]:
    """Drop half of the channels of an encoder's maps in half of the views (UniMatch V2: Yang et al., TPAMI 2025).

    With two views, the second of an image keeps the channels that the first drops. Kept channels are doubled.

    Args:
        maps: (views·images + M, F, h, w) each, view by view; the last M are not changed.

    Returns:
        The maps.
    """
    spared = (torch.randperm(images) < images // 2)[None, :, None]  # the same images at all levels
    changed = []
    for level in maps:
        kept = 2 * (torch.rand(views, images, level.shape[1]) < 0.5).float()
        if views == 2:
            kept[1] = 2 - kept[0]
        scale = torch.ones(len(level), level.shape[1])
        scale[: views * images] = torch.where(spared, 1.0, kept).flatten(0, 1)
        changed.append(level * scale[:, :, None, None].to(level, non_blocking=True))
    return changed
