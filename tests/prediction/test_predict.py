"""sda predict: its files contain the predictions of the network, and other files do not change."""

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from sda.data import descriptor as descriptors
from sda.data.files import FileError, LabelCodec
from sda.pictures import colorize
from sda.prediction import pipeline, plan
from sda.prediction.content import Content
from sda.runs import trained
from sda.system.signals import Interrupted

CPU = torch.device("cpu")
BESIDES = {"classes.png", "predictions.jsonl"}  # files in each prediction folder, besides the predictions


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """A run whose label files have the ids 7 to 10; no image has class 10."""
    toy = world.toy.read_text()
    out = tmp_path_factory.mktemp("runs") / "a"
    flags = ["--source", "", "--target", world.toy, "--labels", 3, "--learning-rate", 0.01, "--steps", 2]
    with pytest.MonkeyPatch.context() as patch:
        assert tiny.run_main(patch, "train", world.recipe, *flags, "--out", out, "--device", "cpu") == 0
    assert 'ids = {7 = "street", 8 = "house", 9 = "man", 10 = "cloud"}' in toy
    return out


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """A small Cityscapes with random images: 2 for training and 11 for validation, two of them with other sizes."""
    root = tmp_path_factory.mktemp("data") / "cityscapes"
    ids = [int(value) for value in descriptors.load("cityscapes").ids] + [0, 4]
    for index in range(13):
        random = np.random.default_rng(index)
        split, shape = ("train", (48, 96)) if index < 2 else ("val", {5: (40, 80), 6: (44, 86)}.get(index, (96, 192)))
        place = f"{split}/aachen/aachen_{index:06d}_000019"
        coarse = random.integers(0, len(ids), (4, 6))
        label = np.array(ids, np.uint8)[coarse].repeat(shape[0] // 4, axis=0).repeat(shape[1] // 6 + 1, axis=1)[:, : shape[1]]
        image = random.integers(0, 256, (4, 6, 3)).repeat(shape[0] // 4, axis=0).repeat(shape[1] // 6 + 1, axis=1)[:, : shape[1]]
        tiny.save(
            (image // 2 + random.integers(0, 128, image.shape)).astype(np.uint8), root / f"leftImg8bit/{place}_leftImg8bit.png"
        )
        tiny.save(label, root / f"gtFine/{place}_gtFine_labelIds.png")
    return root


@pytest.fixture(scope="module")
def city(world, town, tmp_path_factory):
    """A run in the classes of Cityscapes with few steps, so that its network predicts many classes."""
    out = tmp_path_factory.mktemp("runs") / "city"
    flags = ["--source", "", "--target", "cityscapes", "--labels", 2, "--size", "[48, 96]", "--steps", 1, "--learning-rate", 1e-5]
    with pytest.MonkeyPatch.context() as patch:
        assert tiny.run_main(patch, "train", world.recipe, "--root", town.parent, *flags, "--out", out, "--device", "cpu") == 0
    return out


@pytest.fixture
def photos(tmp_path):
    """A folder tree with many kinds of valid images and a text file."""
    folder = tmp_path / "photos"
    picture = tiny.draw(1, [0, 0, 0], [(200, 200, 255), (180, 90, 60), (90, 90, 90)])[0]
    tiny.save(picture, folder / "a.png")
    tiny.save(picture.repeat(3, axis=0).repeat(3, axis=1), folder / "b/large.JPG")
    tiny.save(picture[..., 0], folder / "b/grey.png")
    tiny.save(picture[:33, :37], folder / "b/c/odd size.webp")
    turned = Image.fromarray(picture)
    turned.getexif()[0x0112] = 6  # the top of the scene is on the right
    turned.save(folder / "turned.jpg", exif=turned.getexif())
    (folder / "notes.txt").write_text("not an image")
    return folder


def spoil(path, left=0.5):
    path.write_bytes(path.read_bytes()[: round(left * path.stat().st_size)])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


# Contents of the outputs


@pytest.mark.parametrize("size", ["eval", "fit"])
def test_cityscapesscripts_compute_the_iou_of_eval(sda, city, town, tmp_path, monkeypatch, size):
    evaluation = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    mine = shutil.copytree(city, tmp_path / "city")
    status, shown = sda("eval", mine, "--json", "--device", "cpu")
    assert status == 0, shown.err
    (score,) = json.loads(shown.out)
    images = town / "leftImg8bit/val"
    status, shown = sda(
        "predict", city, images, "--as", "cityscapes", "--size", size, "--out", tmp_path / "out", "--device", "cpu"
    )
    assert status == 0, shown.err
    assert sorted(tiny.files(tmp_path / "out/cityscapes")) == sorted(tiny.files(images))  # the same folders and names
    truth = sorted(map(str, (town / "gtFine/val").rglob("*_labelIds.png")))
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path / "out/cityscapes"))
    for name, value in {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True, "predictionPath": None}.items():
        monkeypatch.setattr(evaluation.args, name, value)
    monkeypatch.setattr(evaluation.args, "predictionWalk", None)
    theirs = evaluation.evaluateImgLists(
        [evaluation.getPrediction(evaluation.args, one) for one in truth], truth, evaluation.args
    )
    assert {name: value and value / 100 for name, value in score["iou"].items()} == {
        name: pytest.approx(theirs["classScores"][name], abs=1e-12) for name in score["iou"]
    }
    assert score["miou"] == pytest.approx(100 * theirs["averageScoreClasses"], abs=1e-10)
    assert sum(value > 0 for value in score["iou"].values()) > 5, "too few classes for a meaningful test"


KINDS = ["overlay", "color", "ids", "train_ids", "confidence"]


@pytest.mark.parametrize("flags", [{}, {"size": "native"}, {"size": (32, 96), "scales": (0.5, 1.0), "flip": True}])
def test_files_contain_the_predictions_of_the_network(sda, world, run, photos, tmp_path, flags):
    """Compare with Run.predict for one image at a time."""
    given = []
    if "size" in flags:
        given += ["--size", flags["size"] if isinstance(flags["size"], str) else "32x96"]
    if "scales" in flags:
        given += ["--scales", "0.5,1", "--flip"]
    before = tiny.files(photos)
    out = tmp_path / "out"
    status, shown = sda("predict", run, photos, "--as", ",".join(KINDS), *given, "--out", out, "--device", "cpu", "--json")
    assert status == 0, shown.err
    assert json.loads(shown.out) | {"images": 5, "videos": 0, "existing": 0, "skipped": []} == json.loads(shown.out)
    assert tiny.files(photos) == before
    sizes = {"a": (48, 64), "turned": (64, 48), "b/large": (144, 192), "b/grey": (48, 64), "b/c/odd size": (33, 37)}
    written = {f"{kind}/{name}{plan.KINDS[kind]}" for kind in KINDS for name in sizes}
    assert {*tiny.files(out)} == written | BESIDES
    network = trained.load(run, "last", device=CPU)
    colors = list(network.table.colors.values())
    toy = descriptors.load(str(world.toy))
    codec = LabelCodec(toy, "ids", np.arange(256, dtype=np.uint8))
    for name, size in sizes.items():
        (source,) = photos.glob(f"{name}.*")
        expected = network.predict(source, **flags)
        assert expected.labels.shape == size
        assert np.array_equal(pixels(out / f"train_ids/{name}.png"), expected.labels)
        assert np.array_equal(codec.read(out / f"ids/{name}.png"), expected.labels)
        assert {*np.unique(pixels(out / f"ids/{name}.png"))} <= {7, 8, 9, 10}
        assert np.abs(pixels(out / f"confidence/{name}.png") / 255 - expected.confidence).max() <= 0.5 / 255 + 1e-6
        color = colorize(expected.labels, colors)
        assert np.array_equal(pixels(out / f"color/{name}.png"), color)
        for kind in ("ids", "train_ids"):  # viewers show the class colours
            with Image.open(out / f"{kind}/{name}.png") as image:
                assert image.mode == "P" and np.array_equal(image.convert("RGB"), color)
        blend = (np.asarray(trained.as_picture(source)).astype(float) + color) / 2
        assert np.abs(pixels(out / f"overlay/{name}.jpg") - blend).mean() < 8  # JPEG changes noise


def test_batch_size_does_not_change_the_outputs(sda, run, photos, tmp_path):
    for index in range(9):
        shutil.copy(photos / "a.png", photos / f"{index}.png")
        tiny.save(tiny.draw(index, [0, 0, 0], [(index, 0, 0), (0, 90, 9), (99, 0, 99)])[0], photos / f"{index}.png")
    outputs = []
    for batch in (1, 3, 16):
        out = tmp_path / f"out{batch}"
        status, shown = sda("predict", run, photos, "--as", "train_ids", "--batch", batch, "--out", out, "--device", "cpu")
        assert status == 0, shown.err
        outputs.append(tiny.files(out / "train_ids"))
    assert len(outputs[0]) == 14 and outputs[0] == outputs[1] == outputs[2]


def test_a_large_photo_is_predicted_at_a_lower_resolution(run, photos, monkeypatch):
    """Labels are computed at a lower resolution and enlarged by nearest neighbour."""
    network = trained.load(run, "last", device=CPU)
    whole = network.predict(photos / "b/large.JPG")
    monkeypatch.setattr(trained, "VALUES", 4 * 48 * 64)
    coarse = network.predict(photos / "b/large.JPG")
    assert coarse.labels.shape == coarse.confidence.shape == whole.labels.shape
    assert np.array_equal(coarse.labels, coarse.labels[::3, ::3].repeat(3, axis=0).repeat(3, axis=1))
    assert (coarse.labels == whole.labels).mean() > 0.9


def test_size_of_the_network_input(run):
    network = trained.load(run, "last", device=CPU)
    own = network.protocol()
    assert own.input == (48, 64) and network.fit((10, 1000), "eval") == own
    assert network.fit((480, 640)) == own and network.fit((100, 138)) == own  # similar aspect ratio
    assert network.fit((100, 200)).input == (48, 96) and network.fit((200, 100)).input == (96, 48)
    assert network.fit((100, 1000)).window == (48, 64) and network.fit((3000, 4000)).window is None
    assert network.fit((3000, 4000), "native").window == (48, 64)


def test_ids_of_missing_classes_are_refused(sda, run, city, photos, tmp_path):
    status, shown = sda("predict", run, photos, "--as", "ids,cityscapes", "--out", tmp_path / "out", "--device", "cpu")
    assert status == 2 and "--as cityscapes: Cityscapes has no id for street, house, man, cloud" in shown.err
    assert not (tmp_path / "out").exists()
    status, shown = sda("predict", city, photos / "a.png", "--as", "ids", "--as", "cityscapes", "--out", tmp_path / "out")
    assert status == 0, shown.err
    found = pixels(tmp_path / "out/cityscapes/a.png")
    assert {*np.unique(found)} <= {int(value) for value in descriptors.load("cityscapes").ids}
    assert np.array_equal(found, pixels(tmp_path / "out/ids/a.png"))
    with Image.open(tmp_path / "out/cityscapes/a.png") as image:
        assert image.mode == "L"


# Inputs and output paths


def test_unreadable_files_are_skipped_and_reported(sda, run, photos, tmp_path):
    shutil.copy(photos / "a.png", photos / "b/bad.png")
    spoil(photos / "b/bad.png")
    (photos / "b/text.jpg").write_text("hello")
    (photos / "gone.png").symlink_to("nowhere.png")
    status, shown = sda("predict", run, photos, "--out", tmp_path / "out", "--device", "cpu")
    assert status == 1 and shown.out == f"{tmp_path / 'out'}: 5 images, 3 skipped\n"
    faults = [line for line in shown.err.splitlines() if line.startswith("skipped: ")]
    assert [line.split(": ")[1] for line in faults] == [str(photos / name) for name in ("b/bad.png", "b/text.jpg", "gone.png")]
    assert len(tiny.files(tmp_path / "out/overlay")) == 5 and "--bad-files" not in shown.err
    status, shown = sda("predict", run, photos / "b/bad.png", "--out", tmp_path / "none", "--device", "cpu")
    assert status == 2 and shown.out == f"{tmp_path / 'none'}: 0 images, 1 skipped\n"


def test_special_files_links_and_maps_are_left_out_and_named(sda, run, photos, tmp_path):
    os.mkfifo(photos / "b/pipe.png")
    (photos / "b/up").symlink_to("../..")
    (photos / "z").symlink_to("b")
    tiny.save(np.zeros((48, 64), np.uint8), photos / "a_mask.png")
    tiny.save(np.zeros((48, 64), np.uint8), tmp_path / "outside.png")
    out = tmp_path / "out"
    status, shown = sda("predict", run, photos, "--out", out, "--device", "cpu", "--json")
    found = json.loads(shown.out)
    assert status == 1 and found["images"] == 5
    assert found["skipped"] == [
        f"{photos / 'b/pipe.png'}: a pipe, socket or device",
        f"{photos / 'b/up'}: a link to {tmp_path}, a folder that contains it",
    ]
    assert found["ignored"] == [str(photos / "notes.txt"), str(photos / "a_mask.png")]
    assert "ignored, label or depth maps of other images; to predict one, name the file: a_mask.png\n" in shown.err
    status, shown = sda("predict", run, photos / "a.png", photos / "a_mask.png", "--out", tmp_path / "two", "--device", "cpu")
    assert status == 0 and shown.out == f"{tmp_path / 'two'}: 2 images\n"


def test_readable_files_are_predicted_under_any_name(sda, run, photos, tmp_path):
    """Images in other formats, animations and videos; files of the user's that are neither are named and do no harm."""
    picture = Image.open(photos / "a.png")
    formats = {"jfif": "JPEG", "JPE": "JPEG", "gif": "GIF", "avif": "AVIF", "ppm": "PPM", "jp2": "JPEG2000"}
    for suffix, form in formats.items():
        picture.save(photos / f"{suffix}.{suffix}", form)
    picture.save(photos / "none", "PNG")
    picture.save(photos / "moving.gif", save_all=True, append_images=[picture.rotate(180)])
    film(photos / "clip.m4v", (64, 48))
    film(photos / "film.mp4", (64, 48)).rename(photos / "film")
    (photos / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (photos / ".hidden.png").write_text("")
    out = tmp_path / "out"
    status, shown = sda("predict", run, photos, "--as", "ids", "--out", out, "--device", "cpu", "--json")
    found = json.loads(shown.out)
    assert status == 1 and (found["images"], found["videos"], found["ignored"]) == (13, 2, [str(photos / "notes.txt")])
    assert len(found["skipped"]) == 1 and "phone.heic: reading HEIC images needs the package pillow-heif" in found["skipped"][0]
    assert "ignored, neither images nor videos: notes.txt\n" in shown.err
    assert "several frames or pages, only the first is predicted: moving.gif\n" in shown.err
    assert {f"{suffix}.png" for suffix in formats} | {"none.png", "moving.png"} <= {path.name for path in out.rglob("*.png")}
    assert len(tiny.files(out / "ids/clip.m4v")) == len(tiny.files(out / "ids/film.frames")) == 7


def test_narrow_images_are_skipped(sda, run, photos, tmp_path):
    """The cost of an image is bounded by the size of the image and of the training images."""
    for name, shape in {"wide.png": (1, 10_000), "tall.png": (40_000, 1), "dot.png": (1, 1)}.items():
        tiny.save(np.zeros(shape, np.uint8), photos / name)
    film(photos / "wide.mkv", (4000, 16), codec="ffv1")
    out = tmp_path / "out"
    status, shown = sda("predict", run, photos, "--as", "ids", "--out", out, "--device", "cpu")
    assert status == 1 and "6 images, 3 skipped" in shown.out
    assert "wide.png: an image of 1x10000 pixels (height x width) is too narrow: it would be enlarged to 48x480000" in shown.err
    assert "tall.png: an image of 40000x1 pixels" in shown.err and "wide.mkv: an image of 16x4000 pixels" in shown.err
    network = trained.load(run, "last", device=CPU)
    for size in ((1, 10_000), (10_000, 1), (2, 64), (1, 1), (48, 1024), (3000, 4000), (100, 20_000)):
        for name in ("fit", "native", "eval"):
            try:
                height, width = network.fit(size, name).input
            except FileError:
                assert name == "fit" and max(size) > 16 * min(size)
            else:
                assert height * width <= 32 * max(size[0] * size[1], 48 * 64) and min(height, width) >= 32


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "large.JPG: 1 megapixels are too many; add --max-megapixels 1 to predict it"),
        (["--size", "native", "--scales", "5"], "a.png: the network's input would be 240x320 pixels, more than --max-megapixels"),
    ],
)
def test_the_limit_of_megapixels(sda, run, photos, tmp_path, flags, says):
    given = [photos / "a.png" if flags else photos, "--out", tmp_path / "out", "--device", "cpu", *flags]
    status, shown = sda("predict", run, *given, "--max-megapixels", 0.0275)
    assert status in (1, 2) and says in shown.err
    status, shown = sda("predict", run, *given, "--max-megapixels", 1, "--resume")
    assert status == 0, shown.err
    status, shown = sda("predict", run, photos, "--size", "16384x16384", "--out", tmp_path / "none")
    assert status == 2 and shown.err == "error: --size 16384x16384: more pixels than --max-megapixels 200\n"


