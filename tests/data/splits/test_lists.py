"""Split lists: every usual format is read; ours and UniMatch's are written."""

import os
import unicodedata
from pathlib import Path

import pytest

from sda.data.item import Item
from sda.data.splits.choose import choose
from sda.data.splits.lists import list_hash, list_text, read_entries, read_keys, unimatch_text, write_list
from sda.errors import SdaError

NESTED = "leftImg8bit_trainvaltest/leftImg8bit/train"


@pytest.fixture
def listed(tmp_path):
    def write(text):
        path = tmp_path / "list.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def make(*keys, labels="gt"):
    return [Item(key, Path("/data/set") / key, Path("/data/set") / labels / Path(key).with_suffix(".png")) for key in keys]


def entries(path):
    return [entry for _, entry in read_entries(path)]


def test_lines_are_read_in_common_encodings(listed):
    assert entries(listed("# made by hand\r\n a b.png \r\n\r\n./#1.png\r\nc.png")) == ["a b.png", "./#1.png", "c.png"]
    assert entries(listed("\ufeffa.png\rb.png")) == ["a.png", "b.png"]
    assert entries(listed("größe.png\n日本.png\n".encode("utf-16"))) == ["größe.png", "日本.png"]
    assert entries(listed(b"gr\xf6\xdfe.png\n")) == [os.fsdecode(b"gr\xf6\xdfe.png")], "a name that is not UTF-8"
    assert entries(listed("line\u2028separator.png")) == ["line\u2028separator.png"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "the split list is empty"),
        ("# nothing\n\n", "the split list is empty"),
        ("a.png\n\nb.png\na.png\n", "line 4: 'a.png' is listed twice: line 1 is the same"),
        (b"a.png\n\x89PNG\x00\x00", "line 2 is not a path: a split list is a text file"),
        (b"\xff\xfea", "line 1 is not a path"),
        ("a.png\n" + "x" * 10_001, "line 2 is not a path"),
    ],
)
def test_files_that_are_not_lists_are_refused(listed, text, says):
    path = listed(text)
    with pytest.raises(SdaError, match=says) as caught:
        read_entries(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        # our format
        ("images/train/a.png", "images/train/a.png"),
        ("./images/train/a.png", "images/train/a.png"),
        ("images/train/b c.png", "images/train/b c.png"),
        ("./#1.png", "#1.png"),
        ("images\\train\\a.png", "images/train/a.png"),
        # the format of UniMatch and of the DeepLab lists
        ("images/train/a.png labels/train/a.png", "images/train/a.png"),
        ("images/train/b c.png labels/train/b c.png", "images/train/b c.png"),
        ("/images/train/a.png /labels/train/a.png", "images/train/a.png"),
        ("images/train/a.png\tlabels/train/a.png", "images/train/a.png"),
        # names
        ("2007_000032", "images/train/2007_000032.jpg"),
        ("2007_000032.jpg", "images/train/2007_000032.jpg"),
        ("frame.0001", "images/train/frame.0001.png"),
        ("b c", "images/train/b c.png"),
        ("train/a", "images/train/a.png"),
        # other leading folders
        ("train/a.png", "images/train/a.png"),
        ("/home/me/set/images/train/a.png", "images/train/a.png"),
        ("../set/images/train/a.png", "images/train/a.png"),
        ("imgs/train/a.png", "images/train/a.png"),
        ("leftImg8bit/train/ulm/ulm_1.png", f"{NESTED}/ulm/ulm_1.png"),
        ("leftImg8bit/train/ulm/ulm_1.png gtFine/train/ulm/ulm_1_gtFine_labelTrainIds.png", f"{NESTED}/ulm/ulm_1.png"),
        ("leftImg8bit_512/train/ulm/ulm_1.png", f"{NESTED}/ulm/ulm_1.png"),
        # macOS writes two characters for one letter
        (unicodedata.normalize("NFD", "images/train/größe.png"), "images/train/größe.png"),
    ],
)
def test_entries_in_every_form_are_matched(listed, entry, key):
    names = ("a.png", "b c.png", "2007_000032.jpg", "frame.0001.png", "größe.png")
    items = make("#1.png", *(f"images/train/{name}" for name in names), f"{NESTED}/ulm/ulm_1.png")
    assert read_keys(listed(f"# split\r\n{entry}\r\n"), items) == [key]


def test_order_is_that_of_the_list(listed):
    assert read_keys(listed("c\nb\na\n"), make("a.png", "b.png", "c.png")) == ["c.png", "b.png", "a.png"]


def test_whole_paths_take_precedence(listed):
    items = make("x/a.png", "y/x/a.png", "a", "a b.png")
    assert read_keys(listed("x/a.png\na b.png\na\n"), items) == ["x/a.png", "a b.png", "a"]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("a.png", ("x/a.png", "y/a.png")),
        ("a", ("x/a.png", "y/a.png")),
        ("c", ("x/c.jpg", "x/c.png")),
        ("x/c", ("x/c.jpg", "x/c.png")),
        ("x/a.png y/a.png", None),  # UniMatch's format: the first path counts
        ("a b", ("x/a.png", "y/a.png")),
    ],
)
def test_ambiguous_entries_are_refused(listed, entry, found):
    items = make("x/a.png", "y/a.png", "x/c.jpg", "x/c.png")
    path = listed(f"x/c.png\n\n{entry}\n")
    if found is None:
        assert read_keys(path, items) == ["x/c.png", "x/a.png"]
        return
    with pytest.raises(SdaError) as caught:
        read_keys(path, items)
    says = f"{path}: line 3: {entry!r} matches 2 of the 4 images, such as {found[0]!r} and {found[1]!r}: write the whole path"
    assert str(caught.value) == says


