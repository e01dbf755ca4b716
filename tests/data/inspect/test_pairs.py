"""Names of images and labels as people give them: each proposed descriptor must use all pairs, each image with its own label."""

import unicodedata

import numpy as np
import pytest
import tiny

from sda.data import descriptor as descriptors
from sda.data.inspect.propose import propose
from sda.data.layouts.words import SPLITS
from sda.data.listing import NoImages, list_items


def scene(index):
    """A noisy photo of three areas and its label; the label's first row is the index."""
    random = np.random.default_rng(index)
    label = random.integers(0, 3, (6, 8)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
    image = np.array([[90, 120, 60], [30, 40, 160], [200, 180, 140]])[label] + random.integers(-25, 25, (96, 128, 3))
    return image.clip(0, 255).astype(np.uint8), label


def write(root, pairs):
    """Write pairs (image, label) of names; return image → label."""
    for index, (image, label) in enumerate(pairs):
        photo, values = scene(index)
        tiny.save(photo, root / image)
        tiny.save(values, root / label)
    return dict(pairs)


def proposed(root, tmp_path):
    text, notes, *_ = propose(root)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    return descriptors.load(str(tmp_path / "mine.toml")), notes


def read(described, root, splits=("train", "val")):
    """Return split → image → label, without splits that have no images."""
    found = {}
    for split in splits:
        try:
            items = list_items(described, root, split).items
        except NoImages:
            continue
        found[split] = {item.key: item.label and item.label.relative_to(root).as_posix() for item in items}
    return found


NUMBERS = ["001", "002", "007", "010", "011"]
NAMES = ["Ash", "Birch", "Cedar", "Dogwood", "Elm"]


@pytest.mark.parametrize("frames", [NUMBERS, NAMES])
@pytest.mark.parametrize(
    ("image", "label", "layout"),
    [
        ("scene_{}/image.png", "scene_{}/label.png", None),
        ("scene_{}/img.jpg", "scene_{}/mask.png", None),
        ("{}/rgb.png", "{}/gt.png", ("{folder1}/rgb.png", "{folder1}/gt.png")),
        ("{}/image.png", "{}/image_mask.png", None),
        ("{}/left.png", "{}/labelIds.png", None),
        ("{}/images/image.png", "{}/masks/mask.png", None),
        ("{}/images/1.png", "{}/masks/1.png", None),
        ("img_{}.png", "mask_{}.png", ("img_{frame}.png", "mask_{frame}.png")),
        ("{}.png", "mask_{}.png", None),
        ("{}.jpg", "mask_{}.png", None),
        ("Image{}.jpg", "Label{}.png", None),
        ("image-{}.jpg", "label-{}.png", None),
        ("frame {}.jpg", "seg {}.png", None),
        ("IMG_{}.jpg", "IMG_{}_mask.png", None),
        ("img_{}_rgb.png", "mask_{}_gt.png", None),
        ("images/img_{}.jpg", "masks/mask_{}.png", ("images/img_{frame}.jpg", "masks/mask_{frame}.png")),
        ("images/{}.jpg", "masks/mask_{}.png", None),
        ("images/image_{}.jpg", "masks/{}.png", None),
        ("images/{}.jpg", "masks/{}_GT.png", None),
        ("RGB/{}.jpg", "GT/{}.png", None),
        ("img/city_image_{}.jpg", "ann/city_label_{}.png", None),
        ("images_{}/1.png", "masks_{}/1.png", None),
        ("IMG_{}.JPG", "MASK_{}.PNG", None),
        ("photo ({}).jpg", "mask ({}).png", None),
        ("i/{}.jpg", "m/{}.jpg.png", None),
        ("i/{}val.jpg", "m/{}val.png", None),
        ("{}/img_1.png", "{}/mask_1.png", None),
    ],
)
def test_names_with_telling_words(tmp_path, frames, image, label, layout):
    root = tmp_path / "set"
    expected = write(root, [(image.format(frame), label.format(frame)) for frame in frames])
    described, notes = proposed(root, tmp_path)
    found = [(each.images, each.labels) for each in described.layout]
    assert read(described, root) == {"train": expected}, (found, notes)
    assert len(found) == 1 and (layout is None or found == [layout]), found
    assert len(notes) == 1, notes


@pytest.mark.parametrize(
    ("image", "label", "names"),
    [
        ("{}Images/{}.jpg", "{}Masks/{}.png", ("train", "val")),
        ("{}_images/{}.jpg", "{}_masks/{}.png", ("train", "valid")),
        ("images_{}/{}.jpg", "labels_{}/{}.png", ("train", "val")),
        ("images{}/{}_0000.png", "labels{}/{}.png", ("Tr", "Val")),
        ("{}/{}.jpg", "{}_labels/{}.png", ("train", "test")),
        ("{}Images/{}.jpg", "{}Labels/{}.png", ("Training", "Validation")),
        ("{}images/{}.jpg", "{}masks/{}.png", ("train", "val")),
        ("images/{}2017/{}.jpg", "annotations/{}2017/{}.png", ("train", "val")),
        ("imgs/{}/img_{}.jpg", "labels/{}/mask_{}.png", ("train", "val")),
        ("{}/scene{}/image.png", "{}/scene{}/label.png", ("train", "val")),
        ("data/{}-img/a/{}.jpg", "data/{}-lbl_masks/a/{}.png", ("TRAIN", "VAL")),
        ("images/{}_{}.jpg", "masks/{}_{}.png", ("train", "val")),
        ("{}_{}.jpg", "{}_{}_mask.png", ("train", "val")),
        ("images/{}_image_{}.jpg", "masks/{}_mask_{}.png", ("train", "test")),
        ("img_{}{}.png", "mask_{}{}.png", ("train", "val")),
        ("{}A/{}.jpg", "{}B/{}.png", ("train", "test")),
        ("images/{}/ADE_{}.jpg", "annotations/{}/ADE_{}.png", ("training", "validation")),
        ("{}_set/{}.jpg", "{}_gt/{}.png", ("train", "val")),
        ("{}/img/{}.jpg", "{}/lbl/{}.png", ("train", "dev")),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_splits_within_names(tmp_path, image, label, names, count):
    root = tmp_path / "set"
    expected = {}
    for split in names[:count]:
        expected[SPLITS[split.lower()]] = write(root, [(image.format(split, n), label.format(split, n)) for n in NUMBERS])
    described, notes = proposed(root, tmp_path)
    assert read(described, root, ("train", "val", "test")) == expected, (described.layout, notes)
    assert len(described.layout) == 1


# What is told


def test_labels_of_test_are_told(tmp_path):
    root = tmp_path / "set"
    for split in ("train", "val", "test"):
        write(root, [(f"{split}/images/{n}.jpg", f"{split}/masks/{n}.png") for n in NUMBERS])
    _, notes = proposed(root, tmp_path)
    assert any(
        "5 images of test have labels" in note and "sda eval RUN --dataset FILE.toml --split test" in note for note in notes
    )


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_folder_without_training_images_is_told(tmp_path, split):
    root = tmp_path / "set"
    write(root, [(f"{split}/images/{n}.jpg", f"{split}/masks/{n}.png") for n in NUMBERS])
    _, notes = proposed(root, tmp_path)
    assert any("no images of train" in note for note in notes)


def test_images_without_labels_are_counted(tmp_path):
    root = tmp_path / "set"
    write(root, [(f"img_{n}.jpg", f"mask_{n}.png") for n in NUMBERS])
    (root / "mask_007.png").unlink()
    write(root / "more", [(f"{n}.jpg", f"{n}_x_label.png") for n in NAMES[:2]])
    _, notes = proposed(root, tmp_path)
    assert any("1 of 5 images of train have no label, such as img_007.jpg" in note for note in notes), notes
    assert any("only 5 of 7 images are read" in note for note in notes), notes


@pytest.mark.parametrize("others", [2, 3])
def test_labels_that_came_back_with_other_names_are_told(tmp_path, others):
    """The kind of most labels is read; companions of labelled images, such as colours of ids, are nothing to tell."""
    root, names = tmp_path / "set", [f"{number:03d}" for number in range(8)]
    for index, name in enumerate(names):
        photo, values = scene(index)
        tiny.save(photo, root / f"photos/{name}.jpg")
        if index < 5:
            tiny.save(values, root / f"masks/{name}_mask.png")
            tiny.save(values, root / f"masks/{name}_color.png")
        elif index < 5 + others:
            tiny.save(values, root / f"masks/{name}.png")
    _, notes = proposed(root, tmp_path)
    words = f"{others} images have labels with other names, which are not read, such as photos/005.jpg: masks/005.png"
    assert any(note.startswith(words) and "like masks/000_mask.png" in note for note in notes), notes
    for name in names[5:]:
        (root / f"masks/{name}.png").unlink(missing_ok=True)
    assert not any("other names" in note for note in proposed(root, tmp_path)[1])


def test_names_that_only_the_layout_pairs_are_no_other_names(tmp_path):
    """An umlaut in two spellings of Unicode, brackets, and suffixes in upper case."""
    root = tmp_path / "set"
    for index, name in enumerate([*NUMBERS, "Straße 9 (u\u0308ber)"]):
        photo, values = scene(index)
        tiny.save(photo, root / f"photos/{name}.png")
        tiny.save(values, root / f"masks/{unicodedata.normalize('NFC', name)}.png")
    _, notes = proposed(root, tmp_path)
    assert not any("other names" in note for note in notes), notes


def test_val_without_labels_is_told(tmp_path):
    root = tmp_path / "set"
    write(root, [(f"train/img/{n}.jpg", f"train/gt/{n}.png") for n in NUMBERS])
    tiny.save(scene(9)[0], root / "val/img/009.jpg")
    assert any("1 of 1 images of val have no label" in note for note in proposed(root, tmp_path)[1])


@pytest.mark.parametrize("folder", ["images{}", "{}/images"])
def test_the_names_of_splits_without_labels_are_known(tmp_path, folder):
    root = tmp_path / "set"
    names = ("Tr", "Val", "Ts") if folder[0] == "i" else ("training", "validation", "testing")
    for split in names[:2]:
        pairs = [
            (f"{folder.format(split)}/{n}.jpg", f"{folder.format(split).replace('images', 'labels')}/{n}.png") for n in NUMBERS
        ]
        write(root, pairs)
    tiny.save(scene(9)[0], root / folder.format(names[2]) / "9.jpg")
    described, notes = proposed(root, tmp_path)
    assert described.splits == dict(zip(("train", "val", "test"), names, strict=True)) and len(notes) == 1


# Pairs that would be wrong


def test_labels_of_another_split_or_scene_are_not_taken(tmp_path):
    root = tmp_path / "set"
    write(root, [(f"trainImages/{n}.jpg", f"valMasks/{n}.png") for n in NUMBERS])
    _, notes = proposed(root, tmp_path)
    assert any("no label files match" in note for note in notes)


def test_a_scene_without_labels_does_not_take_those_of_another(tmp_path):
    root = tmp_path / "set"
    expected = write(root, [(f"s2/images/{n}.jpg", f"s2/masks/{n}.png") for n in NUMBERS])
    for index, name in enumerate(NUMBERS):
        tiny.save(scene(50 + index)[0], root / f"s1/images/{name}.jpg")
    described, notes = proposed(root, tmp_path)
    found = read(described, root)["train"]
    assert {image: label for image, label in found.items() if label} == expected
    assert any("s1/images and s2/images have the same labels" in note for note in notes), notes


def test_two_cameras_with_one_set_of_labels_are_told(tmp_path):
    root = tmp_path / "set"
    expected = write(root, [(f"image_2/{n}.png", f"labels/{n}.png") for n in NUMBERS])
    for index, name in enumerate(NUMBERS):
        tiny.save(scene(50 + index)[0], root / f"image_3/{name}.png")
    described, notes = proposed(root, tmp_path)
    assert set(read(described, root)["train"].values()) == set(expected.values())
    assert any("have the same labels" in note for note in notes) and any("only 5 of 10 images are read" in note for note in notes)


def test_two_sets_of_labels_are_told(tmp_path):
    root = tmp_path / "set"
    write(root, [(f"images/{n}.png", f"labels_anna/{n}.png") for n in NUMBERS])
    for index, name in enumerate(NUMBERS):
        tiny.save(scene(50 + index)[1], root / f"labels_ben/{name}.png")
    _, notes = proposed(root, tmp_path)
    assert any("could have the labels in labels_anna or in labels_ben" in note for note in notes), notes


def test_scenes_with_several_files(tmp_path):
    root = tmp_path / "set"
    expected = write(root, [(f"run_{n}/rgb.png", f"run_{n}/gt.png") for n in NUMBERS])
    for index, name in enumerate(NUMBERS):
        tiny.save(scene(50 + index)[0], root / f"run_{name}/thermal.png")
        tiny.save(scene(50 + index)[0][..., 0], root / f"run_{name}/depth.png")
    described, notes = proposed(root, tmp_path)
    found = read(described, root)["train"]
    assert {image: label for image, label in found.items() if label} == expected
    assert any("are read" in note for note in notes), notes


@pytest.mark.parametrize(
    ("images", "labels", "others"),
    [
        ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", ["SegmentationObject/{}.png"]),
        ("images/{}.jpg", "v1.2/labels/{}.png", ["v1.2/instances/{}.png"]),
        ("s{}/image.jpg", "s{}/label.png", ["s{}/label_color.png"]),
        ("images/{}.jpg", "labels/{}.png", ["labels_color/{}.png"]),
    ],
)
def test_labels_of_classes_are_preferred(tmp_path, images, labels, others):
    root = tmp_path / "set"
    expected = write(root, [(images.format(n), labels.format(n)) for n in NUMBERS])
    for other in others:
        for index, name in enumerate(NUMBERS):
            tiny.save(scene(index)[1], root / other.format(name))
    described, notes = proposed(root, tmp_path)
    assert read(described, root) == {"train": expected} and len(notes) == 1, notes


@pytest.mark.parametrize(
    ("image", "label", "names"),
    [
        ("{}/images/{}.jpg", "{}/labels/{}.png", [("Train", "train"), ("Val", "val")]),
        ("images/{}/{}.jpg", "{}_masks/{}.png", [("train", "training"), ("val", "validation")]),
    ],
)
def test_splits_with_two_names_have_a_layout_each(tmp_path, image, label, names):
    root = tmp_path / "set"
    pairs = {
        split: [(image.format(one, n), label.format(two, n)) for n in NUMBERS]
        for split, (one, two) in zip(("train", "val"), names, strict=True)
    }
    expected = {split: write(root, of_split) for split, of_split in pairs.items()}
    described, _ = proposed(root, tmp_path)
    assert read(described, root) == expected and [each.split for each in described.layout] == ["train", "val"]


def test_parts_of_a_split_are_apart_from_the_others(tmp_path):
    """If train1 and train2 had a {word}, it would match val, too."""
    root = tmp_path / "set"
    made = {
        part: write(root, [(f"{part}/i/{n}.jpg", f"{part}/m/{n}.png") for n in NUMBERS]) for part in ("train1", "train2", "val")
    }
    described, notes = proposed(root, tmp_path)
    assert read(described, root) == {"train": made["train1"], "val": made["val"]}
    assert "only 10 of 15 images are read" in notes


def test_doctor_reads_what_was_proposed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDA_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "set", [(f"scene_{n}/image.png", f"scene_{n}/label.png") for n in NUMBERS])
    assert tiny.run_main(monkeypatch, "init-dataset", "set") == 0
    assert tiny.run_main(monkeypatch, "doctor", "set.toml", "--root", "set", "--processes", 1) == 0
    assert "No problems found" in capsys.readouterr().out


def test_a_folder_of_labels_alone_is_told(tmp_path):
    for index in range(3):
        tiny.save(scene(index)[1], tmp_path / f"masks/{index}.png")
    assert any("every file looks like a label" in note for note in propose(tmp_path / "masks")[1])


def test_images_do_not_share_a_label_by_chance(tmp_path):
    """Their names begin like that of the only label, and end in different ways."""
    root = tmp_path / "set"
    write(root, [("images/city_Ash.jpg", "masks/city.png")])
    for index, name in enumerate(NAMES[1:], 1):
        tiny.save(scene(index)[0], root / f"images/city_{name}.jpg")
    described, notes = proposed(root, tmp_path)
    assert not any(read(described, root)["train"].values()) and any("no label files match" in note for note in notes)