def test_one_bad_file_does_not_end_a_folder(sda, run, photos, tmp_path, monkeypatch):
    """Whatever a decoder raises, an unreadable folder, or a name that the file system refuses for the output."""
    read, walk, write = pipeline.read_image, os.scandir, pipeline.written_whole

    def failing(path):
        if path.name == "a.png":
            raise KeyError("tag")
        return read(path)

    def closed(path):
        if str(path).endswith("/c"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return walk(path)

    def short(path):
        if path.name == "grey.jpg":
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return write(path)

    monkeypatch.setattr(pipeline, "read_image", failing)
    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(pipeline, "written_whole", short)
    status, shown = sda("predict", run, photos, "--out", tmp_path / "out", "--device", "cpu")
    assert status == 1 and shown.out == f"{tmp_path / 'out'}: 2 images, 3 skipped\n"
    assert f"{photos / 'a.png'}: this image cannot be read ('tag')" in shown.err
    assert f"{photos / 'b/c'}: this folder cannot be read (Permission denied)" in shown.err
    assert f"{photos / 'b/grey.png'}: the path of its output is too long" in shown.err


def test_long_names_are_shortened(sda, run, photos, tmp_path):
    names = ["x" * 248 + ".png", "x" * 248 + ".JPG", "é" * 124 + ".png", "x" * 251]
    for name in names:
        Image.open(photos / "a.png").save(photos / name, "PNG")
    film(photos / f"{'v' * 248}.mp4", (64, 48))
    out = tmp_path / "out"
    flags = ["--as", "overlay,ids", "--out", out, "--device", "cpu"]
    for more, says in [([], "9 images, 1 videos (7 frames)"), (["--resume"], "0 images, 10 already existed")]:
        status, shown = sda("predict", run, photos, *flags, *more)
        assert status == 0 and says in shown.out, shown.err
    assert len(list((out / "ids").rglob("*.png"))) == 16 and len({*(out / "overlay").rglob("*.*")}) == 10


def test_inputs_without_images_are_refused(sda, run, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    names = ", ".join(f"{name:02d}.txt" for name in range(10))
    for name in range(11):
        (tmp_path / f"texts/{name:02d}.txt").write_text("P5 and GIF are formats")
    for given, says in [
        (tmp_path / "empty", "empty: contains no images or videos\n"),
        (
            tmp_path / "texts",
            f"texts: contains no images or videos; it has {names} and 1 more file\n",
        ),
        (photos / "b/d.png", "d.png: no such file or folder"),
    ]:
        status, shown = sda("predict", run, photos, given, "--out", tmp_path / "out", "--device", "cpu")
        assert status == 2 and f"error: {given.parent}/{says}" in shown.err and shown.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--as", "colour"], "--as colour: expected one or more of overlay, color, ids"),
        (
            ["--size", "64"],
            "--size 64: expected HEIGHTxWIDTH, each from 32 to 16384, such as 64x64, or fit, or native",
        ),
        (["--size", "8x64"], "each from 32 to 16384"),
        (["--scales", "a"], "--scales a: expected numbers"),
        (["--resume", "--overwrite"], "use only one of them"),
        (["--network", "teacher"], "the checkpoint has no teacher"),
    ],
)
def test_invalid_options_are_refused(sda, run, photos, tmp_path, flags, says):
    status, shown = sda("predict", run, photos, *flags, "--out", tmp_path / "out", "--device", "cpu")
    assert status == 2 and says in shown.err and shown.out == "" and not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_reported_first(sda, run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(trained.Run, "segment_all", lambda *_: pytest.fail("the network ran"))
    (tmp_path / "file").write_text("mine")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    places = [tmp_path / "file", tmp_path / "file/below"] + ([] if os.access(closed, os.W_OK) else [closed, closed / "below"])
    for place in places:  # root may write anywhere
        status, shown = sda("predict", run, photos, "--out", place, "--device", "cpu")
        says = f"{place}: exists and is not a folder" if place.is_file() else f"--out {place}: cannot write to this folder"
        assert status == 2 and shown.err.startswith(f"error: {says}") and shown.err.count("\n") == 1

    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(plan.tempfile, "TemporaryFile", read_only)
    status, shown = sda("predict", run, photos, "--out", tmp_path / "out", "--device", "cpu")
    assert status == 2 and "cannot write to this folder (Read-only file system)" in shown.err


def test_a_full_disk_is_reported_and_resumed(sda, run, photos, tmp_path, monkeypatch):
    whole = pipeline.written_whole

    def full(path, **_):
        if path.name == "grey.jpg":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path)

    monkeypatch.setattr(pipeline, "written_whole", full)
    out = tmp_path / "out"
    status, shown = sda("predict", run, photos, "--out", out, "--device", "cpu", "--batch", 1)
    assert status == 2 and f"error: {out / 'overlay/b/grey.jpg'}: cannot write this file (No space left" in shown.err
    monkeypatch.undo()
    status, shown = sda("predict", run, photos, "--out", out, "--device", "cpu", "--resume")
    assert status == 0 and len(tiny.files(out / "overlay")) == 5, shown.err
    for file in (out / "overlay").rglob("*.jpg"):
        pixels(file)


