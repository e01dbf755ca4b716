"""Weak and strong augmentation and ClassMix, on the device, with parameters drawn per image.

Images are float (B, 3, H, W) in 0..1, before normalisation. Labels and weights are transformed together with them. The few
random parameters are drawn on the CPU, so nothing waits for the device.
"""

from dataclasses import dataclass
from typing import TypeVar

import kornia.augmentation as K
import torch
from kornia.geometry.transform import warp_affine
from torch import Tensor

from sda.labels import IGNORE
from sda.methods.parts.lab import lab_to_rgb, rgb_to_lab

Weights = TypeVar("Weights", Tensor, None)


@dataclass(frozen=True)
class Strength:
    """Probabilities and ranges of one augmentation (METHOD, section 2)."""

    flip: float
    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    blur: float
    scale: float
    blur_kernel: int = 23
    blur_sigma: tuple[float, float] = (0.1, 1.5)
    scale_range: tuple[float, float] = (0.75, 1.75)


WEAK = Strength(flip=0.5, jitter=0.2, brightness=0.125, contrast=0.125, saturation=0.0625, hue=0.042, blur=0.0, scale=0.5)
STRONG = Strength(flip=0.5, jitter=0.8, brightness=0.25, contrast=0.25, saturation=0.125, hue=0.083, blur=0.2, scale=0.8)


class Augment:
    """Flip, colour jitter, blur and scaling of one strength."""

    def __init__(self, strength: Strength):
        s = self.strength = strength
        self._color = K.ColorJitter(s.brightness, s.contrast, s.saturation, s.hue, p=s.jitter, same_on_batch=False)
        self._blur = K.RandomGaussianBlur((s.blur_kernel, s.blur_kernel), s.blur_sigma, p=s.blur, same_on_batch=False)

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        weights: Weights = None,  # type: ignore[assignment]
    ) -> tuple[Tensor, Tensor, Weights]:
        """Augment images with their labels and pixel weights.

        Args:
            images: (B, 3, H, W) float in 0..1. labels: (B, H, W) int64, 255 = ignored. weights: (B, H, W) or None.

        Returns:
            Augmented images, labels and weights. Scaling down pads: images by reflection (black borders would distort the
            batch-norm statistics), labels with 255, weights with 0.
        """
        matrix = self._matrix(images.shape).to(images.device, non_blocking=True)
        size = images.shape[2], images.shape[3]
        images = self._color(images)
        if self.strength.blur > 0:
            images = self._blur(images)
        images = warp_affine(images, matrix, size, mode="bilinear", padding_mode="reflection")
        # Shift labels by one and map "ignored" to 0, so that the warp's zero padding means "ignored".
        masks = torch.where(labels == IGNORE, 0, labels + 1).to(images.dtype).unsqueeze(1)
        if weights is not None:
            masks = torch.cat([masks, weights.unsqueeze(1)], dim=1)
        masks = warp_affine(masks, matrix, size, mode="nearest", padding_mode="zeros")
        labels = masks[:, 0].round().long()
        return images, torch.where(labels == 0, IGNORE, labels - 1), None if weights is None else masks[:, 1]

    def _matrix(self, shape: torch.Size) -> Tensor:
        """Draw pixel transforms (B, 2, 3): a flip, and scaling about a random point that keeps the view inside the image (or,
        when scaling down, the image inside the view)."""
        (count, _, height, width), s = shape, self.strength
        scaled = (torch.rand(count) < s.scale).float()
        low, high = s.scale_range
        factor = 1 + scaled * (low + (high - low) * torch.rand(count) - 1)
        place = torch.rand(count, 2)
        flip = torch.rand(count) < s.flip
        matrix = torch.zeros(count, 2, 3)
        matrix[:, 0, 0] = torch.where(flip, -factor, factor)
        matrix[:, 1, 1] = factor
        matrix[:, 0, 2] = place[:, 0] * (1 - factor) * (width - 1) + torch.where(flip, factor * (width - 1), 0.0)
        matrix[:, 1, 2] = place[:, 1] * (1 - factor) * (height - 1)
        return matrix


