"""The resize rule: images bilinear and antialiased, labels nearest."""

import numpy as np
import pytest
from PIL import Image

from sda.pictures import contact_sheet, picture_table, resize_image, resize_nearest, size_within


def grey(rows):
    return Image.fromarray(np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=2))


def values(image):
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


def test_enlarging_is_bilinear():
    """The new pixel centres are 0.25, 0.75, 1.25 and 1.75; 0 and 80 are at 0.5 and 1.5; the border is repeated."""
    assert values(resize_image(grey([[0, 80]]), (1, 4))) == [[0, 20, 60, 80]]
    assert values(resize_image(grey([[0], [80]]), (4, 1))) == [[0], [20], [60], [80]]


def test_reducing_is_antialiased():
    """At half size, a triangle of width 4 weights the pixels 1 : 3 : 3 : 1; at the border, 3 : 3 : 1 remain."""
    assert values(resize_image(grey([[0, 70, 70, 140, 0, 0]]), (1, 3))) == [
        [round((3 * 0 + 3 * 70 + 70) / 7), round((70 + 3 * 70 + 3 * 140 + 0) / 8), round((140 + 0 + 0) / 7)]
    ]


def test_labels_are_nearest():
    """From 6 to 3 pixels, the centres are 1, 3 and 5, where pixels begin; from 2 to 4, they are 0.25, 0.75, 1.25 and 1.75."""
    assert resize_nearest(np.array([[0, 1, 2, 3, 4, 255]], np.uint8), (1, 3)).tolist() == [[1, 3, 255]]
    assert resize_nearest(np.array([[7], [255]], np.uint8), (4, 1)).tolist() == [[7], [7], [255], [255]]
    assert resize_nearest(np.array([[0, 1], [2, 3]], np.uint8), (3, 4)).tolist() == [[0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


@pytest.mark.parametrize("size", [(3, 5), (6, 16), (40, 40), (7, 1), (1, 33)])
def test_nearest_creates_no_new_values(size):
    random = np.random.default_rng(0)
    label = random.choice(np.array([0, 9, 255], np.uint8), (12, 16))
    assert set(np.unique(resize_nearest(label, size))) <= {0, 9, 255}
    colors = random.integers(0, 256, (256, 3), dtype=np.uint8)
    picture = resize_nearest(colors[label], size)
    assert picture.shape == (*size, 3) and np.array_equal(picture, colors[resize_nearest(label, size)])
    sure = random.random((12, 16), np.float32)
    assert resize_nearest(sure, size).dtype == np.float32 and set(resize_nearest(sure, size).flat) <= set(sure.flat)


def test_images_of_the_wanted_size_are_unchanged():
    image, label = grey([[1, 2, 3], [4, 5, 6]]), np.zeros((2, 3), np.uint8)
    assert resize_image(image, (2, 3)) is image and resize_nearest(label, (2, 3)) is label
    assert resize_image(image, (3, 2)).size == (2, 3) and resize_nearest(label, (3, 2)).shape == (3, 2)


def test_portraits_and_landscapes_in_one_table_keep_their_shapes():
    """A white square on black is a square in every row."""
    rows = []
    for height, width in ((60, 80), (80, 60), (180, 80)):
        picture = np.zeros((height, width, 3), np.uint8)
        picture[10:50, 10:50] = 255
        rows.append([picture, picture])
    table = np.asarray(picture_table(rows, ["a", "b"], {"road": [1, 2, 3]}, width=160).convert("L")).astype(int)
    top = 30
    for height, width in ((120, 160), (213, 160), (320, 142)):
        left = 6 + (160 - width) // 2
        white = np.argwhere(table[top : top + height, left : left + width] > 128)
        across, down = np.ptp(white, axis=0)
        assert abs(int(across) - int(down)) <= 2 and across > 50
        top += height + 6


def test_sheets_of_extreme_pictures_stay_small():
    assert size_within((48, 64), 384) == (288, 384) and size_within((1, 10_000), 384) == (1, 384)
    assert size_within((10_000, 1), 384) == (768, 1) and size_within((10_000, 1), 1) == (2, 1)
    assert size_within((400, 180), 100) == (200, 90)  # a phone's portrait is not squashed
    pictures = [Image.new("RGB", size) for size in ((1, 30_000), (30_000, 1), (1, 1))]
    assert contact_sheet(pictures, ["a", "b", "c"]).height < 600
    for shape in ((30_000, 1, 3), (1, 30_000, 3)):
        assert picture_table([[np.zeros(shape, np.uint8)]], ["a"], {"road": [1, 2, 3]}).height < 900
