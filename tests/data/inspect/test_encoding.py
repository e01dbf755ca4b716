"""What label files hold, compared with the descriptor: palettes, forgotten ids, other encodings, a single class."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
from PIL import Image

from sda.data import descriptor as descriptors
from sda.data.evaluation import evaluation_set
from sda.data.files import LabelCodec
from sda.data.inspect.doctor import examine
from sda.data.inspect.encoding import check_encoding
from sda.data.inspect.propose import propose
from sda.data.listing import list_items
from sda.errors import SdaError

COLORS = {"road": [200, 0, 0], "sky": [0, 100, 200], "car": [30, 60, 90]}
NAMES = list(COLORS)
CLASSES = "classes = {road = [200, 0, 0], sky = [0, 100, 200], car = [30, 60, 90]}\n"
IDS = 'ids = {1 = "road", 2 = "sky", 3 = "car"}\n'


@pytest.fixture(autouse=True)
def cache(here, monkeypatch):
    monkeypatch.setenv("SDA_CACHE", str(here / "cache"))


@pytest.fixture
def describe(tmp_path):
    def describe(keys):
        path = tmp_path / "mine.toml"
        layout = '[[layout]]\nimages = "images/{frame}.png"\nlabels = "labels/{frame}.png"\n'
        path.write_text('title = "Mine"\n' + keys + layout)
        return descriptors.load(str(path))

    return describe


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


def write(root, *labels):
    """Write pairs; a label is an image, or an array of ids or colours."""
    (root / "labels").mkdir(parents=True, exist_ok=True)
    first = len(list((root / "labels").iterdir()))
    for index, label in enumerate(labels, first):
        image = label if isinstance(label, Image.Image) else Image.fromarray(np.array(label, np.uint8))
        tiny.save(np.random.default_rng(index).integers(20, 255, (*image.size[::-1], 3), np.uint8), root / f"images/{index}.png")
        image.save(root / f"labels/{index}.png")
    return root


def scene(values, seed=0):
    """Return a label of large areas: half of the first value, and the others in equal parts."""
    label = np.full((16, 24), values[0], np.uint8)
    for index, value in enumerate(values[1:]):
        label[8:, index * 24 // (len(values) - 1) :] = value
    return np.roll(label, seed, axis=1)


def palettized(names, colors=None):
    """Return a label that shows the classes in this order, numbered from 0, and its train ids."""
    colors = colors or COLORS
    ids = scene(range(len(names)))
    image = Image.fromarray(ids)
    image.putpalette([value for name in names for value in colors[name]])
    return image, np.array([NAMES.index(name) for name in names])[ids]


ORDERS = [["road", "sky", "car"], ["car", "road", "sky"], ["sky", "car", "road"], ["car"], ["sky", "road"]]


def diagnose(described, root, name="mine.toml"):
    found, _ = examine(name, described, root, processes=1)
    return found


def check(described, root, name="mine.toml"):
    return check_encoding(name, described, list_items(described, root, "train"), root)


# Palettes


@pytest.mark.parametrize("keys", [CLASSES, CLASSES + IDS])
def test_palettes_that_differ_are_read_by_colour(describe, root, keys):
    """The doctor, its counts and the decoder agree."""
    made = [palettized(order) for order in ORDERS]
    described = describe(keys)
    write(root, *(image for image, _ in made))
    codec = LabelCodec(described, "ids", np.arange(256, dtype=np.uint8))
    for index, (_, expected) in enumerate(made):
        assert np.array_equal(codec.read(root / f"labels/{index}.png"), expected)
    found = diagnose(described, root)
    assert found.problems == [] and found.advice == "" and found.encodings["colours"] >= 4
    for train_id, name in enumerate(NAMES):
        assert found.frequencies[name]["pixels"] == pytest.approx(np.mean([expected == train_id for _, expected in made]))
    assert check(described, root) == ""


def test_palettes_of_other_colours_that_differ_are_refused(describe, root):
    """The classes have other colours than the palettes, so nothing tells which id means what in which file."""
    described = describe("classes = {a = [1, 1, 1], b = [2, 2, 2], c = [3, 3, 3]}\n")
    write(root, *(palettized(order)[0] for order in ORDERS))
    found = diagnose(described, root)
    assert "the palettes of the labels differ: #" in found.advice and "give the classes the colours" in found.advice
    assert [problem.kind for problem in found.bad] == ["palette"] * len(ORDERS)
    with pytest.raises(SdaError, match=r"palettes of the labels differ: #1e3c5a is 2 in images/0.png and 0 in images/1.png"):
        check(described, root)


def test_palettes_that_differ_are_not_packed(sda, describe, root, tmp_path):
    """Nor is a pack a way around the check: it holds no palettes."""
    describe("classes = {a = [1, 1, 1], b = [2, 2, 2], c = [3, 3, 3]}\n")
    write(root, *(palettized(order)[0] for order in ORDERS))
    status, shown = sda("pack", "mine.toml", "--root", root, "--size", 32, 32, "--processes", 1, "--out", "mine.h5")
    assert status == 2 and "the palettes of the labels differ" in shown.err and not (tmp_path / "mine.h5").exists()


def test_palettes_that_differ_between_splits_are_reported(tmp_path):
    path = tmp_path / "mine.toml"
    layouts = "".join(
        f'[[layout]]\nsplit = "{split}"\nimages = "{split}/images/{{n}}.png"\nlabels = "{split}/labels/{{n}}.png"\n'
        for split in ("train", "val")
    )
    path.write_text('title = "Mine"\nclasses = {a = [1, 1, 1], b = [2, 2, 2], c = [3, 3, 3]}\n' + layouts)
    write(tmp_path / "train", palettized(ORDERS[0])[0])
    write(tmp_path / "val", palettized(ORDERS[1])[0])
    advice = diagnose(descriptors.load(str(path)), tmp_path).advice
    assert "is 2 in train/images/0.png and 0 in val/images/0.png" in advice


def test_training_refuses_palettes_that_differ_between_training_and_validation(sda, tmp_path):
    path, recipe = tmp_path / "mine.toml", tmp_path / "r.toml"
    path.write_text(
        'title = "Mine"\nclasses = {a = [1, 1, 1], b = [2, 2, 2], c = [3, 3, 3]}\n'
        '[[layout]]\nimages = "{split}/images/{n}.png"\nlabels = "{split}/labels/{n}.png"\n'
    )
    write(tmp_path / "train", palettized(ORDERS[0])[0])
    write(tmp_path / "val", palettized(ORDERS[1])[0])
    picture = tmp_path / "val/images/0.png"
    Image.fromarray(255 - np.asarray(Image.open(picture))).save(picture)  # no copy of the training image
    recipe.write_text(
        f'source = ""\ntarget = "{path}"\ntarget_root = "{tmp_path}"\nlabels = 1\nsize = [48, 64]\nbatch_labelled = 2\n'
        'workers = 0\nbackbone = "small"\nweights = "none"\nsteps = 1\n'
    )
    status, shown = sda("train", recipe, "--device", "cpu", "--out", tmp_path / "run")
    assert status == 2 and "the palettes of the labels differ" in shown.err


def test_eval_refuses_palettes_that_differ_from_those_of_training(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "Mine"\nclasses = {a = [1, 1, 1], b = [2, 2, 2], c = [3, 3, 3]}\n'
        '[[layout]]\nimages = "{split}/images/{n}.png"\nlabels = "{split}/labels/{n}.png"\n'
    )
    write(tmp_path / "val", palettized(ORDERS[1])[0])
    table = descriptors.load(str(path)).table()
    assert len(evaluation_set("mine", table, None, str(path), str(tmp_path), "val").val) == 1
    write(tmp_path / "train", palettized(ORDERS[0])[0])
    with pytest.raises(SdaError, match="the palettes of the labels differ"):
        evaluation_set("mine", table, None, str(path), str(tmp_path), "val")


def test_one_palette_of_many_that_differs_is_found(describe, root):
    """Eight labels would not show it: with palettes, 64 are read, and all that were scanned."""
    described = describe("classes = {a = [1, 1, 1], b = [2, 2, 2], c = [3, 3, 3]}\n")
    write(root, *[palettized(ORDERS[0])[0]] * 130)
    usual, odd = (palettized(order)[0] for order in ORDERS[:2])
    labels = sorted((root / "labels").iterdir())
    odd.save(labels[3])  # every third is read
    with pytest.raises(SdaError, match="the palettes of the labels differ"):
        check(described, root)
    usual.save(labels[3])
    odd.save(labels[4])
    assert check(described, root) == ""
    diagnose(described, root)
    with pytest.raises(SdaError, match="the palettes of the labels differ"):
        check(described, root)


def test_equal_palettes_of_other_colours_are_ids(describe, root):
    described = describe("classes = {a = [1, 1, 1], b = [2, 2, 2], c = [3, 3, 3]}\n")
    write(root, *(palettized(order)[0] for order in (ORDERS[0], ORDERS[0], ORDERS[0][:2])))
    found = diagnose(described, root)
    assert found.problems == [] and found.advice == "" and check(described, root) == ""


def test_palettes_without_a_common_colour_are_reported(describe, root):
    described = describe("classes = {a = [1, 1, 1], b = [2, 2, 2], c = [3, 3, 3]}\n")
    others = {"road": [5, 9, 7], "sky": [99, 3, 4], "car": [7, 70, 7]}
    write(root, palettized(NAMES)[0], palettized(NAMES, others)[0])
    assert "0 is #c80000 in images/0.png and #050907 in images/1.png" in diagnose(described, root).advice
    assert "the palettes of the labels differ" in check(described, root)


def test_palettes_that_contradict_the_descriptor_are_bad(describe, root):
    """One colour of the palette is not in the descriptor."""
    described = describe("classes = {road = [200, 0, 0], sky = [0, 100, 200], other = [9, 9, 9]}\n")
    write(root, *(palettized(order)[0] for order in ORDERS[:3]))
    found = diagnose(described, root)
    assert [problem.kind for problem in found.bad] == ["palette"] * 2
    assert "add #1e3c5a of its palette to [classes] or void_colors" in found.bad[0].detail


def test_every_command_reads_palettes_by_colour(sda, own_world):
    """Training, eval and pack give the same, whatever the order of the palettes in the labels."""
    field, root = own_world.field, own_world.root / "field"

    def results(name):
        options = ["--labels", "all", "--source", "", "--device", "cpu", "--out", name]
        assert sda("train", own_world.recipe, *options)[0] == 0
        status, shown = sda("eval", name, "--device", "cpu", "--json")
        assert status == 0
        assert sda("pack", field, "--root", root, "--size", 48, 64, "--processes", 1, "--out", f"{name}.h5")[0] == 0
        with h5py.File(f"{name}.h5") as pack:
            return (
                json.loads(Path(name, "result.json").read_text())["iou"],
                json.loads(shown.out)[0]["iou"],
                pack["labels/train"][:],
            )

    before = results("before")
    for index, path in enumerate(sorted((root / "labels").rglob("*.png"))):
        order = np.roll(np.arange(3), index)  # class → id in this file
        with Image.open(path) as image:
            label = Image.fromarray(order[np.asarray(image)].astype(np.uint8))
        label.putpalette([1 + name for name in np.argsort(order).tolist() for _ in range(3)])
        label.save(path)
    after = results("after")
    assert after[:2] == before[:2] and np.array_equal(after[2], before[2])


# A forgotten id


@pytest.mark.parametrize(
    ("keys", "labels", "forgotten"),
    [
        (CLASSES + IDS, [[0, 1, 2], [0, 1, 2], [1, 2, 3]], 0),  # without 3, each value could be a train id
        (CLASSES + IDS, [[0, 1, 2], [1, 2]], 0),
        (CLASSES + IDS, [[1, 2, 255], [1, 2, 3]], 255),
        (CLASSES + 'ids = {0 = "road", 1 = "sky", 3 = "car"}\n', [[0, 1, 2], [1, 3]], 2),
        (CLASSES + IDS + "void = [0]\n", [[1, 2, 3, 4], [0, 1]], 4),
    ],
)
def test_a_forgotten_id_is_no_other_encoding(describe, root, keys, labels, forgotten):
    described = describe(keys)
    write(root, *map(scene, labels))
    found = diagnose(described, root)
    assert found.advice == "" and {problem.kind for problem in found.bad} == {"unknown values"}
    assert f"label values {forgotten} are not in the dataset's descriptor; add them to its [ids] or void" in found.bad[0].detail
    assert check(described, root) == ""


def test_train_ids_with_few_classes_are_still_recognised(describe, root):
    described = describe(CLASSES + 'ids = {7 = "road", 8 = "sky", 9 = "car"}\n')
    write(root, scene([0, 1, 255]), scene([0, 2]))
    with pytest.raises(SdaError, match='the labels are train ids, not ids as the descriptor says: set encoding = "train_ids" in'):
        check(described, root)


def test_labels_that_none_can_be_used_are_refused_before_training(describe, root):
    described = describe(CLASSES + IDS)
    write(root, scene([4, 5]), scene([4, 6]))
    with pytest.raises(SdaError, match=r"labels/0.png: label values 4, 5 are not in .*add them to its \[ids\] or void"):
        check(described, root)


# Ids in RGB files


def test_ids_in_equal_channels_are_named(describe, root):
    described = describe(CLASSES + IDS + "void = [0]\n")
    write(root, *(scene(values)[..., None].repeat(3, 2) for values in ([1, 2, 3], [0, 1])))
    found = diagnose(described, root)
    assert 'encoding = "ids_in_red"' in found.advice and found.encodings == {"ids_in_red": 2}
    assert {problem.kind for problem in found.bad} == {"other encoding"}
    with pytest.raises(SdaError, match='set encoding = "ids_in_red" in the .* of mine.toml'):
        check(described, root)


def test_a_forgotten_colour_is_no_other_encoding(describe, root):
    described = describe(CLASSES)
    colors = np.array([*COLORS.values(), [1, 50, 60]], np.uint8)
    write(root, colors[scene([0, 1, 3])])
    [problem] = diagnose(described, root).bad
    assert problem.kind == "unknown values" and "#01323c are not" in problem.detail and "void_colors" in problem.detail


# Ids above 255


@pytest.mark.parametrize("every", [True, False])
def test_ids_above_255_are_told_alike(describe, root, every):
    """By the doctor and before training, and by init-dataset."""
    described = describe(CLASSES)
    for index in range(4):
        label = scene([0, 1, 2]).astype(np.int32) * (1000 if every or index == 2 else 1)
        tiny.save(np.random.default_rng(index).integers(20, 255, (16, 24, 3), np.uint8), root / f"images/{index}.png")
        tiny.save(label.astype(np.uint16), root / f"labels/{index}.png")
    says = (
        f"ids must be from 0 to 255, but {4 if every else 1} of 4 labels that were read hold 1000, 2000, such as that of images/"
    )
    found = diagnose(described, root)
    assert says in found.advice and len(found.bad) == (4 if every else 1)
    if every:
        with pytest.raises(SdaError, match=says):
            check(described, root)
    else:
        assert says in check(described, root)
    text, notes, *_ = propose(root)
    assert any(says in note for note in notes) and "values from 1000 are often instances" in " ".join(notes)
    assert ('"cityscapes19"' in text) == every


# A single class


@pytest.mark.parametrize(
    ("keys", "labels", "says"),
    [
        (
            'classes = {a = [1, 1, 1]}\nids = {0 = "a"}\nvoid = [255]\n',
            [0, 255],
            "'a' or void.*if 255 .50% of the pixels. is a class",
        ),
        ("classes = {a = [1, 1, 1], b = [2, 2, 2]}\n", [0, 255], "'a' or void.*if 255 .50% of the pixels. is a class"),
        ("classes = {a = [1, 1, 1], b = [2, 2, 2]}\n", [1], "every pixel of the labels is 'b': a network needs at least two"),
    ],
)
def test_a_single_class_is_a_finding(describe, root, keys, labels, says):
    described = describe(keys)
    write(root, scene(labels), scene(labels))
    advice = diagnose(described, root).advice
    assert re.search(says, advice) and advice == f"train: {check(described, root)}"


def test_training_needs_two_classes(sda, own_world):
    own_world.field.write_text(
        tiny.FIELD.replace("{ground = [1, 1, 1], building = [2, 2, 2], human = [3, 3, 3]}", "{ground = [1, 1, 1]}\nvoid = [1, 2]")
    )
    status, shown = sda("train", own_world.recipe, "--labels", "all", "--source", "", "--device", "cpu", "--out", "run")
    assert status == 2 and "its only class is 'ground', but a network needs at least two; add another" in shown.err