@torch.no_grad()
def classmix(
    images: Tensor,
    labels: Tensor,
    weights: Weights,
    classes: int,
    probability: float,
    donors: tuple[Tensor, Tensor, Weights] | None = None,
) -> tuple[Tensor, Tensor, Weights]:
    """Paste a random half of another image's classes, floor(n/2) of its n, onto each image (Olsson et al., WACV 2021).

    Args:
        images: (B, 3, H, W). labels: (B, H, W) int64, 255 = ignored, never pasted. weights: (B, H, W), any per-pixel values
            to paste along, or None.
        probability: probability per image.
        donors: the same three for B other images, one to paste from for each image. None: the images of the batch are paired by
            a random cyclic shift, never with themselves; a batch of one image is unchanged.

    Returns:
        The same three, mixed.
    """
    batch = len(images)
    if probability == 0 or (donors is None and batch < 2):
        return images, labels, weights
    if donors is None:
        shift = int(torch.randint(1, batch, ()))
        donors = (
            images.roll(shift, dims=0),
            labels.roll(shift, dims=0),
            None if weights is None else weights.roll(shift, dims=0),
        )
    other_images, other_labels, other_weights = donors
    apply = (torch.rand(batch) < probability).to(images.device, non_blocking=True)
    paste = half_of_classes(other_labels, classes) & apply[:, None, None]
    images = torch.where(paste.unsqueeze(1), other_images, images)
    labels = torch.where(paste, other_labels, labels)
    return images, labels, None if weights is None else torch.where(paste, other_weights, weights)


def half_of_classes(labels: Tensor, classes: int, round_up: bool = False) -> Tensor:
    """Select the pixels of a random half, floor(n/2) or ceil(n/2), of the n classes in each label map (B, H, W).

    Returns:
        (B, H, W) bool.
    """
    flat = torch.where(labels == IGNORE, classes, labels).flatten(1)
    present = torch.zeros(len(labels), classes + 1, device=labels.device).scatter_(1, flat, 1.0)
    present[:, classes] = 0
    order = (present * (1 + torch.rand(present.shape).to(labels.device, non_blocking=True))).argsort(1, descending=True)
    rank = order.argsort(1)  # present classes come first, in random order
    half = present.sum(1, keepdim=True) / 2
    chosen = rank < (half.ceil() if round_up else half.floor())
    return chosen.gather(1, flat).view_as(labels)


@torch.no_grad()
def color_transfer(images: Tensor, others: Tensor, probability: float) -> Tensor:
    """Give images the colours of others: the mean and standard deviation of each channel in CIELAB (Reinhard et al., 2001).

    Each image takes those of a random one of `others`. Reinhard et al. use another colour space (lαβ); in domain adaptation
    CIELAB is usual (He et al., CVPR 2021).

    Args:
        images: (B, 3, H, W) float in 0..1. others: (B', 3, H', W') float in 0..1.
        probability: probability per image.

    Returns:
        (B, 3, H, W) in 0..1.
    """
    if probability == 0:
        return images
    apply = (torch.rand(len(images)) < probability).to(images.device, non_blocking=True)
    chosen = torch.randint(len(others), (len(images),)).to(images.device, non_blocking=True)
    own, wanted = rgb_to_lab(images), rgb_to_lab(others[chosen])
    (own_std, own_mean), (std, mean) = (torch.std_mean(lab, dim=(2, 3), keepdim=True) for lab in (own, wanted))
    transferred = lab_to_rgb((own - own_mean) * (std / own_std.clamp(min=1e-3)) + mean)
    return torch.where(apply[:, None, None, None], transferred.clamp(0, 1), images)


def mask_patches(images: Tensor, patch: int, ratio: float, color: Tensor) -> Tensor:
    """Hide random square patches of images (MIC: Hoyer et al., CVPR 2023).

    Args:
        images: (B, 3, H, W). patch: side of a patch in pixels. ratio: probability that a patch is hidden.
        color: (3, 1, 1), the colour of hidden patches.

    Returns:
        (B, 3, H, W).
    """
    batch, _, height, width = images.shape
    hidden = torch.rand(batch, 1, -(-height // patch), -(-width // patch)) < ratio
    hidden = hidden.to(images.device, non_blocking=True)
    hidden = hidden.repeat_interleave(patch, 2)[:, :, :height].repeat_interleave(patch, 3)[:, :, :, :width]
    return torch.where(hidden, color, images)
