"""Proposed descriptors for many kinds of folders: each must find every pair and read its labels."""

import unicodedata

import numpy as np
import pytest
import tiny
from PIL import Image

from sda.data import descriptor as descriptors
from sda.data.files import LabelCodec
from sda.data.inspect.propose import propose
from sda.data.listing import list_items

IDS = (7, 21, 26)  # ids of Cityscapes: road, vegetation, car


def photo(seed):
    return np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def label(seed, values):
    return np.array(values, np.uint8)[np.random.default_rng(seed).integers(len(values), size=(3, 4))].repeat(8, 0).repeat(8, 1)


def write(root, images, labels, count=6, values=(0, 1, 2), splits=("train", "val"), **words):
    """Write `count` pairs per split, under patterns with {split}, {place} and {frame}; returns their number."""
    total = 0
    for number, split in enumerate(splits):
        for index in range(count):
            filled = {"split": split, "place": f"place{index % 2}", "frame": f"{number}{index:05d}", **words}
            tiny.save(photo(index), root / images.format(**filled))
            made = label(100 * number + index, values)
            tiny.save(made, root / labels.format(**filled))
            total += 1
    return total


def load(root, tmp_path):
    text, notes, *_ = propose(root)
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return descriptors.load(str(path)), notes, text


def pairs(described, root, splits=("train", "val")):
    """Return image → label of all pairs, after reading every label."""
    found = {}
    for split in splits:
        listing = list_items(described, root, split)
        codec = LabelCodec(described, listing.encoding, np.arange(256, dtype=np.uint8))
        for item in listing.items:
            assert item.label is not None, item.key
            codec.read(item.label)
            found[item.key] = item.label.relative_to(root).as_posix()
    return found


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("{split}/{frame}.png", "{split}annot/{frame}.png"),
        ("images/{split}/{frame}.jpg", "masks/{split}/{frame}.png"),
        ("{split}/images/{frame}.jpg", "{split}/labels/{frame}.png"),
        ("leftImg8bit/{split}/{place}/{frame}_leftImg8bit.png", "gtFine/{split}/{place}/{frame}_gtFine_labelIds.png"),
        ("img/{split}/{place}/{frame}.jpg", "ann/{split}/{place}/{frame}_mask.png"),
        ("my data/{split}/pictures/{frame}.jpg", "my data/{split}/größe/{frame}.png"),
        ("{split}/{frame}.jpg", "{split}/{frame}_label.png"),
    ],
)
def test_common_layouts_are_found(tmp_path, images, labels):
    root = tmp_path / "set"
    total = write(root, images, labels)
    described, _, _ = load(root, tmp_path)
    found = pairs(described, root)
    assert len(found) == total
    for number, split in enumerate(("train", "val")):
        filled = {"split": split, "place": "place1", "frame": f"{number}00003"}
        assert found[images.format(**filled)] == labels.format(**filled)


def test_splits_with_other_names(tmp_path):
    root = tmp_path / "set"
    write(root, "{split}/rgb/{frame}.jpg", "{split}/seg/{frame}.png", splits=("training", "validation"))
    described, _, _ = load(root, tmp_path)
    assert described.splits == {"train": "training", "val": "validation"}
    assert len(pairs(described, root)) == 12


def test_folders_without_splits(tmp_path):
    root = tmp_path / "set"
    write(root, "images/{frame}.jpg", "masks/{frame}.png", splits=("train",))
    described, _, _ = load(root, tmp_path)
    assert len(pairs(described, root, ("train",))) == 6


def test_ids_are_preferred_to_colours_and_instances(tmp_path):
    """If a folder has ids, colours and instances, the descriptor uses the ids."""
    root = tmp_path / "set"
    write(
        root,
        "leftImg8bit/{split}/{place}/{frame}_leftImg8bit.png",
        "gtFine/{split}/{place}/{frame}_gtFine_labelIds.png",
        values=[7, 21, 26],
    )
    for path in sorted(root.rglob("*_labelIds.png")):
        with Image.open(path) as ids:
            ids.save(str(path).replace("labelIds", "instanceIds"))
            ids.convert("RGB").save(str(path).replace("labelIds", "color"))
    described, notes, text = load(root, tmp_path)
    assert set(pairs(described, root).values()) == {path.relative_to(root).as_posix() for path in root.rglob("*_labelIds.png")}
    assert 'classes = "cityscapes19"' in text and "label ids of Cityscapes" in notes[0]


def test_unknown_ids_become_classes_to_name(tmp_path):
    root = tmp_path / "set"
    write(root, "images/{split}/{frame}.jpg", "masks/{split}/{frame}.png", values=[*[3, 9] * 6, 255])
    described, _, text = load(root, tmp_path)
    assert described.table().names == ["class_3", "class_9"] and described.ids == {"3": "class_3", "9": "class_9"}
    assert described.void == [255] and "% of pixels" in text


