"""Unusual and faulty input in the doctor and in training: it is read correctly or named in one line."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
from PIL import Image

from sda.data.descriptor import load
from sda.data.files import read_image
from sda.data.inspect.doctor import examine
from sda.data.inspect.encoding import check_encoding
from sda.data.listing import list_folder, list_items
from sda.errors import SdaError

NORTH = "pictures/train/north/00.jpg"


@pytest.fixture
def world(own_world):
    return own_world


@pytest.fixture
def field(world):
    return world.root / "field"


@pytest.fixture
def train(sda, world):
    """Train once through all target images; returns the exit status and the output."""
    flags = ["--steps", 4, "--labels", "all", "--source", "", "--device", "cpu"]
    return lambda *more: sda("train", world.recipe, *flags, *more)


def label_of(image: Path) -> Path:
    return Path(str(image).replace("pictures", "labels").replace(".jpg", ".png"))


def diagnose(world):
    found, _ = examine(str(world.field), load(str(world.field)), world.root / "field", processes=1)
    return found


# Unusable files: the doctor names them with a reason, and training then skips them


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def web_page(path):
    path.write_text("<html>404 not found</html>")


def folder(path):
    path.unlink()
    path.mkdir()


def broken_link(path):
    path.unlink()
    path.symlink_to("nowhere.png")


def circular_link(path):
    path.unlink()
    path.symlink_to(path.name)


def other_size(path):
    with Image.open(path) as image:
        image.resize((40, 48), Image.Resampling.NEAREST).save(path)


@pytest.mark.parametrize("spoil", [empty, truncate, web_page, folder, broken_link, other_size])
def test_unusable_images_are_skipped(world, field, train, spoil):
    spoil(field / NORTH)
    status, shown = train()
    assert status == 2 and NORTH in shown.err and len(shown.err.strip().splitlines()[-1]) < 500
    [problem] = diagnose(world).bad
    assert problem.key == NORTH and problem.kind == ("size mismatch" if spoil is other_size else "unreadable image")
    status, shown = train("--out", "run")
    assert status == 0 and "1 pairs that sda doctor found bad are skipped" in shown.err


@pytest.mark.parametrize("spoil", [empty, truncate, web_page, other_size])
def test_unusable_labels_are_skipped(world, field, train, spoil):
    spoil(label_of(field / NORTH))
    assert train()[0] == 2
    [problem] = diagnose(world).bad
    assert problem.key == NORTH and problem.kind == ("size mismatch" if spoil is other_size else "unreadable label")
    assert train("--out", "run")[0] == 0


@pytest.mark.parametrize("spoil", [broken_link, circular_link, folder])
def test_labels_that_are_not_files_count_as_missing(world, field, train, spoil):
    """The image is unlabelled, and the doctor reports it."""
    spoil(label_of(field / NORTH))
    assert [problem.kind for problem in diagnose(world).problems if problem.key == NORTH] == ["no label"]
    assert train("--out", "run")[0] == 0
    assert NORTH not in Path("run/splits/labelled.txt").read_text()


# Unusual but valid files: read correctly


def as_16_bit_grey(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def as_rgba(image):
    image = image.convert("RGBA")
    image.putalpha(7)
    return image


MODES = {
    "16 bit": (as_16_bit_grey, "png", 1),
    "RGBA": (as_rgba, "png", 0),
    "grey": (lambda image: image.convert("L"), "png", 1),
    "grey JPEG": (lambda image: image.convert("L"), "jpg", 4),
    "palette": (lambda image: image.quantize(250), "png", 12),
    "CMYK JPEG": (lambda image: image.convert("CMYK"), "jpg", 4),
}


@pytest.mark.parametrize("mode", MODES)
def test_unusual_images_are_read_correctly(tmp_path, mode):
    """The picture is smooth, so that JPEG changes little. Grey modes are compared with the grey of the original."""
    convert, suffix, tolerance = MODES[mode]
    rows, columns = np.mgrid[:48, :64]
    original = Image.fromarray(np.stack([rows * 5, columns * 3, rows + columns], axis=2).astype(np.uint8))
    path = tmp_path / f"image.{suffix}"
    convert(original).save(path, **({"quality": 98} if suffix == "jpg" else {}))
    expected = original.convert("L").convert("RGB") if mode in ("16 bit", "grey", "grey JPEG") else original
    found = read_image(path)
    assert found.mode == "RGB" and found.size == (64, 48)
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected).astype(int))
    assert difference.mean() <= tolerance / 2 and difference.max() <= max(tolerance * 3, tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_training_accepts_unusual_images(world, field, train, mode):
    convert, _, _ = MODES[mode]
    for path in (field / "pictures/train").rglob("*.jpg"):
        with Image.open(path) as image:
            converted = convert(image.convert("RGB"))
        converted.save(path, format="JPEG" if "JPEG" in mode else "PNG")  # the suffix does not matter
    assert diagnose(world).bad == []
    assert train("--out", "run")[0] == 0


def test_a_rotated_photo_matches_its_label(world, field, train):
    """EXIF rotates the image by a quarter turn to the size of its label. If EXIF rotates it to another size, it is refused."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(field / NORTH) as image:
        lying = image.transpose(Image.Transpose.ROTATE_90)
        upright = image.copy()
    lying.save(field / NORTH, exif=exif, quality=95)
    assert diagnose(world).bad == []
    assert np.abs(np.asarray(read_image(field / NORTH)).astype(int) - np.asarray(upright).astype(int)).mean() < 8
    upright.save(field / NORTH, exif=exif)
    [problem] = diagnose(world).bad
    assert problem.kind == "size mismatch" and f"the label is 64x48, its image {field / NORTH} is 48x64: EXIF" in problem.detail
    status, shown = train("--doctor", "false", "--out", "run")
    assert status == 2 and "EXIF orientation 6 turns the image, but its label fits the image as it is stored; turn" in shown.err


