"""Proposed classes for all kinds of label files: the descriptor loads, reads every label, and means what the files show."""

import io

import numpy as np
import pytest
import tiny
from PIL import Image, ImageDraw

from sda import shelf
from sda.data import descriptor as descriptors
from sda.data.files import LabelCodec, show_color
from sda.data.inspect.pairs import count_label_values
from sda.data.inspect.propose import propose
from sda.data.layouts.legends import own_color
from sda.data.listing import list_items

COLORS = np.array([[200, 0, 0], [0, 100, 200], [30, 60, 90]], np.uint8)


def scene(seed=0):
    """Return a label of large areas with the ids 0, 1, 2; 2 covers an eighth."""
    label = np.zeros((48, 64), np.uint8)
    label[20 + seed % 5 :] = 1
    label[24:36, 8 + seed : 40 + seed] = 2
    return label


def write(root, label, suffix="png", count=6, **options):
    """Write pairs, whose labels are `label(scene, index)`: an image or an array."""
    (root / "masks").mkdir(parents=True)
    for index in range(count):
        tiny.save(np.random.default_rng(index).integers(0, 255, (48, 64, 3), np.uint8), root / f"images/{index}.jpg")
        made = label(scene(index), index)
        made = made if isinstance(made, Image.Image) else Image.fromarray(made)
        made.save(root / f"masks/{index}.{suffix}", **options)
    return root


def load(root):
    """Return the proposed descriptor, its notes and its text."""
    text, notes, *_ = propose(root)
    path = root.parent / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return descriptors.load(str(path)), "; ".join(notes), text


def decoded(described, root):
    """Return the labels as read by the descriptor."""
    listing = list_items(described, root, "train")
    codec = LabelCodec(described, listing.encoding, np.arange(256, dtype=np.uint8))
    return [codec.read(item.label) for item in listing.items]


def lookup(*values):
    return lambda label, index: np.array(values, np.uint8)[label]


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 100, 255), (0, 255, 1), (255, 0, 128), (0, 85, 250), (3, 250, 9)])
def test_values_of_large_areas_and_of_greys_are_classes(tmp_path, values):
    root = write(tmp_path / "set", lookup(*values))
    described, _, text = load(root)
    names = [f"class_{value}" for value in sorted(values)]
    assert described.table().names == names and described.void == []
    assert "% of pixels; if they are not labelled, write void = [" in text
    expected = np.array([sorted(values).index(value) for value in values], np.uint8)
    for index, label in enumerate(decoded(described, root)):
        assert np.array_equal(label, expected[scene(index)])


@pytest.mark.parametrize("values", [(0, 255), (255, 0), (0, 250), (128, 255)])
@pytest.mark.parametrize("small", [False, True])
def test_both_values_of_a_binary_mask_are_classes(tmp_path, values, small):
    root = write(tmp_path / "set", lambda label, _: np.array(values, np.uint8)[(label == 2 if small else label > 0).astype(int)])
    described, _, _ = load(root)
    assert described.table().names == [f"class_{value}" for value in sorted(values)] and described.void == []
    assert set(np.unique(decoded(described, root))) == {0, 1}


@pytest.mark.parametrize("values", [(0, 1, 255), (1, 2, 250), (7, 30, 255)])
def test_a_small_255_beside_ids_is_void(tmp_path, values):
    described, _, _ = load(write(tmp_path / "set", lookup(*values)))
    assert described.void == [values[2]] and len(described.table().names) == 2


def test_a_single_value_is_no_void(tmp_path):
    described, _, _ = load(write(tmp_path / "set", lookup(255, 255, 255)))
    assert described.table().names == ["class_255"]


# Palettes


def palettized(order):
    """Return a function that writes a scene whose class c has the id order[c], with the colours of COLORS."""

    def label(ids, _):
        image = Image.fromarray(np.array(order, np.uint8)[ids])
        palette = np.zeros((max(order) + 1, 3), np.uint8)
        palette[list(order)] = COLORS
        image.putpalette(palette.tobytes())
        return image

    return label


def test_palettes_that_differ_become_classes_by_colour(tmp_path):
    orders = [(0, 1, 2), (2, 0, 1), (1, 2, 0)]
    root = write(tmp_path / "set", lambda label, index: palettized(orders[index % 3])(label, index))
    described, notes, _ = load(root)
    assert "the palettes of the labels differ from file to file, so the labels are read by their colours" in notes
    colors = list(described.table().colors.values())
    for index, label in enumerate(decoded(described, root)):
        assert np.array_equal(np.array(colors, np.uint8)[label], COLORS[scene(index)])


