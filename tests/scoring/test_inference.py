"""Predictions under a protocol, against plain references."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sda.protocol import Protocol
from sda.scoring.inference import predict_logits, starts


@pytest.fixture
def network(fake_network):
    torch.manual_seed(0)
    return fake_network(stride=2, sharpness=2.0).eval()


@pytest.fixture
def images():
    return torch.randint(256, (2, 3, 40, 56), generator=torch.manual_seed(1), dtype=torch.uint8)


def enlarged(logits, size):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def test_whole_image_equals_a_forward_pass(network, images):
    expected = enlarged(network(images / 255)[0], (50, 60))
    assert torch.equal(predict_logits(network, images, (50, 60), Protocol()), expected)


def test_a_window_larger_than_the_image_covers_the_whole_image(network, images):
    whole = predict_logits(network, images, (40, 56), Protocol())
    assert torch.equal(predict_logits(network, images, (40, 56), Protocol(window=(40, 60))), whole)


def test_overlapping_windows_are_averaged(network, images):
    """Each pixel has the mean of the logits of all windows that contain it."""
    window = (16, 24)
    found = predict_logits(network, images, (40, 56), Protocol(window=window))
    places = [(top, left) for top in starts(40, 16) for left in starts(56, 24)]
    parts = {}
    for top, left in places:
        part = images[:, :, top : top + 16, left : left + 24]
        parts[top, left] = enlarged(network(part)[0], window)
    for row, column in [(0, 0), (13, 20), (39, 55), (20, 30), (11, 17)]:
        seen = [
            part[:, :, row - top, column - left]
            for (top, left), part in parts.items()
            if top <= row < top + 16 and left <= column < left + 24
        ]
        assert torch.allclose(found[:, :, row, column], torch.stack(seen).mean(dim=0), atol=1e-5)


@pytest.mark.parametrize("length", range(1, 200, 7))
@pytest.mark.parametrize("window", [32, 33, 64])
def test_windows_cover_everything_and_overlap_by_a_third(length, window):
    found = starts(length, window)
    covered = np.zeros(length, bool)
    for start in found:
        assert start >= 0 and (start + window <= length or length <= window)
        covered[start : start + window] = True
    assert covered.all()
    assert all(later - earlier <= window * 2 / 3 + 1 for earlier, later in itertools.pairwise(found))


def test_scales_and_flips_average_probabilities(network, images):
    protocol = Protocol(scales=(1.0, 1.5), flip=True)
    found = predict_logits(network, images, (40, 56), protocol).softmax(dim=1)
    expected = 0.0
    for scale in (1.0, 1.5):
        scaled = images.float()
        if scale != 1:
            scaled = F.interpolate(scaled, (60, 84), mode="bilinear", align_corners=False, antialias=True)
        for flip in (False, True):
            seen = scaled / 255
            logits = network(seen.flip(3) if flip else seen)[0]
            logits = enlarged(logits.flip(3) if flip else logits, (40, 56))
            expected = expected + logits.softmax(dim=1) / 4
    assert torch.allclose(found, expected, atol=1e-5)


def test_flip_makes_the_prediction_symmetric(network, images):
    protocol = Protocol(flip=True)
    one = predict_logits(network, images, (40, 56), protocol)
    other = predict_logits(network, images.flip(3), (40, 56), protocol).flip(3)
    assert torch.allclose(one.softmax(dim=1), other.softmax(dim=1), atol=1e-5)
