"""The shelves: the datasets and recipes of the package, and how they are found."""

import os

import pytest

from sda import shelf
from sda.data import descriptor
from sda.errors import SdaError


def test_package_contains_its_recipes_and_datasets():
    streets = [f"streets-{kind}" for kind in ("source-only", "target-only", "ssda", "ssl")]
    real = [
        f"{pair}-{kind}"
        for pair in ("camvid-idd_lite", "airsim-camvid")
        for kind in ("source-only", "target-only", "joint", "ssda", "oracle")
    ]
    assert {*streets, *real, "gta5-cityscapes-ssda", "cityscapes-ssl"} <= set(shelf.names("recipes"))
    assert {"gta5", "cityscapes", "camvid", "idd_lite", "streets-game", "streets-camera"} <= set(shelf.names("datasets"))


@pytest.mark.parametrize("name", shelf.names("datasets"))
def test_dataset_loads(name):
    loaded = descriptor.load(name)
    assert loaded.home and loaded.licence and loaded.download
    assert len(loaded.table().names) > 1


@pytest.mark.parametrize("name", shelf.names("datasets/classes"))
def test_class_table_loads(name):
    assert descriptor.class_table(name).title


@pytest.mark.parametrize("kind", ["datasets", "recipes"])
def test_shelves_contain_only_toml_files(kind):
    assert {path.suffix for path in shelf.shelf(kind).rglob("*") if path.is_file()} == {".toml"}


def test_find_by_name_and_by_path(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text("")
    assert shelf.find("recipes", str(mine)) == mine
    assert shelf.find("recipes", "streets-ssda").name == "streets-ssda.toml"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("streets-sda", "did you mean 'streets-ssda'"),
        ("xyz", "known: .*streets-ssda"),
        ("absent.toml", "absent.toml: no such file"),
        ("../recipes/streets-ssda", "is not in recipes"),
        ("", "is not in recipes"),
    ],
)
def test_find_suggests_known_names(name, says):
    with pytest.raises(SdaError, match=says):
        shelf.find("recipes", name)


@pytest.mark.parametrize("kind", ["device", "folder", "pipe", "large", "long name"])
def test_files_that_are_no_small_text_are_refused_at_once(tmp_path, kind):
    path = tmp_path / ("x" * 300 + ".toml" if kind == "long name" else "mine.toml")
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(2**30)
    says = {"large": "larger than 4 MiB", "long name": "no such file"}.get(kind, "a folder, device or pipe")
    with pytest.raises(SdaError, match=says):
        shelf.parse(shelf.find("recipes", str(path)))


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, content):
    (tmp_path / "mine.toml").write_bytes(content + b"a = 1")
    assert shelf.parse(tmp_path / "mine.toml") == {"a": 1}


@pytest.mark.parametrize("content", ["a = 1" + "0" * 5000, "a = " + "[" * 20_000])
def test_toml_that_python_cannot_hold_is_refused(tmp_path, content):
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(SdaError, match="not valid TOML"):
        shelf.parse(tmp_path / "mine.toml")


def test_tables_in_each_other_are_refused_in_a_short_message(tmp_path):
    (tmp_path / "mine.toml").write_text("title" + ".a" * 3000 + " = 1")
    with pytest.raises(SdaError, match="mine.toml: title = ") as caught:
        shelf.read(tmp_path / "mine.toml", descriptor.Descriptor)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_toml_as_editors_save_it(tmp_path, encoding, newline):
    path = tmp_path / "mine.toml"
    path.write_text('title = "größe"\nvoid = [1]\n', encoding=encoding, newline=newline)
    assert shelf.parse(path) == {"title": "größe", "void": [1]}


@pytest.mark.parametrize(
    ("encoding", "says"), [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16"), ("utf-16-be", "UTF-16"), ("latin-1", "not UTF-8")]
)
def test_toml_in_other_encodings_is_refused(tmp_path, encoding, says):
    path = tmp_path / "mine.toml"
    path.write_text('title = "größe"\n', encoding=encoding)
    with pytest.raises(SdaError, match=f"mine.toml: cannot be read: it is {says}.*, but must be UTF-8; save it again as UTF-8"):
        shelf.parse(path)
