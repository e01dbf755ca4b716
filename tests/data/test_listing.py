"""Which files of a folder are the images of a split: masks beside images, suffixes, accents, and layouts that are not read."""

import unicodedata

import numpy as np
import pytest
import tiny

from sda.data.descriptor import load
from sda.data.inspect.doctor import examine
from sda.data.listing import find_orphans, list_folder, list_items
from sda.data.splits.lists import read_keys, unimatch_text
from sda.data.splits.pickled import from_indices
from sda.errors import SdaError

HEAD = 'title = "Mine"\nclasses = {a = [1, 1, 1], b = [2, 2, 2], c = [3, 3, 3]}\n'


def nfd(text):
    return unicodedata.normalize("NFD", text)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SDA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.fixture
def described(tmp_path):
    """`described((images, labels), …)` → a descriptor with these layouts."""

    def described(*layouts):
        text = HEAD
        for images, labels in layouts:
            text += f'[[layout]]\nimages = "{images}"\n' + (f'labels = "{labels}"\n' if labels else "")
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        return load(str(tmp_path / "mine.toml"))

    return described


def write(root, *names):
    """Write photos, and label maps where a name says mask."""
    for name in names:
        seed = sum(name.encode())
        photo = np.random.default_rng(seed).integers(0, 255, (16, 24, 3), dtype=np.uint8)
        label = np.array([[0, 1, 2]], np.uint8).repeat(16, 0).repeat(8, 1)
        tiny.save(label if "mask" in name else photo, root / name)


def pairs(listing, root):
    return {item.key: item.label and item.label.relative_to(root).as_posix() for item in listing.items}


# Masks beside images


@pytest.mark.parametrize(
    ("images", "labels", "names", "expected"),
    [
        ("{n}.png", "{n}_mask.png", ["1.png", "1_mask.png", "2.png"], {"1.png": "1_mask.png", "2.png": None}),
        ("{n}.png", "{n}_mask.png", ["1.png", "1_mask.png", "3_mask.png"], {"1.png": "1_mask.png"}),
        ("{n}_rgb.png", "{n}.png", ["1_rgb.png", "1.png", "2_rgb.png"], {"1_rgb.png": "1.png", "2_rgb.png": None}),
        ("{n}.{ext}", "{n}_mask.{ext}", ["1.jpg", "1_mask.png", "2.PNG"], {"1.jpg": "1_mask.png", "2.PNG": None}),
        ("{n}.png", "{n}_mask.png", ["gas_mask.png", "gas_mask_mask.png"], {"gas_mask.png": "gas_mask_mask.png"}),
    ],
)  # fmt: skip
def test_labels_are_no_images(root, described, images, labels, names, expected):
    write(root, *names)
    assert pairs(list_items(described((images, labels)), root, "train"), root) == expected


def test_a_photo_and_its_label_may_differ_only_in_the_suffix(root, described):
    """The pattern of the images matches the labels, too."""
    write(root, "1.jpg", "2.JPG", "1.png", "2.png", "3.png", "4.png")
    found = described(("{n}.{ext}", "{n}.png"))
    listing = list_items(found, root, "train")
    assert pairs(listing, root) == {"1.jpg": "1.png", "2.JPG": "2.png"}
    assert find_orphans(found, root, "train", listing) == ["3.png", "4.png"]


def test_labels_of_another_layout_are_no_images(root, described):
    write(root, "1.png", "1_maskA.png", "1_maskB.png", "2_maskB.png")
    layouts = described(("{n}.png", "{n}_maskA.png"), ("{n}.png", "{n}_maskB.png"))
    assert pairs(list_items(layouts, root, "train"), root) == {"1.png": "1_maskA.png"}


def test_maps_beside_images_are_told_and_not_used(root, described):
    write(root, "1.png", "1_mask.png", "1_colormask.png", "2.png", "2_mask.png", "2_colormask.png")
    mine = described(("{n}.png", "{n}_mask.png"))
    listing = list_items(mine, root, "train")
    assert pairs(listing, root) == {"1.png": "1_mask.png", "2.png": "2_mask.png"}
    assert "2 files are not used as images, such as 1_colormask.png" in listing.notes[0] and listing.unread == ()
    found, _ = examine("mine", mine, root, processes=1)
    assert [problem.key for problem in found.problems] == ["1_colormask.png", "2_colormask.png"] and not found.advice


def test_maps_in_a_folder_of_photos_are_told_and_not_used(root, described):
    write(root, "images/1.png", "images/1_mask.png", "masks/1.png")
    listing = list_folder(root)
    assert [item.key for item in listing.items] == ["images/1.png"] and "2 files are not used as images" in listing.notes[0]
    assert [item.key for item in list_items(described(("{f}/{n}.png", None)), root, "train").items] == ["images/1.png"]


# Suffixes