def test_train_ids_of_cityscapes_are_recognised(tmp_path):
    root = tmp_path / "set"
    write(root, "images/{split}/{frame}.jpg", "masks/{split}/{frame}.png", values=[*range(19), 255], count=12)
    described, notes, _ = load(root, tmp_path)
    assert described.layout[0].encoding == "train_ids" and described.classes == "cityscapes19" and "if not" in notes[0]


@pytest.mark.parametrize(("table", "names"), [("cityscapes19", ["road", "sky", "car"]), ("camvid11", ["road", "tree", "car"])])
def test_colours_of_a_known_table_are_recognised(tmp_path, table, names):
    """A few colours may be those of other classes, because programs give VOC's colours to any: they are guesses."""
    root = tmp_path / "set"
    colors = descriptors.class_table(table).colors
    for index in range(6):
        tiny.save(photo(index), root / f"images/train/{index}.jpg")
        tiny.save(
            np.array([colors[name] for name in names], np.uint8)[label(index, [0, 1, 2])], root / f"masks/train/{index}.png"
        )
    described, notes, text = load(root, tmp_path)
    assert described.table().names == [name for name in colors if name in names] and text.count("# ?") >= 3
    assert any("3 colours of the labels are those of" in note and f"in the class table {table}" in note for note in notes)
    assert len(pairs(described, root, ("train",))) == 6


def test_a_colour_that_a_known_table_lacks_is_a_class_to_name(tmp_path):
    """Six colours of Cityscapes and one more, which covers a quarter: it is no void."""
    root = tmp_path / "set"
    colors = [*descriptors.class_table("cityscapes19").colors.values()][:6]
    for index in range(6):
        tiny.save(photo(index), root / f"images/{index}.jpg")
        tiny.save(np.array([*colors, [200, 120, 90]], np.uint8)[label(index, list(range(7)))], root / f"masks/{index}.png")
    described, _, text = load(root, tmp_path)
    assert "colour_c8785a" in described.table().names and not described.void_colors and text.count("# ?") >= 7


def test_photos_with_labels_painted_over_them_are_no_photos(tmp_path):
    """labelme2voc writes them beside the photos, for the labelled ones only."""
    root = tmp_path / "set"
    for index in range(6):
        tiny.save(photo(index), root / f"JPEGImages/{index}.jpg")
        if index < 3:
            tiny.save(photo(index), root / f"SegmentationClassVisualization/{index}.jpg")
            tiny.save(label(index, [0, 1, 2]), root / f"SegmentationClassPNG/{index}.png")
    described, _, _ = load(root, tmp_path)
    images = list_items(described, root, "train").items
    assert len(images) == 6 and sum(item.label is not None for item in images) == 3
    assert all(item.key.startswith("JPEGImages/") for item in images)


def test_unknown_colours_become_classes_to_name(tmp_path):
    root = tmp_path / "set"
    for index in range(6):
        tiny.save(photo(index), root / f"images/train/{index}.jpg")
        tiny.save(np.array([[1, 2, 3], [200, 0, 7]], np.uint8)[label(index, [0, 1])], root / f"masks/train/{index}.png")
    described, _, _ = load(root, tmp_path)
    assert described.table().colors == {"colour_010203": [1, 2, 3], "colour_c80007": [200, 0, 7]}
    assert len(pairs(described, root, ("train",))) == 6


def test_images_without_labels(tmp_path):
    root = tmp_path / "set"
    for index in range(4):
        tiny.save(photo(index), root / f"{index}.jpg")
    described, notes, _ = load(root, tmp_path)
    assert len(list_items(described, root, "train").items) == 4 and "without labels" in notes[0]


# Suffixes, masks beside images, and what the layouts leave out


@pytest.mark.parametrize(
    ("images", "labels", "layout"),
    [
        (["i/{n}.jpg", "i/{n}.JPG", "i/{n}.tif"], ["m/{n}.png"], ("i/{frame}.{ext}", "m/{frame}.png")),
        (["i/{n}.jpg", "i/{n}.png"], ["m/{n}.png", "m/{n}.PNG", "m/{n}.bmp"], ("i/{frame}.{ext}", "m/{frame}.{ext}")),
        (["{n}.jpg", "{n}.jpeg"], ["{n}.png"], ("{frame}.{ext}", "{frame}.png")),
        (["{n}.png"], ["{n}_mask.png"], ("{frame}.png", "{frame}_mask.png")),
        (["{n}_rgb.png", "{n}_rgb.jpg"], ["{n}_mask.png"], ("{frame}_rgb.{ext}", "{frame}_mask.png")),
    ],
)
@pytest.mark.parametrize("names", ["abcdef", "123456"])
def test_one_layout_is_written_for_several_suffixes(tmp_path, images, labels, layout, names):
    for index, name in enumerate(names):
        tiny.save(photo(index), tmp_path / "set" / images[index % len(images)].format(n=3 * name))
        tiny.save(label(index, (0, 1, 2)), tmp_path / "set" / labels[index % len(labels)].format(n=3 * name))
    described, notes, _ = load(tmp_path / "set", tmp_path)
    assert [(found.images, found.labels) for found in described.layout] == [layout]
    assert len(pairs(described, tmp_path / "set", ("train",))) == 6 and len(notes) == 1


