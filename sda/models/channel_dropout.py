"""Channel dropout: a perturbation of the encoder's maps."""

import torch
from torch import Tensor


def drop_channels(maps: list[Tensor], views: int) -> list[Tensor]:
    """Drop channels at random, with probability ½, in half of the images (UniMatch V2: Yang et al., TPAMI 2025).

    The half is rounded up; all views of these images are changed, at all levels. With two views, the second of an image keeps the
    channels that the first loses. Kept channels are doubled.

    Args:
        maps: (views·B, F, h, w) each, view by view. views: number of views of each image.

    Returns:
        The maps, of the same shapes.
    """
    images = len(maps[0]) // views
    spared = (torch.randperm(images) < images // 2)[None, :, None]
    changed = []
    for level in maps:
        scale = 2 * (torch.rand(views, images, level.shape[1]) < 0.5).float()
        if views == 2:
            scale[1] = 2 - scale[0]
        scale = torch.where(spared, 1.0, scale).flatten(0, 1)
        changed.append(level * scale[:, :, None, None].to(level, non_blocking=True))
    return changed