def test_interrupt_and_resume(sda, run, photos, tmp_path, monkeypatch):
    segment, out = trained.Run.segment_all, tmp_path / "out"
    for error, status, says in [
        (Interrupted(2), 130, "stopped by SIGINT. Run the same command again with --resume to resume."),
        (torch.OutOfMemoryError("full"), 2, "cpu is out of memory; try --batch 1, then"),
    ]:

        def stop(self, images, protocol, error=error):
            if images[0].size == (37, 33):  # the second image
                raise error
            return segment(self, images, protocol)

        monkeypatch.setattr(trained.Run, "segment_all", stop)
        found, shown = sda("predict", run, photos, "--batch", 1, "--out", out, "--device", "cpu", "--overwrite")
        assert found == status and says in shown.err and len(tiny.files(out / "overlay")) == 1, shown.err
    monkeypatch.undo()
    status, shown = sda("predict", run, photos, "--out", out, "--device", "cpu", "--resume")
    assert status == 0 and shown.out == f"{out}: 4 images, 1 already existed\n"


def test_outputs_are_only_overwritten_on_request(sda, run, photos, tmp_path):
    out = tmp_path / "out"
    mine = tiny.save(np.zeros((4, 4), np.uint8), out / "overlay/b/grey.jpg"), tiny.save(np.zeros((4, 4)) > 0, out / "classes.png")
    before = tiny.files(out)
    flags = ["--as", "overlay,train_ids", "--out", out, "--device", "cpu"]
    status, shown = sda("predict", run, photos, *flags)
    assert status == 2 and tiny.files(out) == before
    assert f"error: {out / 'overlay/b/grey.jpg'} exists (1 of 10 outputs do); add --resume to keep" in shown.err
    for file, says in zip(mine, ("does not say which network made", "is not the legend of these classes"), strict=True):
        status, shown = sda("predict", run, photos, *flags, "--resume")
        assert status == 2 and f"{file}" in shown.err and says in shown.err and "add --overwrite to replace" in shown.err
        assert before == tiny.files(out)
        file.unlink()
        del before[str(file.relative_to(out))]
    status, shown = sda("predict", run, photos, *flags, "--resume")
    assert status == 0 and len(tiny.files(out)) == 12, shown.err
    status, shown = sda("predict", run, photos, *flags, "--resume")
    assert status == 0 and shown.out == f"{out}: 0 images, 5 already existed\n"
    status, shown = sda("predict", run, photos, *flags, "--overwrite")
    assert status == 0 and len(tiny.files(out)) == 12, shown.err


