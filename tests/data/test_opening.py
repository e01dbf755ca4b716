"""Opening streams: labels without any labelled pixel, and datasets that have only some of the classes."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

from sda.data import opening
from sda.data.descriptor import load
from sda.errors import SdaError


@pytest.fixture
def world(own_world):
    return own_world


@pytest.fixture
def train(sda, world):
    return lambda *more: sda("train", world.recipe, "--device", "cpu", "--out", world.folder / "run", *more)


def void(folder, value=255):
    """Give every pixel of all labels in a folder one value."""
    files = sorted(folder.rglob("*.png"))
    assert files
    for path in files:
        Image.new("L", (tiny.WIDTH, tiny.HEIGHT), value).save(path)


STREAMS = {
    "source": ("toy/train_masks", 0, "Toy town in "),
    "source, dropped class": ("toy/train_masks", 10, "Toy town in "),
    "labelled": ("field/labels/train", 255, "Field in "),
    "validation": ("field/labels/val", 255, "Field in "),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("flags", [[], ["--bad-files", "skip"], ["--in-memory", "true"]])
def test_labels_without_a_labelled_pixel_are_refused_before_training(train, world, stream, flags):
    folder, value, title = STREAMS[stream]
    void(world.root / folder, value)
    status, shown = train(*flags)
    line = shown.err.splitlines()[-1]
    assert status == 2 and not (world.folder / "run").exists()
    assert line.startswith(f"error: {title}{world.root}") and "no labelled pixel in the " in line
    assert 'encoding = "ids"' in line and "sda doctor " in line


def test_held_out_images_without_a_labelled_pixel_are_refused(train, world):
    assert train("--hold-out", 1, "--labels", 8, "--stop-at", 1)[0] == 0
    held_out = (world.folder / "run/splits/held_out.txt").read_text().strip()
    Image.new("L", (tiny.WIDTH, tiny.HEIGHT), 255).save(
        world.root / "field" / held_out.replace("pictures", "labels").replace(".jpg", ".png")
    )
    status, shown = train("--hold-out", 1, "--labels", 8, "--out", world.folder / "other")
    assert status == 2 and "no labelled pixel in the 1 labels" in shown.err


def test_eval_refuses_a_set_without_a_labelled_pixel(train, sda, world):
    assert train("--steps", 1)[0] == 0
    void(world.root / "field/labels/val")
    status, shown = sda("eval", world.folder / "run", "--device", "cpu")
    assert status == 2 and "no labelled pixel in the 3 labels" in shown.err


def test_one_labelled_pixel_is_enough(train, world):
    void(world.root / "field/labels/val")
    label = np.full((tiny.HEIGHT, tiny.WIDTH), 255, np.uint8)
    label[0, 0] = 1
    tiny.save(label, world.root / "field/labels/val/west/09.png")
    assert train("--steps", 1)[0] == 0


def test_unreadable_labels_are_left_to_training(train, world):
    for path in (world.root / "toy/train_masks").iterdir():
        path.write_bytes(b"")
    status, shown = train()
    assert status == 2 and "this label cannot be read" in shown.err


def test_only_some_of_many_labels_are_decoded(monkeypatch, tmp_path):
    """The first label with a labelled pixel ends the search, and there is a limit."""
    monkeypatch.setattr(opening, "LOOKS", 5)
    read = []

    class Codec:
        def read_item(self, item):
            read.append(item.label)
            return np.full((2, 2), 0 if self.labelled else 255)

    codec, world = Codec(), tiny.write_world(tmp_path / "world")
    described = opening.Classes("field", None)
    split = opening.open_split(str(world.field), load(str(world.field)), world.root / "field", "train", None, [])
    codec.labelled = True
    opening.require_labelled_pixels(split, codec, described)
    assert len(read) == 1
    codec.labelled = False
    with pytest.raises(SdaError, match="no labelled pixel in 4 of the 8 labels"):
        opening.require_labelled_pixels(split, codec, described)
    assert len(read) == 1 + 4


@pytest.mark.slow
def test_labelled_pixels_that_resizing_loses_stop_the_training(train, world):
    """Every label has a labelled pixel, but at half the size none is left."""
    for path in (world.root / "toy/train_masks").iterdir():
        label = np.zeros((tiny.HEIGHT, tiny.WIDTH), np.uint8)
        label[0, 0] = 7
        Image.fromarray(label).save(path)
    status, shown = train("--source-size", "32x32", "--crop", "32x32", "--steps", 60)
    assert status == 2 and "no labelled pixel in the first 50 batches of source images, such as train/00.png" in shown.err
    status, shown = train("--source-size", "32x32", "--crop", "32x32", "--steps", 3, "--out", world.folder / "short")
    assert status == 0, "too short to tell"


# Datasets that have only some of the classes


def test_missing_classes_are_told_before_and_after_training(train, sda, world, monkeypatch):
    world.toy.write_text(tiny.TOY.replace('house = "building"\nman = "human"\n', ""))
    status, shown = train("--json")
    assert status == 0 and "warning: Toy town has 1 of the 3 classes of field, and no labels of building, human" in shown.err
    assert json.loads(shown.out)["missing_classes_of"] == {"source": ["building", "human"], "target": []}
    assert json.loads(shown.out)["missing_classes"] == []
    assert sda("compare", world.folder / "run")[1].out.count("of 3 classes") == 0
    elsewhere = world.field.with_name("elsewhere.toml")
    elsewhere.write_text(tiny.FIELD.replace("building", "barn").replace("human", "cow"))
    flags = ["--dataset", elsewhere, "--root", world.root / "field", "--device", "cpu"]
    status, shown = sda("eval", world.folder / "run", *flags)
    assert status == 0 and "no labels of building, human" in shown.err
    assert "warning: " in shown.out and "the labels have 1 of 3 classes, and no pixel of building, human" in shown.out
    assert "classes in the labels" in shown.out and "over 1 of 3 classes" in shown.out
    [score] = json.loads(sda("eval", world.folder / "run", *flags, "--json")[1].out)
    assert score["missing_classes"] == ["building", "human"]
    [file] = (world.folder / "run/evaluations").iterdir()
    for form in ("table", "markdown", "latex"):
        shown = " ".join(sda("compare", file, "--format", form)[1].out.split())
        assert "1 of 3 classes" in shown and "no pixel of building, human" in shown
    assert json.loads(sda("compare", file, "--format", "json")[1].out)[0]["missing_classes"] == ["building", "human"]
    assert sda("compare", file, "--format", "csv")[1].out.splitlines()[1].endswith(",building; human")