def test_splits_may_have_names_with_other_endings(tmp_path):
    root = tmp_path / "set"
    total = write(root, "{split}/{frame}_rgb.png", "{split}/{frame}_mask.png", splits=("train",))
    total += write(root, "{split}/{frame}.png", "{split}/{frame}_mask.png", splits=("val",), count=3)
    described, notes, _ = load(root, tmp_path)
    assert len(described.layout) == 2 and len(pairs(described, root)) == total and len(notes) == 1


def test_maps_of_an_image_are_not_images(tmp_path):
    """A depth map pairs with the label of its image, too."""
    root = tmp_path / "set"
    for index in range(4):
        tiny.save(photo(index), root / f"{index}.png")
        tiny.save(photo(index)[..., 0], root / f"{index}_depth.png")
        tiny.save(label(index, (0, 1, 2)), root / f"{index}_mask.png")
    described, notes, _ = load(root, tmp_path)
    assert [(found.images, found.labels) for found in described.layout] == [("{frame}.png", "{frame}_mask.png")]
    assert len(pairs(described, root, ("train",))) == 4 and "4 files are not used as images" in notes[0]


def test_accents_stored_in_two_ways_are_paired(tmp_path):
    for index in range(4):
        tiny.save(photo(index), tmp_path / f"set/i/ä{index}.jpg")
        tiny.save(label(index, (0, 1, 2)), tmp_path / "set/m" / unicodedata.normalize("NFD", f"ä{index}.png"))
    described, _, _ = load(tmp_path / "set", tmp_path)
    assert len(list_items(described, tmp_path / "set", "train").items) == 4
    assert [found.labels for found in described.layout] == ["m/{frame}.png"]


def test_images_outside_of_the_layouts_are_told(tmp_path):
    root = tmp_path / "set"
    total = write(root, "{split}/i/{frame}.jpg", "{split}/m/{frame}.png")
    tiny.save(photo(99), root / "extra/99.jpg")
    tiny.save(photo(98), root / "deep/er/i/98.jpg")
    tiny.save(label(98, (0, 1, 2)), root / "deep/er/m/98.png")
    described, notes, _ = load(root, tmp_path)
    assert described.layout[0].images == "{split}/i/{frame}.jpg" and len(pairs(described, root)) == total
    assert any("deep/er/i/98.jpg, are not read" in note for note in notes)


def test_names_that_differ_in_case_are_told(tmp_path):
    for index in range(3):
        tiny.save(photo(index), tmp_path / f"set/i/P{index}.jpg")
        tiny.save(label(index, (0, 1, 2)), tmp_path / f"set/m/p{index}.png")
    [line] = propose(tmp_path / "set").unread
    assert line.startswith("3 files look like labels, such as m/p0.png, but no image has their names")


@pytest.mark.parametrize("suffix", [".npy", ".gif", "", ".json"])
def test_label_files_that_are_not_read_are_named(tmp_path, suffix):
    root = tmp_path / "set"
    write(root, "i/{frame}.jpg", "m/{frame}.png", splits=("train",))
    for path in list((root / "m").iterdir()):
        path.rename(path.with_suffix(suffix))
    [line] = propose(root).unread
    assert line.startswith(f"6 {suffix or 'files without a suffix'}{' files' * bool(suffix)}, such as m/000000{suffix}, are not ")


def test_an_image_stored_twice_is_told(tmp_path):
    root = tmp_path / "set"
    write(root, "i/{frame}.jpg", "m/{frame}.png", splits=("train",))
    tiny.save(photo(0), root / "i/000000.png")
    _, notes, _ = load(root, tmp_path)
    assert "i/000000.jpg are two images for one label" in notes[0] or "i/000000.png are two images for one label" in notes[0]


def test_names_that_are_not_utf_8_become_words(tmp_path):
    root = tmp_path / "r\udcf6t"
    write(root, "i\udce4/{frame}.jpg", "m/{frame}.png", splits=("train",))
    described, _, text = load(root, tmp_path)
    assert described.title == "r?t" and described.layout[0].images == "{folder1}/{frame}.jpg" and text.isascii()
    assert len(pairs(described, root, ("train",))) == 6


def test_command_writes_a_descriptor(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "my set", "{split}/{frame}.jpg", "{split}_gt/{frame}.png")
    before = tiny.files(tmp_path / "my set")
    assert tiny.run_main(monkeypatch, "init-dataset", "my set") == 0
    assert "sda doctor 'my set.toml' --root 'my set'" in capsys.readouterr().out
    assert tiny.files(tmp_path / "my set") == before
    monkeypatch.setenv("SDA_CACHE", str(tmp_path / "cache"))
    assert tiny.run_main(monkeypatch, "doctor", "my set.toml", "--root", "my set", "--processes", 1) == 0
    assert tiny.run_main(monkeypatch, "init-dataset", "my set") == 2
    assert "my set.toml: this file exists and is not overwritten" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert tiny.run_main(monkeypatch, "init-dataset", "empty", "--out", "-") == 2
    assert "contains no images" in capsys.readouterr().err
