"""Labels in another form or folder than the layout reads are named."""

import json

import numpy as np
import pytest
import tiny

from sda.data import descriptor as descriptors
from sda.data.listing import list_items

PHOTO = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
MASK = np.tri(30, 40, dtype=np.uint8)


def labelme(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = [{"label": "road", "points": [[0, 0], [20, 0], [20, 20]]}, {"label": "sky", "points": [[20, 0], [30, 0], [30, 9]]}]
    path.write_text(json.dumps({"imagePath": f"{path.stem}.jpg", "shapes": shapes}))


@pytest.fixture
def root(here, monkeypatch):
    monkeypatch.setenv("SDA_CACHE", str(here / "cache"))
    for number in range(6):
        tiny.save(PHOTO + number, here / f"set/images/{number}.jpg")
    return here / "set"


def notes_of(root, **layout):
    described = descriptors.Descriptor(title="Set", classes={"road": [0, 0, 0], "sky": [1, 1, 1]}, layout=[layout])
    return list_items(described, root, "train").unread


@pytest.mark.parametrize("place", ["masks/{}.json", "images/{}.json", "annotations/{}.jpg.json"])
def test_annotations_beside_masks_are_named(root, place):
    for number in range(3):
        tiny.save(MASK, root / f"masks/{number}.png")
    for number in (2, 3, 4):  # the third image has both: nothing is lost
        labelme(root / place.format(number))
    (note,) = notes_of(root, images="images/{n}.jpg", labels="masks/{n}.png")
    assert note.startswith(
        f"Set: 2 labelme files, such as {place.format(3)}, have the names of images without a label but are not"
    )
    assert "the layout reads 'masks/{n}.png'" in note and "bring all labels into one form" in note


@pytest.mark.parametrize("folder", ["SegmentationClass", "masks", "annotations", "task 13/SegmentationClass"])
def test_masks_beside_annotations_are_named(root, folder):
    for number in range(3):
        labelme(root / f"annotations/{number}.json")
    tiny.save(MASK, root / f"{folder}/4.png")
    (note,) = notes_of(root, images="images/{n}.jpg", labels="annotations/{n}.json", format="labelme")
    assert note.startswith(f"Set: 1 mask files, such as {folder}/4.png, have")


def test_other_files_are_no_labels(root):
    """Photos, instances, depths, files that nobody understands, files of other images, and those without an object."""
    for number in range(3):
        labelme(root / f"annotations/{number}.json")
    (root / "annotations/4.json").write_text('{"imagePath": "4.jpg", "shapes": []}')
    (root / "images/4.txt").write_text("a note")
    (root / "images/5.json").write_text("{}")
    tiny.save(PHOTO, root / "masked/4.png")
    for folder in ("instance_masks", "SegmentationObject", "depth"):
        tiny.save(MASK, root / f"{folder}/4.png")
    tiny.save(MASK, root / "masks/77.png")
    assert notes_of(root, images="images/{n}.jpg", labels="annotations/{n}.json", format="labelme") == ()


def test_the_doctor_advises_and_training_says_it(root, sda, here):
    for number in range(4):
        tiny.save(MASK, root / f"masks/{number}.png")
    labelme(root / "masks/4.json")
    assert sda("init", "set")[0] == 0
    status, shown = sda("doctor", "set-sda/set.toml")
    assert status == 1 and "Advice: set: 1 labelme files, such as masks/4.json" in shown.out
    small = ["--backbone", "small", "--weights", "none", "--steps", 1, "--device", "cpu", "--eval-every", 0]
    status, shown = sda("train", "set-sda/train-set.toml", *small, "--out", "run")
    assert status == 0 and "1 labelme files, such as masks/4.json" in shown.err
