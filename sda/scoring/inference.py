"""From an image to logits, under a protocol: the only way in which a trained network is asked."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sda.models.preprocessing import Preprocessing
from sda.protocol import Protocol

SMALLEST = 32  # side that networks take


@torch.no_grad()
def predict_logits(
    network: nn.Module, normalise: Preprocessing, images: Tensor, size: tuple[int, int], protocol: Protocol
) -> Tensor:
    """Logits at `size`; with several scales or flips, the logarithm of the mean of their probabilities.

    Args:
        network: images → (logits, features), in eval mode. images: (B, 3, H, W), uint8 RGB, already at the protocol's input size,
            on the network's device.

    Returns:
        (B, C, height, width) float32, whose softmax is the prediction.
    """
    if protocol.passes == 1 and protocol.scales == (1.0,):
        return network.grid.enlarge(_at_once_or_sliding(network, normalise(images), protocol.window), size)
    mean, images = 0.0, images.float()
    for scale in protocol.scales:
        sides = [max(SMALLEST, round(side * scale)) for side in images.shape[2:]]
        scaled = images if scale == 1 else F.interpolate(images, sides, mode="bilinear", align_corners=False, antialias=True)
        scaled = normalise(scaled / 255)
        for flipped in (False, True) if protocol.flip else (False,):
            logits = _at_once_or_sliding(network, scaled.flip(3) if flipped else scaled, protocol.window)
            logits = network.grid.enlarge(logits.flip(3) if flipped else logits, size)
            mean = mean + logits.softmax(dim=1) / protocol.passes
    return mean.clamp(min=1e-12).log()


def _at_once_or_sliding(network: nn.Module, images: Tensor, window: tuple[int, int] | None) -> Tensor:
    """Logits of normalised images, of any size; in windows, the mean of their logits, at the images' own size."""
    height, width = images.shape[2:]
    if window is None or (height <= window[0] and width <= window[1]):
        return network(images)[0]
    total, count = 0.0, images.new_zeros(1, 1, height, width)
    for top in starts(height, window[0]):
        for left in starts(width, window[1]):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            part = images[:, :, rows, columns]
            logits = network.grid.enlarge(network(part)[0], part.shape[2:])
            if isinstance(total, float):
                total = logits.new_zeros(len(images), logits.shape[1], height, width)
            total[:, :, rows, columns] += logits
            count[:, :, rows, columns] += 1
    return total / count


def starts(length: int, window: int) -> list[int]:
    """Where windows begin that cover `length`, each overlapping the next by a third at least, spread evenly."""
    if length <= window:
        return [0]
    count = math.ceil((length - window) / (window * 2 / 3)) + 1
    return [round(index * (length - window) / (count - 1)) for index in range(count)]