def test_outputs_remain_until_their_replacement_is_whole(sda, run, photos, tmp_path, monkeypatch):
    """Also as a record: after a kill before the replacement, --resume does not take the old output for the new one."""
    film(photos / "clip.mp4", (64, 48))
    out, flags = tmp_path / "out", ["--as", "ids", "--device", "cpu"]
    assert sda("predict", run, photos, *flags, "--out", out)[0] == 0
    before = {name: data for name, data in tiny.files(out).items() if name.startswith("ids/")}

    def stop(*_):
        assert {name: data for name, data in tiny.files(out).items() if name in before} == before
        raise Interrupted(signal.SIGTERM)

    for name in ("encode", "render"):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, name, stop)
            assert sda("predict", run, photos, *flags, "--out", out, "--overwrite", "--flip")[0] == 143
        assert {name: data for name, data in tiny.files(out).items() if name in before} == before
    status, shown = sda("predict", run, photos, *flags, "--out", out, "--resume", "--flip")
    assert status == 2 and "was made with another --flip: False, not True" in shown.err
    assert sda("predict", run, photos, *flags, "--out", out, "--overwrite", "--flip")[0] == 0
    assert tiny.files(out / "ids").keys() == {name.removeprefix("ids/") for name in before}
    assert sda("predict", run, photos, *flags, "--out", out, "--resume", "--flip")[0] == 0
    (out / "ids/clip.mp4/mine.txt").write_text("mine")
    status, shown = sda("predict", run, photos, *flags, "--out", out, "--overwrite")
    assert status == 2 and "clip.mp4: cannot write this file (it has files that sda did not write, such as mine.txt" in shown.err
    assert len(tiny.files(out / "ids/clip.mp4")) == 8