def test_ext_matches_any_suffix_in_any_case(root, described):
    write(root, "i/1.jpg", "i/2.JPG", "i/3.tif", "i/4.png", "mask/1.png", "mask/2.PNG", "mask/3.bmp")
    listing = list_items(described(("i/{n}.{ext}", "mask/{n}.{ext}")), root, "train")
    assert pairs(listing, root) == {"i/1.jpg": "mask/1.png", "i/2.JPG": "mask/2.PNG", "i/3.tif": "mask/3.bmp", "i/4.png": None}
    assert not listing.notes


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["i/1.jpg", "i/1.png", "mask/1.png"], "are two images for one label, .*mask/1.png: remove one"),
        (["i/1.jpg", "mask/1.png", "mask/1.bmp"], "i/1.jpg has two labels, .*mask/1.* and .*mask/1"),
        ([nfd("i/ä.jpg"), "i/ä.jpg", "mask/ä.png"], "are two images for one label"),
    ],
)
def test_what_can_be_paired_in_two_ways_is_refused(root, described, names, says):
    write(root, *names)
    with pytest.raises(SdaError, match=says):
        list_items(described(("i/{n}.{ext}", "mask/{n}.{ext}")), root, "train")


def test_images_may_share_a_label_if_the_layout_says_so(root, described):
    write(root, "1_fog_a.png", "1_fog_b.png", "mask/1.png")
    listing = list_items(described(("{n}_fog_{beta}.png", "mask/{n}.png")), root, "train")
    assert pairs(listing, root) == {"1_fog_a.png": "mask/1.png", "1_fog_b.png": "mask/1.png"}


def test_layouts_and_suffixes_that_are_not_read_are_told(root, described):
    write(root, "i/1.jpg", "i/2.JPG", "i/3.tif", "j/4.jpg", "mask/1.png", "mask/2.png", "mask/3.png", "mask/4.png")
    layouts = described(("i/{n}.jpg", "mask/{n}.png"), ("i/{n}.tif", "mask/{n}.png"), ("j/{n}.jpg", "mask/{n}.png"))
    listing = list_items(layouts, root, "train")
    assert [item.key for item in listing.items] == ["i/1.jpg"] and listing.notes == listing.unread
    suffix, other = listing.unread
    assert suffix.startswith("Mine: 2 images, such as i/2.JPG, are not read") and "write images = 'i/{n}.{ext}'" in suffix
    assert other.startswith("Mine: 1 images, such as j/4.jpg, are not read") and "images = 'j/{n}.jpg'" in other
    found, _ = examine("mine", layouts, root, processes=1)
    assert suffix in found.advice and other in found.advice


def test_alternatives_for_the_same_images_are_not_told(root, described):
    write(root, "i/1.jpg", "mask/1.png", "mask_ids/1.png")
    (root / "again").symlink_to("i")
    layouts = described(("i/{n}.jpg", "mask/{n}.png"), ("i/{n}.jpg", "mask_ids/{n}.png"), ("again/{n}.jpg", "mask/{n}.png"))
    assert list_items(layouts, root, "train").notes == ()


# Accents


def test_accents_stored_in_two_ways_pair(root, described):
    write(root, "größe/ä1.jpg", nfd("größe/ö2.jpg"), nfd("maskü/ä1.png"), "maskü/ö2.png")
    listing = list_items(described(("größe/{n}.jpg", "maskü/{n}.png")), root, "train")
    assert [item.key for item in listing.items] == ["größe/ä1.jpg", "größe/ö2.jpg"], "keys do not depend on the machine"
    assert all(item.label and item.image.exists() for item in listing.items)


def test_lists_and_keys_do_not_depend_on_accents(root, described, tmp_path):
    write(root, "i/ä 1.jpg", nfd("i/ö 2.jpg"), nfd("mask/ä 1.png"), "mask/ö 2.png")
    items = list_items(described(("i/{n}.jpg", "mask/{n}.png")), root, "train").items
    for text in ("i/ö 2.jpg\ni/ä 1.jpg\n", nfd("i/ö 2.jpg\ni/ä 1.jpg\n"), nfd("ö 2\nä 1\n")):
        (tmp_path / "list.txt").write_text(text, encoding="utf-8")
        assert read_keys(tmp_path / "list.txt", items) == ["i/ö 2.jpg", "i/ä 1.jpg"]
    assert sorted(from_indices([1, 0], items, "walk")) == ["i/ä 1.jpg", "i/ö 2.jpg"]
    with pytest.raises(SdaError, match="no name may contain one"):
        unimatch_text(items)


def test_names_that_differ_only_in_accents_keep_two_keys(root):
    write(root, "ä.jpg", nfd("ä.jpg"))
    keys = {item.key: item.image.name for item in list_folder(root).items}
    assert keys == {"ä.jpg": "ä.jpg", nfd("ä.jpg"): nfd("ä.jpg")}


def test_upper_and_lower_case_differ(root, described):
    write(root, "i/P1.jpg", "i/p2.jpg", "mask/p1.png", "mask/p2.png")
    mine = described(("i/{n}.jpg", "mask/{n}.png"))
    listing = list_items(mine, root, "train")
    assert pairs(listing, root) == {"i/P1.jpg": None, "i/p2.jpg": "mask/p2.png"}
    assert find_orphans(mine, root, "train", listing) == ["mask/p1.png"]


# Descriptors


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        ("{n}.{ext}", "{n}.{ext}", "labels and images are the same files"),
        ("{ext}/{n}.png", None, "write .{ext} at the end"),
        ("{n}_{ext}", None, "write .{ext} at the end"),
        ("{a}_{b}/{a}_{c}.png", None, "uses {a} twice, first in '{a}_{b}' beside other words"),
        ("{a}_{a}.png", None, "uses {a} twice"),
    ],
)
def test_unclear_patterns_are_refused(described, images, labels, says):
    with pytest.raises(SdaError, match=says):
        described((images, labels))
