"""Files beside photos that are maps of them: found by their names and their content."""

import numpy as np
import pytest
import tiny

from sda.data.item import Item
from sda.data.layouts.maps import find_maps


def photo(seed):
    return np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def flat(channels=1):
    """A map of three values."""
    values = np.array([[0, 1, 2]], np.uint8).repeat(8, 0).repeat(10, 1)
    return values if channels == 1 else np.stack([90 * values] * channels, axis=2)


def maps(root, arrays, labelled=()):
    """Write images and return the keys of those that are maps."""
    items = []
    for key, array in arrays.items():
        path = tiny.save(array, root / key)
        items.append(Item(key, path, path if key in labelled else None))
    return set(find_maps(items))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["{}.png", "{}_mask.png"], "{}_mask.png"),
        (["{}.jpg", "{}.png"], "{}.png"),
        (["{}_rgb.png", "{}_labelIds.png"], "{}_labelIds.png"),
        (["images/{}.jpg", "masks/{}.png"], "masks/{}.png"),
        (["train/{}.png", "trainannot/{}.png"], "trainannot/{}.png"),
        (["leftImg8bit/ulm/{}_leftImg8bit.png", "gtFine/ulm/{}_gtFine_color.png"], "gtFine/ulm/{}_gtFine_color.png"),
        (["{}.png", "{}_xyz.png"], "{}_xyz.png"),  # no telling word: the content decides
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_maps_are_found(tmp_path, names, expected, channels):
    arrays = {name.format(f"p{i}"): photo(i) if name != expected else flat(channels) for i in range(3) for name in names}
    assert maps(tmp_path, arrays) == {expected.format(f"p{i}") for i in range(3)}


def test_names_need_no_digits(tmp_path):
    assert maps(tmp_path, {"street.png": photo(0), "street_mask.png": flat(), "street_lamp.png": photo(1)}) == {"street_mask.png"}


def test_depth_maps_have_one_channel(tmp_path):
    grey = photo(3)[..., 0]
    assert maps(tmp_path, {"1.png": photo(0), "1_depth.png": grey, "1_ir.png": grey}) == {"1_depth.png", "1_ir.png"}


def test_a_map_without_its_photo_is_no_photo(tmp_path):
    assert maps(tmp_path, {"1.png": photo(0), "1_mask.png": flat(), "2_mask.png": flat()}) == {"1_mask.png", "2_mask.png"}


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "1_2.png"],  # frames
        ["a/1.png", "b/1.png"],
        ["1.png", "1_left.png", "1_right.png"],
        ["1.png", "1_segway.png", "1_ground.png"],
        ["ulm_000001_000019_leftImg8bit.png", "ulm_000001_000020_leftImg8bit.png"],
        ["night/1.png", "day/1.png"],
        ["masks_of_carnival/1.png", "masks_of_carnival/2.png"],
    ],
)
def test_photos_are_kept(tmp_path, names):
    assert maps(tmp_path, {name: photo(index) for index, name in enumerate(names)}) == set()


def test_drawings_and_grey_photos_are_kept(tmp_path):
    """Without a photo of the same name, a flat or grey image is an image."""
    assert maps(tmp_path, {"1.png": flat(3), "2.png": flat(), "3.png": photo(0)[..., 0]}) == set()
    assert maps(tmp_path, {"1.png": flat(3), "1_b.png": flat(3)}) == set()


def test_labelled_images_are_images(tmp_path):
    assert maps(tmp_path, {"1.png": photo(0), "1_mask.png": flat()}, labelled=["1_mask.png"]) == set()


def test_a_damaged_map_does_not_hide_the_others(tmp_path):
    arrays = {name: array for i in range(4) for name, array in ((f"images/{i}.png", photo(i)), (f"masks/{i}.png", flat()))}
    items = [Item(key, tiny.save(array, tmp_path / key), None) for key, array in arrays.items()]
    (tmp_path / "masks/2.png").write_bytes(b"")
    assert set(find_maps(items)) == {f"masks/{i}.png" for i in range(4)}


def test_unreadable_files_are_left_to_others(tmp_path):
    arrays = {"1.png": photo(0), "1_b.png": flat()}
    assert maps(tmp_path, arrays) == {"1_b.png"}
    items = [Item(key, tmp_path / key, None) for key in arrays]
    (tmp_path / "1_b.png").write_bytes(b"")
    assert find_maps(items) == {}


def test_a_telling_word_may_precede_the_name(tmp_path):
    items = [Item(name, tmp_path / name, None) for name in ("00.png", "mask_00.png", "01.png", "GT_01.png", "maker_2.png")]
    assert find_maps(items) == {"mask_00.png": "00.png", "GT_01.png": "01.png"}
    items = [
        Item(name, tmp_path / name, None) for name in ("img_00.jpg", "mask_00.png", "frame_1.jpg", "frame_2.jpg", "seg_x.png")
    ]
    assert find_maps(items) == {"mask_00.png": "img_00.jpg"}
    items = [
        Item(name, tmp_path / name, None) for name in ("a/image.png", "a/label.png", "b/image.png", "b/gt.png", "c/mask.png")
    ]
    assert find_maps(items) == {"a/label.png": "a/image.png", "b/gt.png": "b/image.png"}
