"""Transfer of colour statistics: against CIELAB computed from its definition in float64."""

import numpy as np
import torch

from sda.data.batch import Batch, Labelled
from sda.methods.parts.augment import color_transfer
from sda.methods.parts.views import in_target_colors

# sRGB (IEC 61966-2-1) to XYZ with white point D65, as kornia has them
TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(rgb):
    """Return CIELAB (N, 3) of sRGB (N, 3) in 0..1."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ TO_XYZ.T / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def statistics(image):
    values = lab(image.permute(1, 2, 0).reshape(-1, 3).double().numpy())
    return values.mean(axis=0), values.std(axis=0, ddof=1)


def muted(count, seed, low, high):
    """Return images (count, 3, 24, 32) with colours in low..high, so that none of the results leaves 0..1."""
    draw = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, 3, 24, 32, generator=draw)


def test_images_take_the_mean_and_deviation_of_another_image():
    images, others = muted(2, 0, 0.3, 0.6), muted(1, 1, 0.45, 0.6)
    for made in color_transfer(images, others, 1.0):
        for found, wanted in zip(statistics(made), statistics(others[0]), strict=True):
            np.testing.assert_allclose(found, wanted, atol=0.05)


def test_pixels_are_moved_by_the_equation():
    images, others = muted(1, 0, 0.3, 0.6), muted(1, 1, 0.45, 0.6)
    (mean, std), (wanted_mean, wanted_std) = statistics(images[0]), statistics(others[0])
    flat = lab(images[0].permute(1, 2, 0).reshape(-1, 3).double().numpy())
    made = lab(color_transfer(images, others, 1.0)[0].permute(1, 2, 0).reshape(-1, 3).double().numpy())
    np.testing.assert_allclose(made, (flat - mean) / std * wanted_std + wanted_mean, atol=0.1)


def test_the_same_colours_change_nothing_and_a_single_colour_gives_no_nan():
    images = muted(1, 0, 0.2, 0.8)
    torch.testing.assert_close(color_transfer(images, images, 1.0), images, atol=1e-3, rtol=0)
    grey = torch.full((1, 3, 24, 32), 0.5)
    made = color_transfer(grey, images, 1.0)
    assert made.isfinite().all()
    assert made.std(dim=(2, 3)).max() < 1e-3


def test_probability_is_per_image_and_the_other_image_random():
    torch.manual_seed(0)
    images, others = muted(400, 0, 0.2, 0.5), torch.cat([muted(1, 1, 0.7, 0.9), muted(1, 2, 0.05, 0.2)])
    made = color_transfer(images, others, 0.5).mean(dim=(1, 2, 3))
    unchanged = (made - images.mean(dim=(1, 2, 3))).abs() < 1e-6
    assert 160 < unchanged.sum() < 240
    bright, dark = (made > 0.6).sum(), (made < 0.25).sum()
    assert bright + dark + unchanged.sum() == 400 and 60 < bright < 140


def test_only_source_images_change():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (4, 3, 8, 8), generator=draw, dtype=torch.uint8)
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    batch = Batch(Labelled(images[:2], labels), Labelled(images[2:], labels), images)
    assert in_target_colors(batch, 0.0) is batch
    made = in_target_colors(batch, 1.0)
    assert made.labelled is batch.labelled and made.unlabelled is batch.unlabelled
    assert made.source.labels is labels and made.source.images.shape == (2, 3, 8, 8)
    assert not torch.allclose(made.source.images, images[:2] / 255, atol=1e-2)
    alone = Batch(labelled=batch.labelled, unlabelled=images)  # a step without source images
    assert in_target_colors(alone, 1.0) is alone