@pytest.mark.parametrize("order", [(0, 1, 2), (5, 9, 200)])
def test_equal_palettes_give_the_classes_their_colours(tmp_path, order):
    root = write(tmp_path / "set", palettized(order))
    described, _, _ = load(root)
    assert described.table().colors == {f"class_{value}": COLORS[place].tolist() for place, value in enumerate(order)}
    assert described.ids == {str(value): f"class_{value}" for value in order}
    assert np.array_equal(decoded(described, root)[3], scene(3))


def test_palettes_with_colours_of_a_known_table(tmp_path):
    table = descriptors.class_table("camvid11").colors
    names = ["road", "sky", "car"]

    def label(ids, index):
        order = np.roll(np.arange(3), index)
        image = Image.fromarray(order[ids].astype(np.uint8))
        image.putpalette([value for place in np.argsort(order) for value in table[names[place]]])
        return image

    root = write(tmp_path / "set", label)
    described, _, _ = load(root)
    assert described.table().colors == {name: color for name, color in table.items() if name in names}  # those that occur
    expected = np.array([described.table().names.index(name) for name in names], np.uint8)
    for index, found in enumerate(decoded(described, root)):
        assert np.array_equal(found, expected[scene(index)])


def test_a_palette_that_repeats_a_colour(tmp_path):
    """Then the colours do not tell the ids apart, and each class gets a colour of its own."""

    def label(ids, _):
        image = Image.fromarray(ids)
        image.putpalette([9, 99, 9, 9, 99, 9, 1, 2, 3])
        return image

    root = write(tmp_path / "set", label)
    described, _, _ = load(root)
    assert len(described.table().names) == 3 and np.array_equal(decoded(described, root)[2], scene(2))


# Labels that cannot be used


def jpeg(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=85)
    return Image.open(io.BytesIO(stream.getvalue()))


@pytest.mark.parametrize(("suffix", "says"), [("jpg", "stored as JPEG, which is lossy"), ("webp", "stored as lossy WEBP")])
@pytest.mark.parametrize("values", [COLORS, np.array([0, 128, 255], np.uint8), np.array([0, 1, 2], np.uint8)])
def test_lossy_labels_are_named(tmp_path, suffix, says, values):
    root = write(tmp_path / "set", lambda label, _: values[label], suffix)
    described, notes, _ = load(root)
    assert says in notes and "--bad-files" not in notes
    assert described.layout[0].labels == f"masks/{{frame}}.{suffix}" and described.layout[0].images == "images/{frame}.jpg"


@pytest.mark.parametrize("values", [COLORS, np.array([0, 128, 255], np.uint8)])
def test_noise_is_no_list_of_classes(tmp_path, values):
    """JPEG that was converted to PNG."""
    described, notes, _ = load(write(tmp_path / "set", lambda label, _: jpeg(values[label])))
    assert "lossy compression" in notes
    assert described.layout[0].labels == "masks/{frame}.png"
    assert described.classes == "cityscapes19" or len(described.table().names) < 10


def test_labels_of_floats_are_named(tmp_path):
    _, notes, text = load(write(tmp_path / "set", lambda label, _: label.astype(np.float32), "tif"))
    assert "holds floating-point numbers (float32)" in notes and 'labels = "masks/{frame}.tif"' in text


def test_photos(tmp_path):
    blurred = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(blurred).resize((64, 48), Image.Resampling.BICUBIC).save(tmp_path / "label.jpg")
    tiny.save(np.zeros((48, 64, 3), np.uint8), tmp_path / "images/black.jpg")
    assert count_label_values(tmp_path / "label.jpg") == count_label_values(tmp_path / "images/black.jpg") == 0
    (tmp_path / "images/empty.png").write_bytes(b"")
    assert count_label_values(tmp_path / "images/empty.png") is None


# Other kinds of files