def test_inputs_are_not_overwritten(sda, run, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "out/overlay")
    (tmp_path / "out/overlay/turned.jpg").rename(tmp_path / "out/overlay/b/turned.jpg")
    before = tiny.files(tmp_path)
    status, shown = sda("predict", run, tmp_path / "out/overlay", "--out", tmp_path / "out", "--overwrite", "--device", "cpu")
    assert status == 2 and "b/turned.jpg is an input and would be overwritten" in shown.err and tiny.files(tmp_path) == before
    (tmp_path / "out/overlay/b/turned.jpg").unlink()
    (tmp_path / "out/overlay/turned.jpg").write_text("a photo in a format of the future")
    tiny.save(np.zeros((48, 64), np.uint8), tmp_path / "out/overlay/turned.png")
    before = tiny.files(tmp_path)
    status, shown = sda("predict", run, tmp_path / "out/overlay", "--out", tmp_path / "out", "--overwrite", "--device", "cpu")
    assert (
        status == 2 and "overlay/turned.jpg is an input and would be overwritten" in shown.err and tiny.files(tmp_path) == before
    )


def test_resume_refuses_other_networks_options_and_photos(sda, run, city, photos, tmp_path):
    flags = ["--out", tmp_path / "out", "--device", "cpu"]
    assert sda("predict", run, photos / "a.png", *flags)[0] == 0
    before = tiny.files(tmp_path / "out")
    for network, more, says in [
        (city, [], f"was made with another network: {run} (student of last, step 2), not {city} (student of last, step 1)"),
        (run, ["--size", "native"], "was made with another --size: fit, not native"),
        (run, ["--flip"], "was made with another --flip"),
    ]:
        status, shown = sda("predict", network, photos, *flags, *more, "--resume")
        assert status == 2 and says in shown.err and shown.err.count("\n") == 1 and tiny.files(tmp_path / "out") == before
    same = shutil.copytree(run, tmp_path / "moved")
    assert sda("predict", same, photos / "a.png", *flags, "--resume")[0] == 0
    tiny.save(255 - pixels(photos / "a.png"), photos / "a.png")
    status, shown = sda("predict", run, photos, *flags, "--resume")
    assert status == 2 and "a.png has changed since" in shown.err and tiny.files(tmp_path / "out") == before
    status, shown = sda("predict", city, photos, *flags, "--overwrite", "--flip")
    assert status == 0, shown.err
    status, shown = sda("predict", city, photos, *flags, "--resume", "--flip")
    assert status == 0 and "0 images, 5 already existed" in shown.out, shown.err


