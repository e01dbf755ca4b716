"""Sizes of images: written by people, and of images that keep their aspect ratio."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda.sizes import SMALLEST, fitted


@pytest.mark.parametrize(
    ("image", "size", "expected"),
    [
        ((480, 640), (240, 320), (240, 320)),  # the same aspect ratio
        ((640, 480), (240, 320), (240, 180)),  # portrait
        ((300, 900), (240, 320), (107, 320)),  # wide: 106.67
        ((100, 100), (240, 320), (240, 240)),  # smaller than the size: enlarged
        ((4000, 20), (240, 320), (240, 32)),  # very narrow: 1.2, but at least 32
        ((1052, 1914), (512, 1024), (512, 932)),  # 931.5 rounds up
    ],
)
def test_inside_by_hand(image, size, expected):
    assert fitted(image, size, "inside") == expected
    assert fitted(image, size, "stretch") == size
    assert fitted(image, None, "inside") == fitted(image, None, "stretch") == image


sides, sizes = st.integers(1, 20_000), st.integers(SMALLEST, 4096)


@given(sides, sides, sizes, sizes)
def test_inside_is_the_largest_size_of_the_same_shape(height, width, rows, columns):
    """With exact fractions: one side is full, the other is the scaled one to within half a pixel, or the smallest."""
    found = fitted((height, width), (rows, columns), "inside")
    scale = min(Fraction(rows, height), Fraction(columns, width))
    exact = height * scale, width * scale
    assert any(side == full == of for side, full, of in zip(found, (rows, columns), exact, strict=True))
    for side, full, of in zip(found, (rows, columns), exact, strict=True):
        assert side <= full and (abs(side - of) <= Fraction(1, 2) or side == SMALLEST > of)