@pytest.mark.parametrize(
    ("convert", "suffix"),
    [
        (lambda ids: Image.merge("LA", (Image.fromarray(ids), Image.new("L", (64, 48), 255))), "png"),
        (lambda ids: ids.astype(np.uint16), "png"),
        (lambda ids: ids.astype(">u2"), "tif"),
        (lambda ids: ids.astype(np.int32), "tif"),
        (lambda ids: ids[..., None].repeat(3, 2), "png"),
        (lambda ids: ids, "bmp"),
        (lambda ids: COLORS[ids], "png"),
        (lambda ids: np.dstack([COLORS[ids], ids * 0 + 255]), "png"),
        (lambda ids: COLORS[ids], "tif"),
    ],
)
def test_every_lossless_kind_of_label_is_read(tmp_path, convert, suffix):
    root = write(tmp_path / "set", lambda label, _: convert(label), suffix)
    described, _, _ = load(root)
    labels = decoded(described, root)
    assert len(described.table().names) == 3 and len(labels) == 6
    names = described.table().names
    order = np.unique([labels[0][0, 0], labels[0][47, 0], labels[0][28, 20]], return_index=True)[1]
    assert sorted(order) == [0, 1, 2], names
    for index, label in enumerate(labels):
        meaning = np.array([labels[0][0, 0], labels[0][47, 0], labels[0][28, 20]], np.uint8)
        assert np.array_equal(label, meaning[scene(index)])


def test_transparent_greys_are_named(tmp_path):
    root = write(tmp_path / "set", lambda ids, _: Image.merge("LA", (Image.fromarray(ids), Image.fromarray(ids * 100))))
    assert "greys that are transparent" in load(root)[1]


@pytest.mark.parametrize(
    ("values", "says", "names"),
    [
        ((0, 1, 1000), "ids must be from 0 to 255, but 6 of 6 labels that were read hold 1000, such as that of", 2),
        ((0, 1, -1), "but 6 of 6 labels that were read hold -1, ", 2),
        ((0, 1, 256), "but 6 of 6 labels that were read hold 256, ", 2),
        (
            (7001, 8002, 26003),
            "hold 7001, 8002, 26003, such as that of images/0.jpg: convert the labels; values from 1000 are often instances",
            19,
        ),
        ((0, 1000, 2000), "hold 1000, 2000, such as that of", 19),  # a table of one class could not be trained
    ],
)
def test_only_ids_that_a_descriptor_can_name_are_proposed(tmp_path, values, says, names):
    root = write(tmp_path / "set", lambda label, _: np.array(values, np.int32)[label], "tif")
    described, notes, _ = load(root)
    assert says in notes and len(described.table().names) == names


# Smoothed labels, and labels of two kinds

BRIGHT = np.array([[128, 64, 128], [70, 130, 180], [0, 0, 0]], np.uint8)