def test_an_image_that_exif_turns_to_the_size_of_its_label_is_reported(world, field, train):
    """Orientation 3 turns the image upside down, and nothing says whether its label is, too."""
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(field / NORTH) as image:
        image.copy().save(field / NORTH, exif=exif)
    found = diagnose(world)
    assert found.bad == [] and [(problem.kind, problem.key) for problem in found.problems] == [("orientation", NORTH)]
    assert f"{field / NORTH}: EXIF orientation 3 turns or mirrors the image, but not its label" in found.problems[0].detail


def test_links_are_followed(world, field, train, tmp_path):
    """Links to a folder and to single files of a dataset elsewhere."""
    shutil.move(field / "pictures/train/north", tmp_path / "elsewhere")
    (field / "pictures/train/north").symlink_to(tmp_path / "elsewhere")
    for path in list((field / "labels/train/south").iterdir()):
        shutil.move(path, tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert diagnose(world).splits["train"] == {"images": 8, "labelled": 8, "bad": 0, "encoding": "ids"}
    assert train("--out", "run")[0] == 0
    assert len(list_folder(field / "pictures/train").items) == 8


def test_unusual_names_are_read(world, field, train, sda):
    """The root, folders and files have spaces, non-ASCII letters, brackets and a leading # in their names."""
    root = world.root / "größe [1] 図"
    shutil.move(field, root)
    for kind in ("pictures", "labels"):
        shutil.move(root / kind / "train/north", root / kind / "train/#nörd lich*")
        for path in list((root / kind / "train/#nörd lich*").iterdir()):
            path.rename(path.with_name(f"a b {path.stem} ü{path.suffix}"))
    assert train("--target-root", root, "--out", "run")[0] == 0
    listed = Path("run/splits/labelled.txt").read_text(encoding="utf-8")
    assert "pictures/train/#nörd lich*/a b 00 ü.jpg" in listed
    flags = ["--target-root", root, "--split", Path("run/splits/labelled.txt").absolute(), "--out", "again"]
    assert train(*flags)[0] == 0
    assert Path("again/splits/labelled.txt").read_text(encoding="utf-8") == listed
    status, shown = sda("doctor", world.field, "--root", root, "--json")
    assert status == 0 and json.loads(shown.out)["splits"]["train"]["images"] == 8


def test_names_that_are_not_utf_8(world, field, train, sda):
    """Files may have such names. A recipe cannot hold the path of a folder that has one: it is refused before any work."""
    for kind, suffix in (("pictures", "jpg"), ("labels", "png")):
        (field / kind / f"train/north/00.{suffix}").rename(field / kind / f"train/north/\udce400.{suffix}")
    assert train("--labels", "all", "--out", "run")[0] == 0
    assert b"north/\xe400.jpg" in Path("run/splits/labelled.txt").read_bytes()
    assert train("--split", "run/splits/labelled.txt", "--out", "again")[0] == 0
    assert sda("features", "run", "--device", "cpu")[0] == 0
    with h5py.File("run/features.h5") as file:
        assert any(path.endswith(b"/\xe400.jpg") for path in file["images/path"][:])
    root = shutil.move(field, world.root / "f\udce4ld")
    status, shown = train("--target-root", root, "--out", "third")
    assert status == 2 and "target_root = " in shown.err and "not UTF-8" in shown.err and not Path("third").exists()
    field.symlink_to(root)
    assert train("--out", "fourth")[0] == 0


def test_datasets_with_equal_file_names_are_kept_apart(world, field, sda):
    """Source and target have files with the same names, which must not be confused."""
    twin = world.root / "twin"
    shutil.copytree(field, twin)
    for path in twin.rglob("*.jpg"):
        with Image.open(path) as image:
            Image.fromarray(255 - np.asarray(image)).save(path, format="JPEG")
    label_of(twin / NORTH).write_bytes(b"")
    found, _ = examine(str(world.field), load(str(world.field)), twin, processes=1)
    assert [problem.key for problem in found.bad] == [NORTH]
    assert diagnose(world).bad == [], "the findings on one folder do not affect the other"
    flags = ["--source", world.field, "--source-root", twin, "--labels", "all", "--steps", 1, "--device", "cpu"]
    assert sda("train", world.recipe, *flags, "--out", "run")[0] == 0
    lists = {name: Path(f"run/splits/{name}.txt").read_text() for name in ("source", "labelled")}
    assert NORTH in lists["labelled"] and NORTH not in lists["source"]


# Folders


@pytest.fixture
def open_field(field):
    """A copy of the target that every user of the machine can read."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield Path(shutil.copytree(field, place / "field"))
    shutil.rmtree(place)


@contextlib.contextmanager
def closed(folder):
    """Make `folder` unreadable in the context. Permissions do not apply to root, so root becomes the user nobody."""
    folder.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.parametrize("name", ["pictures/train/north", "pictures/train", "pictures", "labels/train/south", "."])
def test_an_unreadable_folder_is_named(world, open_field, name):
    """glob would skip it silently."""
    described = load(str(world.field))
    with closed(open_field / name), pytest.raises(SdaError, match=rf"{open_field / name}.*\(Permission denied\); fix its perm"):
        list_items(described, open_field, "train")
    assert len(list_items(described, open_field, "train").items) == 8


def test_an_unreadable_folder_of_photos_is_named(open_field):
    with closed(open_field / "pictures/train/north"), pytest.raises(SdaError, match="train/north: cannot be read"):
        list_folder(open_field / "pictures")


def test_an_unwritable_cache_is_ignored(world, field, train, monkeypatch, caplog):
    (world.folder / "file").write_text("")
    monkeypatch.setenv("SDA_CACHE", str(world.folder / "file"))
    assert train("--out", "run")[0] == 0
    assert "so the scan is not cached" in caplog.text


# No labels


def test_a_target_without_labels_is_reported(world, field, train, sda):
    shutil.rmtree(field / "labels/train")
    status, shown = train()
    assert status == 2 and "none of the 8 target training images has a label file" in shown.err
    status, shown = sda("train", world.recipe, "--labels", 3, "--device", "cpu")
    assert status == 2 and "only 0 of the 8 target training images have labels" in shown.err


def test_a_target_without_validation_labels_is_reported(world, field, train):
    shutil.rmtree(field / "labels/val")
    status, shown = train("--val-share", 0)
    assert status == 2 and "none of the 3 images of val in " in shown.err
    assert "such as pictures/val/west/08.jpg, has a label file; or hold out training images: sda split " in shown.err


# Encodings are checked before training


def write_gta5(root, values, count=10):
    for index in range(count):
        image, label = tiny.draw(index, values, [(200, 200, 255), (180, 90, 60), (90, 90, 90)])
        tiny.save(image, root / f"images/{index:05d}.png")
        tiny.save(label, root / f"labels/{index:05d}.png")
    return root


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([7, 11, 23], ""),  # ids
        ([0, 2, 255], "the labels are train ids, not ids"),
        ([0, 2, 250], "the labels are train ids, not ids"),
        (
            [0, 1, 2],
            "every label could be ids or train ids: 100% of the pixels are void if they are ids, 0% if they are train",
        ),
        ([7, 8, 11], ""),  # could be either, but few pixels are void, so the descriptor is right
    ],
)
def test_encoding_is_checked_before_training(tmp_path, monkeypatch, values, outcome):
    monkeypatch.setenv("SDA_CACHE", str(tmp_path / "cache"))
    root, described = write_gta5(tmp_path / "gta5", values), load("gta5")
    listing = list_items(described, root, "train")
    if outcome.startswith("the labels are"):
        with pytest.raises(SdaError, match=outcome):
            check_encoding("gta5", described, listing, root)
    else:
        doubt = check_encoding("gta5", described, listing, root)
        assert doubt.startswith(outcome) and bool(doubt) == bool(outcome)


def test_training_refuses_labels_in_another_encoding(world, sda):
    """The labels of the source were converted to train ids, but the descriptor says ids."""
    for path in (world.root / "toy").rglob("*_mask.png"):
        with Image.open(path) as image:
            lut = np.full(256, 255, np.uint8)
            lut[[7, 8, 9, 10]] = range(4)
            Image.fromarray(lut[np.asarray(image)]).save(path)
    status, shown = sda("train", world.recipe, "--device", "cpu")
    assert status == 2 and "the labels are train ids, not ids as the descriptor says" in shown.err
    assert not Path("runs/tiny/last.pt").exists()