@pytest.mark.parametrize(
    "entry",
    [
        "images/val/a.png",
        "val/ulm/u.png",
        "val2017/ulm/u.png",
        "elsewhere/a.png",  # only the name matches
        "images/train/A.png",
        "rain/a.png",
        "images/train/a.jpg",
        "images/train/b.png gt/b.png",
        "..",
        "/",
        "/ " * 4000,
    ],
)
def test_unknown_entries_are_refused(listed, entry):
    path = listed(f"# one\n{entry}\n")
    with pytest.raises(SdaError) as caught:
        read_keys(path, make("images/train/a.png", "train/ulm/u.png"), "target images")
    assert str(caught.value).startswith(f"{path}: line 2: {entry.strip()!r} is not among the 2 target images, such as 'images/")


def test_an_image_listed_twice_is_refused(listed):
    with pytest.raises(SdaError, match=r"line 2: 'a' is listed twice: line 1 is 'x/a.png' too"):
        read_keys(listed("x/a.png\na\n"), make("x/a.png", "x/b.png"))


def test_choose_accepts_every_form(listed):
    items = make("x/a.png", "x/b.png")
    assert choose(items, 1, 0, str(listed("b\nx/a.png gt/x/a.png\n"))) == items[::-1]
    bare = [Item("x/a.png", Path("/data/set/x/a.png"), None)]
    with pytest.raises(SdaError, match="'x/a.png' has no label file"):
        choose(bare, 1, 0, str(listed("a")))


# Writing


def test_written_lists_are_read_back(tmp_path):
    items = make("x/a.png", "#1.png", "größe 日本.png", os.fsdecode(b"\xff.png"))
    path = tmp_path / "splits" / "100.txt"
    write_list(path, items)
    assert path.read_bytes() == "x/a.png\n./#1.png\ngröße 日本.png\n".encode() + b"\xff.png\n"
    assert read_keys(path, items) == [item.key for item in items]
    assert [file.name for file in path.parent.iterdir()] == ["100.txt"], "no temporary file is left"


def test_lists_can_be_written_from_keys(tmp_path):
    write_list(tmp_path / "a.txt", ["a.png", "b.png"])
    write_list(tmp_path / "b.txt", make("a.png", "b.png"))
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes() == b"a.png\nb.png\n"
    assert list_hash(["a.png"]) == list_hash(make("a.png")) and list_text(["a.png"]) == "a.png\n"


def test_lists_in_the_unimatch_format(tmp_path):
    items = make("x/a.jpg", "x/b.jpg")
    write_list(tmp_path / "labeled.txt", items, labels=True)
    assert (tmp_path / "labeled.txt").read_text() == "x/a.jpg gt/x/a.png\nx/b.jpg gt/x/b.png\n"
    assert read_keys(tmp_path / "labeled.txt", items) == ["x/a.jpg", "x/b.jpg"]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (Item("a.png", Path("/set/a.png"), None), "/set/a.png: has no label file"),
        (
            Item("a b.png", Path("/set/a b.png"), Path("/set/gt/a b.png")),
            "'a b.png': UniMatch's format separates image and label by",
        ),
        (Item("a.png", Path("/set/a.png"), Path("/other/a.png")), "/other/a.png: is not below /set"),
    ],
)
def test_lists_that_unimatch_cannot_read_are_refused(item, says):
    with pytest.raises(SdaError, match=says):
        unimatch_text([item])


def test_existing_files_are_not_overwritten(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("precious")
    with pytest.raises(SdaError, match=r"list.txt: it exists and is not overwritten"):
        write_list(path, ["a.png"])
    assert path.read_text() == "precious"
    (tmp_path / "link.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(SdaError, match="it exists and is not overwritten"):
        write_list(tmp_path / "link.txt", ["a.png"])


@pytest.mark.parametrize("name", ["two\nlines.png", "ends with a space ", "nul\0.png"])
def test_names_that_lists_cannot_contain_are_refused(tmp_path, name):
    with pytest.raises(SdaError, match="cannot be written as one line of a list"):
        write_list(tmp_path / "list.txt", ["a.png", name])
    assert not list(tmp_path.iterdir())


def test_empty_lists_are_not_written(tmp_path):
    with pytest.raises(SdaError, match=r"list.txt: no images to list"):
        write_list(tmp_path / "list.txt", [])
    assert not list(tmp_path.iterdir())


def test_lists_are_written_atomically(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SdaError, match=r"list.txt: cannot be written: .*No space left"):
        write_list(tmp_path / "list.txt", ["a.png"])
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder_is_reported(tmp_path):
    (tmp_path / "splits").write_text("")
    with pytest.raises(SdaError, match="cannot be written"):
        write_list(tmp_path / "splits" / "list.txt", ["a.png"])