def smoothed(label, index):
    """Colours of a scene that was drawn four times as large, with a circle, and resized."""
    large = Image.fromarray(BRIGHT[label]).resize((256, 192), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(large)
    pen.ellipse((8 + index, 8, 90, 90), fill=tuple(BRIGHT[1].tolist()))
    pen.polygon([(130, 100 + index), (240, 110), (200, 180)], fill=tuple(BRIGHT[2].tolist()))
    return large.resize((64, 48), Image.Resampling.BOX)


def noisy(label, index):
    """Colours near those of a scene, as after JPEG."""
    noise = np.random.default_rng(index).integers(-5, 6, (48, 64, 3)) * (np.random.default_rng(9).random((48, 64, 1)) < 0.3)
    return (BRIGHT[label] + noise).clip(0, 255).astype(np.uint8)


def nearest(path):
    colors = np.asarray(Image.open(path)).astype(int)
    distance = abs(colors[:, :, None] - BRIGHT.astype(int)).max(axis=3)
    tie = (distance == distance.min(axis=2, keepdims=True)).sum(axis=2) > 1
    return np.where(tie, 9, distance.argmin(axis=2))


@pytest.mark.parametrize("legend", [False, True])
@pytest.mark.parametrize("strange", [smoothed, noisy])
@pytest.mark.parametrize("clean", [0, 2, 4])
def test_smoothed_labels_beside_clean_ones_keep_their_tolerance(tmp_path, strange, clean, legend):
    """As when a mask of CVAT joins smoothed ones. Noise without a clean label or a legend is no list of classes."""
    root = write(tmp_path / "set", lambda label, index: BRIGHT[label] if index < clean else strange(label, index))
    if legend:
        (root / "labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\nsky:70,130,180::\n"
        )
    described, notes, _ = load(root)
    if strange is noisy and not clean and not legend:
        return
    assert described.color_tolerance and "the nearest class counts" in notes and "export the labels again" not in notes
    assert described.void_colors == ([[0, 0, 0]] if legend else [])
    if legend:
        assert described.table().names == ["road", "sky"]
    colors = [*described.table().colors.values(), *described.void_colors]
    assert sorted(colors) == sorted(BRIGHT.tolist())
    for index, label in enumerate(decoded(described, root)):
        expected = nearest(root / f"masks/{index}.png")
        shown = np.full(256, 2 if legend else 9)  # by CVAT's legend, black is void
        places = [BRIGHT.tolist().index(color) for color in described.table().colors.values()]
        shown[: len(places)] = places
        assert np.array_equal(shown[label], np.where(expected == 9, shown[255], expected))


def test_a_class_that_only_smoothed_labels_show_is_no_mixture(tmp_path):
    root = write(
        tmp_path / "set",
        lambda label, index: BRIGHT[np.minimum(label, 1)] if index < 2 else smoothed(label, index),
    )
    described, _, _ = load(root)
    assert described.color_tolerance and sorted(described.table().colors.values()) == sorted(BRIGHT.tolist())


OWN = np.array([[int(own_color(index)[at : at + 2], 16) for at in (1, 3, 5)] for index in range(5)], np.uint8)


def test_own_colours_are_those_of_no_class_table():
    every = {own_color(index) for index in range(256)}
    known = {
        show_color(descriptors.pack_color(color))
        for name in shelf.names("datasets/classes")
        for color in descriptors.class_table(name).colors.values()
    }
    assert len(every) == 256 and not every & known
    assert not any(color[1:3] == color[3:5] == color[5:7] for color in every)


def test_masks_in_own_colours_are_the_numbered_classes(tmp_path):
    """Not those of VOC: whoever exports predictions of classes without names gets such masks."""
    root = write(tmp_path / "set", lambda label, index: np.where(label[..., None] == 0, 0, OWN[1:4][label]).astype(np.uint8))
    described, notes, text = load(root)
    assert described.table().names == ["class_2", "class_3"] and described.void_colors == [[0, 0, 0]]
    assert "colours that sda gave to 2 classes" in notes and text.count("# ?") == 2


@pytest.mark.parametrize("names", [None, ("class_1", "class_2", "class_3"), ("road", "sky", "class 3")])
def test_ids_and_own_colours_are_the_same_classes(tmp_path, names):
    """Some labels of a folder hold ids, and others come back from an annotation program in the colours that sda gave the ids."""
    root = write(tmp_path / "set", lambda label, index: OWN[1:4][label] if index < 2 else label + 1)
    if names:
        rows = [f"{name}:{','.join(map(str, color))}::\n" for name, color in zip(names, OWN[1:4], strict=True)]
        (root / "labelmap.txt").write_text("background:0,0,0::\n" + "".join(rows))
    described, notes, _ = load(root)
    names = names or ("class_1", "class_2", "class_3")
    assert described.table().names == [*names] and described.ids == dict(zip("123", names, strict=True))
    assert "4 labels hold ids, and the others colours" in notes
    for index, label in enumerate(decoded(described, root)):
        assert np.array_equal(label, scene(index))


def test_ids_beside_other_colours_are_classes_of_their_own(tmp_path):
    """Never those of the colours by their order, which would be a silent mistake."""
    root = write(tmp_path / "set", lambda label, index: BRIGHT[label] if index < 3 else label + 1)
    described, notes, _ = load(root)
    assert described.ids == {"1": "class_1", "2": "class_2", "3": "class_3"} and len(described.table().names) == 6
    assert "if some are the same classes, give them one name in [ids]" in notes
    assert len(decoded(described, root)) == 6


@pytest.mark.parametrize("strange", [smoothed, noisy, lambda label, index: BRIGHT[label]])
def test_colours_that_no_legend_names_are_void(tmp_path, strange):
    """Such as the white of labels that were drawn before those of the annotation program. They do not widen the tolerance."""

    def label(label, index):
        made = np.array(strange(label, index))
        if index > 1:
            made[:6] = 255
        return made

    root = write(tmp_path / "set", label)
    (root / "labelmap.txt").write_text("background:0,0,0::\nroad:128,64,128::\nsky:70,130,180::\n")
    described, notes, text = load(root)
    assert described.void_colors == [[0, 0, 0], [255, 255, 255]] and "void_colors = [[0, 0, 0], [255, 255, 255]] # ?" in text
    assert "no file names the colours #ffffff: they are ignored" in notes and described.table().names == ["road", "sky"]
    assert bool(described.color_tolerance) == (strange in (smoothed, noisy)) and described.color_tolerance < 120
    for index, found in enumerate(decoded(described, root)):
        assert (found[:6] == 255).all() or index < 2