def test_two_processes_never_write_one_folder(sda, run, photos, tmp_path):
    with tiny.owned_elsewhere(tmp_path / "out") as other:
        status, shown = sda("predict", run, photos, "--out", tmp_path / "out", "--device", "cpu")
        assert status == 2 and f"{tmp_path / 'out'}: process {other.pid} on " in shown.err and "is writing it" in shown.err
    status, shown = sda("predict", run, photos, "--out", tmp_path / "out", "--device", "cpu")
    assert status == 0, shown.err


@pytest.mark.slow
def test_kills_leave_whole_files_and_resume_completes_them(run, photos, tmp_path):
    for index in range(24):
        tiny.save(np.random.default_rng(index).integers(0, 256, (96, 128, 3), np.uint8), photos / f"{index:02d}.png")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sda", "predict", run, photos, "--as", "overlay,ids", "--device", "cpu", "--resume"]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        before = len([*out.rglob("*.jpg")])
        with subprocess.Popen([*command, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and len([*out.rglob("*.jpg")]) < before + 2:
                time.sleep(0.01)
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
        assert process.returncode in (0, -number, 128 + number) and "Traceback" not in said
        for file in [*out.rglob("*.jpg"), *out.rglob("ids/**/*.png")]:
            pixels(file)
    subprocess.run([*command, "--out", out], check=True, capture_output=True)
    subprocess.run([*command[:-1], "--out", tmp_path / "whole"], check=True, capture_output=True)
    assert tiny.files(out / "ids") == tiny.files(tmp_path / "whole/ids") and not [*out.rglob("*.partial")]


def test_earlier_predictions_are_not_inputs(sda, run, photos, monkeypatch):
    """Earlier predictions inside the input folder are ignored."""
    monkeypatch.chdir(photos)
    for flags in ([], ["--overwrite"], ["--out", "mine"], ["--out", "mine", "--resume"]):
        status, shown = sda("predict", run, ".", "--device", "cpu", *flags)
        assert status == 0 and shown.out.count("5 ") == 1, shown.err
    assert "14 files in prediction folders are ignored" in shown.err
    assert {path.name for path in photos.iterdir()} == {"a.png", "b", "turned.jpg", "notes.txt", "predictions", "mine"}
    assert len(tiny.files(photos / "predictions/a/overlay")) == len(tiny.files(photos / "mine/overlay")) == 5


def names(found, **flags):
    contents = {Path(one): Content("video" if one.endswith((".mp4", ".avi")) else "image") for one in found}
    tasks = plan.plan(plan.Found({file: file for file in contents}, contents), Path("out"), flags.get("kinds", ["ids"]))
    return {str(task.source): task.outputs for task in tasks}


def test_files_with_equal_names_have_distinct_outputs():
    outputs = names(["a/b.jpg", "a/b.png", "a/b.jpg.png", "a/c.png", "b.png"])
    assert {source: str(paths["ids"]) for source, paths in outputs.items()} == {
        "a/b.jpg": "out/ids/a/b.jpg.png",
        "a/b.png": "out/ids/a/b.png.png",
        "a/b.jpg.png": "out/ids/a/b.jpg.png.png",
        "a/c.png": "out/ids/a/c.png",
        "b.png": "out/ids/b.png",
    }
    stems = ["b", "b.jpg", "b.png", "b.jpg.png", "b.mp4", "v"]
    everything = [f"{stem}{suffix}" for stem in stems for suffix in (".jpg", ".png", ".PNG", ".mp4", ".avi")]
    outputs = names(everything, kinds=list(plan.KINDS))
    files = [file for paths in outputs.values() for file in paths.values()]
    assert len(files) == 6 * len(everything) == len({*files})


def test_shortened_names_are_unique():
    """Even if somebody gives a file the name that another one would get."""
    long = "x" * 245
    first, second = (str(plan.shorter(Path(f"{long}{suffix}"))) for suffix in ("", ".png"))
    everything = [f"{long}.png", f"{long}.jpg", first, second, f"{first}.png", f"{second}.png", f"a/{long}.png"]
    outputs = [str(paths["ids"]) for paths in names(everything).values()]
    assert len({*outputs}) == len(everything) and all(len(Path(output).name) <= 244 for output in outputs)
    assert outputs == [str(paths["ids"]) for paths in names(everything).values()]


def test_outputs_mirror_paths_below_the_common_folder(photos, monkeypatch):
    monkeypatch.chdir(photos)

    def found(*inputs):
        return [str(path) for path in plan.find([Path(one) for one in inputs], []).files.values()]

    everything = ["a.png", "b/c/odd size.webp", "b/grey.png", "b/large.JPG", "turned.jpg"]
    assert found(".") == found(photos) == found(".", "b", "a.png", photos / "a.png") == everything
    assert found("b") == ["c/odd size.webp", "grey.png", "large.JPG"]
    assert found("b/grey.png", "b/large.JPG") == ["grey.png", "large.JPG"]
    assert found("b/c", "b/grey.png") == ["c/odd size.webp", "grey.png"]


# The pipeline


def test_ahead_limits_the_jobs_in_flight():
    begun, most = [], 0
    with pipeline.ThreadPoolExecutor(2) as pool:
        jobs = ((0, lambda index=index: begun.append(index) or index) for index in range(50))
        for done, index in enumerate(pipeline.ahead(pool, jobs, 4)):
            assert index == done
            most = max(most, len(begun) - done)
    assert len(begun) == 50 and most <= 5


def test_batches_have_a_maximum_number_of_pixels():
    sizes = [(10, 10), (10, 10), (10, 10), (30, 20), (10, 10), (5, 5)]
    chunks = pipeline._chunks(((place, Image.new("RGB", size)) for place, size in enumerate(sizes)), 2, 500)
    assert [[place for place, _ in chunk] for chunk in chunks] == [[0, 1], [2], [3], [4, 5]]


# Videos


def film(path, size, frames=7, rate=Fraction(30000, 1001), codec="libx264", starts=None, turn=0):
    """Write a video of uniform frames, each in a different colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if turn:
            stream.set_display_rotation(turn)
        if starts:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(frames):
            picture = Image.new("RGB", size, (30 * index, 90, 200))
            picture.paste((250, 250, 0), (0, 0, 8, 8))  # at the top left
            frame = av.VideoFrame.from_image(picture)
            if starts:
                frame.pts, frame.time_base = starts[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def watch(path):
    """Return the frames, the frame rate, and the time of each frame in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.codec_context.name == "h264"
        return [np.asarray(frame.to_image()) for frame in frames], stream.average_rate, [float(frame.time) for frame in frames]


@pytest.mark.parametrize(
    ("name", "size", "codec", "rate"),
    [
        ("even.mp4", (64, 48), "libx264", Fraction(30000, 1001)),
        ("odd.avi", (63, 47), "mpeg4", Fraction(25)),
        ("web.webm", (64, 48), "libvpx-vp9", Fraction(24)),
    ],
)
def test_videos_are_predicted_frame_by_frame(sda, run, tmp_path, name, size, codec, rate):
    source = film(tmp_path / "films" / "x" / name, size, codec=codec, rate=rate)
    out = tmp_path / "out"
    flags = ["--as", "overlay,color,train_ids,confidence", "--batch", 2, "--out", out, "--device", "cpu"]
    status, shown = sda("predict", run, tmp_path / "films", *flags)
    assert status == 0 and shown.out == f"{out}: 1 videos (7 frames)\n", shown.err
    numbered = {f"{kind}/x/{name}/{index:06d}.png" for kind in ("train_ids", "confidence") for index in range(7)}
    moving = {f"{kind}/x/{Path(name).stem}.mp4" for kind in ("overlay", "color")}
    assert {*tiny.files(out)} == numbered | moving | BESIDES
    network = trained.load(run, "last", device=CPU)
    with av.open(str(source)) as container:
        pictures = [np.asarray(frame.to_image()) for frame in container.decode(video=0)]
    expected = [network.predict(picture).labels for picture in pictures]
    assert [np.array_equal(pixels(out / f"train_ids/x/{name}/{i:06d}.png"), label) for i, label in enumerate(expected)] == [
        True
    ] * 7
    colors = [colorize(label, list(network.table.colors.values())).astype(float) for label in expected]
    for kind, wanted in (("color", colors), ("overlay", [(a + b) / 2 for a, b in zip(pictures, colors, strict=True)])):
        frames, found_rate, times = watch(out / kind / f"x/{Path(name).stem}.mp4")
        assert found_rate == rate and frames[0].shape == (size[1], size[0], 3)
        assert times == pytest.approx([index / rate for index in range(7)], abs=1e-4)
        assert max(np.abs(one - two).mean() for one, two in zip(frames, wanted, strict=True)) < 6


def test_frames_keep_their_times_and_are_rotated_upright(sda, run, tmp_path):
    starts = [0, 100, 133, 500, 533, 900, 2000]
    film(tmp_path / "films/uneven.mkv", (64, 48), starts=starts, rate=Fraction(30))
    film(tmp_path / "films/turned.mov", (64, 48), turn=-90)  # clockwise: the left side becomes the top
    status, shown = sda("predict", run, tmp_path / "films", "--out", tmp_path / "out", "--device", "cpu")
    assert status == 0, shown.err
    assert watch(tmp_path / "out/overlay/uneven.mp4")[2] == pytest.approx([start / 1000 for start in starts], abs=1e-3)
    frame = watch(tmp_path / "out/overlay/turned.mp4")[0][0].astype(int)
    assert frame.shape == (64, 48, 3)
    light = frame[..., 0] - frame[..., 2]  # yellow on blue
    assert light[:8, 40:].mean() > light[:8, :40].mean() + 40 and light[:8, 40:].mean() > light[8:].mean() + 40


def test_unreadable_videos_are_skipped_and_reported(sda, run, photos, tmp_path):
    good = film(photos / "good.mp4", (64, 48))
    film(photos / "short.avi", (64, 48), frames=20, codec="mpeg4")
    spoil(photos / "short.avi", left=0.8)
    shutil.copy(good, photos / "cut.mp4")
    spoil(photos / "cut.mp4")
    out = tmp_path / "out"
    flags = ["--as", "overlay,train_ids", "--out", out, "--device", "cpu"]
    status, shown = sda("predict", run, photos, *flags)
    assert status == 1 and "5 images, 2 videos" in shown.out and "2 skipped" in shown.out
    assert f"skipped: {photos / 'cut.mp4'}: cannot read this video (Invalid data" in shown.err
    assert f"skipped: {photos / 'short.avi'}: the video ends after " in shown.err and " of 20 frames" in shown.err
    assert {path.name for path in out.rglob("*") if path.suffix in (".mp4", ".avi", ".partial")} == {
        "good.mp4",  # a video, and the folder of its frames
        "short.mp4",
        "short.avi",
    }
    status, shown = sda("predict", run, good, *flags)
    assert status == 2 and f"{out / 'overlay/good.mp4'} exists (2 of 2 outputs do)" in shown.err
    film(good, (64, 48), frames=3)
    status, shown = sda("predict", run, good, *flags, "--overwrite")
    assert status == 0 and len(tiny.files(out / "train_ids/good.mp4")) == 3 == len(watch(out / "overlay/good.mp4")[0])


@pytest.mark.parametrize(
    ("name", "flags", "says"),
    [
        ("slow.mkv", {"rate": Fraction(1, 5000)}, ""),
        ("fast.mkv", {"rate": Fraction(100_000)}, ""),
        (
            "far.mkv",
            {"starts": [0, 1000, 10**6, 10**9, 10**10, 10**11, 10**12], "rate": Fraction(30)},
            "cannot be written as a video",
        ),
        ("large.mkv", {"frames": 1, "codec": "mpeg4"}, "frames of 2000x100 pixels are more than --max-megapixels 0.1"),
    ],
)
def test_absurd_videos_do_not_end_a_folder(sda, run, photos, tmp_path, name, flags, says):
    film(photos / name, (2000, 100) if name == "large.mkv" else (64, 48), **flags)
    status, shown = sda("predict", run, photos, "--out", tmp_path / "out", "--device", "cpu", "--max-megapixels", 0.1)
    assert status == bool(says) and says in shown.err and f"5 images{'' if says else ', 1 videos (7 frames)'}" in shown.out


def test_playlists_open_no_other_files(sda, run, photos, tmp_path):
    film(tmp_path / "secret.mp4", (64, 48))
    playlist = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{tmp_path / 'secret.mp4'}\n#EXT-X-ENDLIST\n"
    (photos / "a.mp4").write_text(playlist)
    status, shown = sda("predict", run, photos, "--out", tmp_path / "out", "--device", "cpu")
    assert status == 1 and "a.mp4: cannot read this video" in shown.err and "5 images, 1 skipped" in shown.out


def test_a_full_disk_leaves_no_partial_video(sda, run, tmp_path, monkeypatch):
    film(tmp_path / "a.mp4", (64, 48))
    save = Image.Image.save

    def full(self, where, *arguments, **flags):
        if str(where).endswith("000004.png"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(self, where, *arguments, **flags)

    monkeypatch.setattr(Image.Image, "save", full)
    status, shown = sda("predict", run, tmp_path / "a.mp4", "--as", "overlay,ids", "--out", tmp_path / "out", "--device", "cpu")
    assert status == 2 and "cannot write this file (No space left on device)" in shown.err
    assert {*tiny.files(tmp_path / "out")} == {"classes.png"} and not (tmp_path / "out/ids/a.mp4").exists()


def test_videos_need_their_package(sda, run, photos, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "av" else find_spec(name, *rest))
    (photos / "x.MOV").write_text("a film")
    status, shown = sda("predict", run, photos, "--out", tmp_path / "out", "--device", "cpu")
    assert status == 1 and "x.MOV: reading videos needs the package av: pip install av" in shown.err
    assert shown.out == f"{tmp_path / 'out'}: 5 images, 1 skipped\n"
