"""Choosing labelled images by rule or by list, and the check that streams share no image."""

import hashlib
import os
import shutil

import pytest

from sda.data.item import Item
from sda.data.splits.choose import check_disjoint, choose, find_shared
from sda.data.splits.lists import list_hash, list_text, read_entries
from sda.data.splits.pickled import read_pickle
from sda.data.splits.rules import rank
from sda.errors import SdaError


@pytest.fixture
def items(tmp_path):
    """Eight images of different content; 3 and 5 have no label."""
    made = []
    for n in range(8):
        path = tmp_path / "set" / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"picture %d" % n)
        made.append(Item(f"{n}.png", path, None if n in (3, 5) else path))
    return made


def keys(chosen):
    return [item.key for item in chosen]


def listed(tmp_path, text):
    path = tmp_path / "list.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


# The rule


def test_counts_are_nested(items):
    chosen = [keys(choose(items, count, 0)) for count in range(7)]
    assert chosen[6] == rank([item.key for item in items if item.label], 0)
    assert all(chosen[count] == chosen[6][:count] for count in range(7))


def test_a_new_image_keeps_the_order_of_the_others(items):
    fewer = keys(choose(items[1:], 4, 0))
    more = keys(choose(items, 4, 0))
    assert [key for key in more if key != "0.png"] == [key for key in fewer if key in more]


def test_all_takes_every_labelled_image(items):
    assert keys(choose(items, "all", 0)) == ["0.png", "1.png", "2.png", "4.png", "6.png", "7.png"]


def test_more_labels_than_images_are_refused(items):
    with pytest.raises(SdaError, match="labels = 7, but only 6 of the 8 target training images have labels"):
        choose(items, 7, 0)


# Lists


def test_a_list_replaces_the_rule(items, tmp_path):
    assert keys(choose(items, 1, 0, listed(tmp_path, "7.png\n\n  1.png \r\n0.png"))) == ["7.png", "1.png", "0.png"]


def test_a_list_with_byte_order_mark_is_read(items, tmp_path):
    path = listed(tmp_path, "\ufeff7.png\n")  # as Windows Notepad writes it
    assert keys(choose(items, 1, 0, path)) == ["7.png"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8.png\n", "'8.png' is not among the 8 target training images, such as '0.png'"),
        ("1.png\n2.png\n1.png\n", "'1.png' is listed twice"),
        ("", "the split list is empty"),
        ("\n \n", "the split list is empty"),
        ("1.png\n3.png\n", "'3.png' has no label file"),
    ],
)
def test_faulty_lists_are_refused(items, tmp_path, text, says):
    with pytest.raises(SdaError, match=says) as caught:
        choose(items, 1, 0, listed(tmp_path, text))
    assert str(caught.value).startswith(str(tmp_path / "list.txt"))


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(SdaError, match="nowhere.txt: the split list cannot be read"):
        read_entries(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "huge"])
def test_what_cannot_be_a_list_is_refused_at_once(tmp_path, kind):
    """Reading a pipe or /dev/zero would never end."""
    path = tmp_path / "list.txt"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(10 << 30)
    for read in (read_entries, read_pickle):
        with pytest.raises(SdaError, match=r"list.txt: .*(folder|pipe|device|larger than)"):
            read(path)


def test_a_written_list_is_read_back(items, tmp_path):
    assert keys(choose(items, 0, 0, listed(tmp_path, list_text(items[:3])))) == keys(items[:3])


def test_hash_of_a_list_depends_on_its_order(items):
    assert list_hash(items[:2]) == hashlib.sha256(b"0.png\n1.png\n").hexdigest()
    assert list_hash(items[:2]) != list_hash(items[1::-1])


# No shared images


def test_different_images_are_disjoint(items):
    assert find_shared(items[:4], items[4:]) == []
    check_disjoint("validation", items[:4], "labelled", items[4:])
    check_disjoint("validation", [], "labelled", items)


def same_file(original, other):
    return original


def other_spelling(original, other):
    return original.parent / ".." / original.parent.name / original.name


def symlink(original, other):
    other.symlink_to(original)
    return other


def hard_link(original, other):
    other.hardlink_to(original)
    return other


def copy(original, other):
    shutil.copy(original, other)
    return other


@pytest.mark.parametrize("kind", [same_file, other_spelling, symlink, hard_link, copy])
def test_shared_images_are_refused(items, tmp_path, kind):
    path = kind(items[2].image, tmp_path / "elsewhere.png")
    twin = Item("elsewhere.png", path, None)
    assert find_shared(items, [twin]) == [(items[2], twin)]
    with pytest.raises(SdaError, match="is the same image as") as caught:
        check_disjoint("validation", items, "unlabelled", [twin])
    message = str(caught.value)
    assert str(path) in message and str(items[2].image) in message
    assert "(unlabelled)" in message and "(validation)" in message


def test_files_of_equal_size_may_differ(items, tmp_path):
    path = tmp_path / "other.png"
    path.write_bytes(b"picture x")
    assert find_shared(items, [Item("other.png", path, None)]) == []
