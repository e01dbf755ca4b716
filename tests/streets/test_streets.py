"""The embedded dataset: its images and its files."""

import inspect
import json

import numpy as np
import pytest
from PIL import Image

from sda import streets
from sda.errors import SdaError
from sda.streets.labels import BUILDING, CAR, ROAD, SIDEWALK, SKY, VEGETATION

COUNTS = {"game": 3, "camera_train": 5, "camera_val": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A small dataset written in this process."""
    root = tmp_path_factory.mktemp("data") / "streets"
    streets.write(root, seed=3, **COUNTS, processes=1)
    return root


def load(path):
    with Image.open(path) as picture:
        picture.load()
    return picture


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("domain", ["game", "camera"])
def test_render_is_deterministic_and_in_range(domain):
    image, label = streets.render(domain, 1, 2)
    again, label_again = streets.render(domain, 1, 2)
    other, _ = streets.render(domain, 1, 3)
    assert image.shape == (128, 256, 3) and image.dtype == np.uint8
    assert label.shape == (128, 256) and label.dtype == np.uint8
    assert np.array_equal(image, again) and np.array_equal(label, label_again)
    assert not np.array_equal(image, other)
    assert set(np.unique(label)) <= {*range(19), 255}


def test_render_has_the_requested_size():
    image, label = streets.render("camera", 0, 0, height=96, width=160)
    assert image.shape == (96, 160, 3) and label.shape == (96, 160)


def test_worlds_differ_for_the_same_number():
    game, camera = (streets.render(domain, 0, 0)[0].astype(float) for domain in ("game", "camera"))
    saturation = [(image.max(2) - image.min(2)).mean() for image in (game, camera)]
    assert saturation[0] > saturation[1] + 10


def test_unknown_domain_is_refused():
    with pytest.raises(SdaError, match="moon.*game, camera"):
        streets.render("moon", 0, 0)


@pytest.mark.parametrize(("domain", "first"), [("game", 0), ("camera", streets.VAL_OFFSET)])
def test_every_class_occurs_and_common_classes_dominate(domain, first):
    labels = np.stack([streets.render(domain, 0, first + index)[1] for index in range(24)])
    pixels = np.bincount(labels.ravel(), minlength=256)[:19] / labels.size
    images = [(labels == train_id).any((1, 2)).sum() for train_id in range(19)]
    assert min(images) >= 2
    assert {*np.argsort(-pixels)[:6].tolist()} == {ROAD, BUILDING, VEGETATION, SKY, CAR, SIDEWALK}
    assert pixels[[ROAD, BUILDING]].min() > 0.12


def test_count_equals_the_default_number_of_images():
    parameters = inspect.signature(streets.write).parameters
    assert streets.COUNT == sum(parameters[name].default for name in COUNTS) == 700


def test_files_have_the_layout_of_the_descriptors(root):
    names = set(files(root))
    assert {"streets.json", "game/images/00001.png", "game/labels/00003.png"} <= names
    train = "camera/leftImg8bit/train/aldheim/aldheim_000001_000019_leftImg8bit.png"
    assert train in names
    assert len(names) == 1 + 2 * sum(COUNTS.values())
    for name in names:
        if "leftImg8bit" in name:
            assert name.replace("_leftImg8bit.png", "_gtFine_labelIds.png").replace("leftImg8bit/", "gtFine/") in names
    cities = {split: {path.name for path in (root / "camera/gtFine" / split).iterdir()} for split in ("train", "val")}
    assert cities["train"] and cities["val"] and not cities["train"] & cities["val"]


def test_labels_are_encoded_as_in_the_real_datasets(root):
    _, label = streets.render("game", 3, 0)
    picture = load(root / "game/labels/00001.png")
    expected = np.array([*streets.LABEL_IDS, *[0] * 237], np.uint8)[label]
    assert picture.mode == "P" and np.array_equal(np.asarray(picture), expected)
    colours = np.array([*streets.COLOURS, *[(0, 0, 0)] * 237], np.uint8)[label]
    assert np.array_equal(np.asarray(picture.convert("RGB")), colours)

    _, label = streets.render("camera", 3, streets.VAL_OFFSET)
    picture = load(root / "camera/gtFine/val/elmsund/elmsund_000000_000019_gtFine_labelIds.png")
    expected = np.array([*streets.LABEL_IDS, *[0] * 237], np.uint8)[label]
    assert picture.mode == "L" and np.array_equal(np.asarray(picture), expected)
    assert load(root / "game/images/00001.png").mode == "RGB"


def test_writing_again_changes_nothing(root, monkeypatch):
    before = files(root)
    monkeypatch.setattr("sda.streets.files.draw_all", lambda *_: pytest.fail("it was drawn again"))
    streets.write(root, seed=3, **COUNTS)
    assert files(root) == before


@pytest.mark.parametrize("note", [None, "not json", json.dumps({"streets": -1})])
def test_folders_with_other_content_are_not_modified(tmp_path, note):
    (tmp_path / "holiday.txt").write_text("mine")
    if note is not None:
        (tmp_path / "streets.json").write_text(note)
    before = files(tmp_path)
    with pytest.raises(SdaError, match="nothing was changed"):
        streets.write(tmp_path, **COUNTS)
    assert files(tmp_path) == before


def test_other_arguments_are_refused(root):
    with pytest.raises(SdaError, match="'seed': 4.*'seed': 3"):
        streets.write(root, seed=4, **COUNTS)


def test_negative_counts_are_refused(tmp_path):
    with pytest.raises(SdaError, match="negative"):
        streets.write(tmp_path / "streets", game=-1)


def test_an_interrupted_write_leaves_no_files(tmp_path):
    def interrupt(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streets.write(tmp_path / "deep" / "streets", **COUNTS, progress=interrupt, processes=1)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert not any(path.name.endswith(".part") for path in tmp_path.rglob("*"))


def test_several_processes_write_the_same_dataset(root, tmp_path):
    seen = []
    streets.write(tmp_path, seed=3, **COUNTS, progress=seen.append, processes=2)
    assert files(tmp_path) == files(root)
    assert seen == sorted(seen) and seen[-1] == sum(COUNTS.values())
