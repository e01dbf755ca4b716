"""Preprocessing: normalisation by hand, and its metadata in checkpoints."""

import pytest
import torch

from sda.errors import SdaError
from sda.models import preprocessing
from sda.models.preprocessing import Normalise, Preprocessing
from sda.models.weights import read


def test_preprocessing_by_hand():
    normalise = Normalise(Preprocessing(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.5)))
    images = torch.tensor([51, 153, 255], dtype=torch.uint8).reshape(1, 3, 1, 1).repeat(2, 1, 2, 2)
    expected = torch.tensor([0.0, 1.0, 0.8]).reshape(1, 3, 1, 1).expand(2, 3, 2, 2)
    torch.testing.assert_close(normalise(images), expected)
    floats = (images / 255).contiguous(memory_format=torch.channels_last)
    before = floats.clone()
    normalised = normalise(floats)
    torch.testing.assert_close(normalised, expected)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(floats, before)


def test_preprocessing_equals_that_of_torchvision():
    for entries in read.DOWNLOADS.values():
        for entry in entries.values():
            transforms = entry.transforms()
            assert list(preprocessing.PREPROCESSING["torchvision"].mean) == list(transforms.mean)
            assert list(preprocessing.PREPROCESSING["torchvision"].std) == list(transforms.std)


@pytest.mark.parametrize("form", ["torchvision", "caffe"])
def test_preprocessing_round_trips_through_a_dict(form):
    chosen = preprocessing.PREPROCESSING[form]
    assert Preprocessing.from_dict(chosen.to_dict()) == chosen


def test_caffe_preprocessing_by_hand():
    """Pure red is (0, 0, 255) in BGR, minus the means; the same for uint8 and float images."""
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).reshape(1, 3, 1, 1)
    expected = torch.tensor([-104.00698793, -116.66876762, 255 - 122.67891434]).reshape(1, 3, 1, 1)
    normalise = Normalise(preprocessing.PREPROCESSING["caffe"])
    torch.testing.assert_close(normalise(red), expected)
    torch.testing.assert_close(normalise(red / 255), expected)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"mean": [0.5] * 3},
        {"mean": [0.5] * 2, "std": [1] * 3},
        {"mean": [0.5] * 3, "std": [1, 0, 1], "order": "RGB", "maximum": 1.0},
        {"mean": [0.5] * 3, "std": [1, 1, 1], "order": "GBR", "maximum": 1.0},
        {"mean": [0.5] * 3, "std": [1, 1, 1], "order": "RGB", "maximum": 0},
        None,
        {"mean": "abc", "std": [1] * 3},
    ],
)
def test_bad_preprocessing_is_refused(values):
    with pytest.raises(SdaError, match="preprocessing: expected"):
        Preprocessing.from_dict(values)
