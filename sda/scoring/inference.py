"""Compute logits of images under a protocol: the only way to predict with a network."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sda.models.network import SegmentationNetwork
from sda.models.preprocessing import as_float
from sda.protocol import Protocol
from sda.sizes import SMALLEST


@torch.no_grad()
def predict_logits(network: SegmentationNetwork, images: Tensor, size: tuple[int, ...], protocol: Protocol) -> Tensor:
    """Compute logits at `size`. With several scales or flips, return the logarithm of the mean of their probabilities.

    Args:
        network: a network in eval mode. images: (B, 3, H, W), uint8 RGB, at the protocol's input size, on the network's device.
        size: (height, width) of the result.

    Returns:
        (B, C, height, width) float32; their softmax is the prediction.
    """
    if protocol.passes == 1 and protocol.scales == (1.0,):
        return network.grid.enlarge(_whole_or_in_windows(network, images, protocol.window), size)
    images = as_float(images)
    mean = images.new_zeros(())
    for scale in protocol.scales:
        sides = [max(SMALLEST, round(side * scale)) for side in images.shape[2:]]
        scaled = images if scale == 1 else F.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=True)
        for flipped in (False, True) if protocol.flip else (False,):
            logits = _whole_or_in_windows(network, scaled.flip(3) if flipped else scaled, protocol.window)
            logits = network.grid.enlarge(logits.flip(3) if flipped else logits, size)
            mean = mean + logits.softmax(dim=1) / protocol.passes
    return mean.clamp(min=1e-12).log()


def _whole_or_in_windows(network: SegmentationNetwork, images: Tensor, window: tuple[int, int] | None) -> Tensor:
    """Compute logits at the network's stride or, for images larger than `window`, the mean logits of sliding windows at the
    images' size."""
    height, width = images.shape[2:]
    if window is None or (height <= window[0] and width <= window[1]):
        return network(images)[0]
    total: Tensor | None = None
    count = torch.zeros(1, 1, height, width, device=images.device)
    for top in starts(height, window[0]):
        for left in starts(width, window[1]):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            part = images[:, :, rows, columns]
            logits = network.grid.enlarge(network(part)[0], part.shape[2:])
            if total is None:
                total = logits.new_zeros(len(images), logits.shape[1], height, width)
            total[:, :, rows, columns] += logits
            count[:, :, rows, columns] += 1
    assert total is not None
    return total / count


def starts(length: int, window: int) -> list[int]:
    """Return the starts of evenly spread windows that cover `length`, each overlapping the next by at least a third."""
    if length <= window:
        return [0]
    count = math.ceil((length - window) / (window * 2 / 3)) + 1
    return [round(index * (length - window) / (count - 1)) for index in range(count)]
