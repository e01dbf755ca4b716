"""Label and image files: valid ones are decoded, invalid ones are refused, and none is modified."""

import gc
import hashlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from sda.data.descriptor import Classes, Descriptor, load, map_classes
from sda.data.files import FileError, LabelCodec, looks_lossy, read_image, read_pair, voc_color
from sda.data.item import Item

MINE = Descriptor(
    title="Mine",
    classes={"stone": [10, 20, 30], "wood": [40, 50, 60], "glass": [0, 0, 255]},
    ids={"3": "stone", "7": "wood", "200": "glass"},
    void=[0, 255],
    void_colors=[[255, 255, 255]],
    layout=[{"images": "{frame}.png"}],
)


def codec(descriptor=MINE, encoding="ids", target=None):
    target = target or descriptor
    mapping, _ = map_classes(descriptor, Classes("there", target.table()))
    return LabelCodec(descriptor, encoding, mapping)


def save(path, array, palette=None):
    image = Image.fromarray(np.array(array, np.uint8))
    if palette is not None:
        image.putpalette(palette)
    image.save(path)
    return path


def mode_of(path):
    with Image.open(path) as image:
        return image.mode


def digest(*paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "label.png"


# Files that can be read


def test_palette_png_is_read_by_index(path):
    # as in GTA5: indices are Cityscapes label ids; the colours of the palette must not matter
    ids = [[7, 8, 26], [0, 33, 34]]
    palette = np.random.default_rng(0).integers(0, 256, 768).tolist()
    save(path, ids, palette=palette)
    assert mode_of(path) == "P"
    before = digest(path)
    label = codec(load("gta5")).read(path)
    assert label.tolist() == [[0, 1, 13], [255, 18, 255]] and label.dtype == np.uint8
    assert digest(path) == before


def test_greyscale_ids(path):
    save(path, [[3, 7], [200, 0], [255, 3]])
    assert codec().read(path).tolist() == [[0, 1], [2, 255], [255, 0]]


def test_two_bit_png(path):
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    image.putpalette([9] * 12)
    image.save(path, bits=2)
    label = codec(load("camvid")).read(path)
    assert label.tolist() == [[0, 1, 2, 3]]


def test_one_bit_png(path):
    Image.fromarray(np.array([[False, True]])).save(path)
    assert mode_of(path) == "1"
    assert codec(load("camvid")).read(path).tolist() == [[0, 1]]


def test_train_ids_with_both_ignore_values(path):
    save(path, [[0, 1, 18, 250, 255]])
    assert codec(load("cityscapes"), "train_ids").read(path).tolist() == [[0, 1, 18, 255, 255]]


def test_sixteen_bit_ids(path):
    Image.fromarray(np.array([[3, 7, 0]], np.uint16)).save(path)
    assert mode_of(path).startswith("I")
    assert codec().read(path).tolist() == [[0, 1, 255]]


# Palettes

COLORS = {"stone": (10, 20, 30), "wood": (40, 50, 60), "glass": (0, 0, 255), "void": (255, 255, 255)}
IN_ORDER = {3: "stone", 7: "wood", 200: "glass", 0: "void"}  # the ids of MINE


def save_with_palette(path, ids, colors, default=None):
    """Write ids with a palette: id → name or colour; `default` is the whole palette otherwise, as bytes."""
    palette = list(default or bytes(3 * (max(colors) + 1)))
    for value, color in colors.items():
        palette[3 * value : 3 * value + 3] = COLORS.get(color, color)
    return save(path, [ids], palette=palette)


@pytest.mark.parametrize("encoding", ["ids", "train_ids", "ids_in_red"])
@pytest.mark.parametrize("order", [["stone", "wood", "glass", "void"], ["glass", "void", "stone", "wood"], ["wood", "glass"]])
def test_palettes_with_the_colours_of_the_classes_are_read_by_colour(path, order, encoding):
    """Each editor numbers the colours in its own way: 0, 1, 2 in the order in which they were drawn."""
    ids = list(range(len(order)))
    save_with_palette(path, ids, dict(enumerate(order)))
    expected = [{"stone": 0, "wood": 1, "glass": 2, "void": 255}[name] for name in order]
    assert codec(encoding=encoding).read(path).tolist() == [expected]


def test_unused_colours_of_a_palette_do_not_matter(path):
    """Some programs fill the palette with greys or blacks, or leave colours in it that were erased."""
    greys = [value for value in range(256) for _ in range(3)]
    save_with_palette(path, [0, 1], {0: "wood", 1: "stone"}, greys)
    assert codec().read(path).tolist() == [[1, 0]]
    save_with_palette(path, [0, 1], {0: "wood", 1: "stone", 2: (9, 9, 200)})
    assert codec().read(path).tolist() == [[1, 0]]


@pytest.mark.parametrize("suffix", ["bmp", "tif", "gif", "tga"])
def test_palettes_of_other_formats(tmp_path, suffix):
    path = tmp_path / f"label.{suffix}"
    save_with_palette(path, [0, 1, 2, 3], dict(enumerate(["wood", "void", "glass", "stone"])))
    assert codec().read(path).tolist() == [[1, 255, 2, 0]]


@pytest.mark.parametrize("colors", [256, 8])
def test_masks_that_were_reduced_to_a_palette(path, colors):
    """Image editors order the colours by frequency, and each file has only those that it shows."""
    label = np.array([COLORS["glass"], COLORS["stone"], COLORS["wood"]], np.uint8)[[[0, 0, 0, 0, 1, 1, 1, 2, 2]]]
    Image.fromarray(label).quantize(colors).save(path)
    assert mode_of(path) == "P" and codec().read(path).tolist() == [[2, 2, 2, 2, 0, 0, 0, 1, 1]]
    Image.fromarray(label[:, :3]).quantize(colors).save(path)
    assert codec().read(path).tolist() == [[2, 2, 2]]
    Image.fromarray(label).convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    assert codec().read(path).tolist() == [[2, 2, 2, 2, 0, 0, 0, 1, 1]]


def test_transparent_palettes_are_read_by_colour(path):
    with Image.open(save_with_palette(path, [0, 1], {0: "wood", 1: "stone"})) as image:
        image.load()
    image.save(path, transparency=1)
    assert codec().read(path).tolist() == [[1, 0]]


def test_a_palette_in_the_order_of_the_ids_changes_nothing(path):
    save_with_palette(path, [3, 7, 200, 0, 255], IN_ORDER)
    assert codec().read(path).tolist() == [[0, 1, 2, 255, 255]]


def test_gta5_palettes_keep_their_ids(path):
    """As published: licence plates (34) are void and have the colour of cars, pole groups (18) that of poles."""
    gta5 = load("gta5")
    names, table = gta5.ids, gta5.table().colors
    colors = {int(value): tuple(table[name]) for value, name in names.items()} | {34: (0, 0, 142), 18: (153, 153, 153)}
    save_with_palette(path, [7, 26, 34, 18, 17, 0], colors)
    assert codec(gta5).read(path).tolist() == [[0, 13, 255, 255, 5, 255]]


def test_voc_palettes_only_number_the_ids(path):
    """Tools give any ids the palette of VOC, in which 21 has the colour of Cityscapes' roads and 3 that of CamVid's trees."""
    voc = b"".join(voc_color(value).to_bytes(3, "big") for value in range(256))
    save_with_palette(path, [21, 21], {21: voc[63:66]}, voc)
    assert codec(load("cityscapes")).read(path).tolist() == [[8, 8]]
    save_with_palette(path, [1, 3], {3: voc[9:12]}, voc)
    assert codec(load("camvid")).read(path).tolist() == [[1, 3]]
    save_with_palette(path, [0, 15, 255], {0: (0, 0, 0)}, voc)
    assert codec(load("voc2012")).read(path).tolist() == [[0, 15, 255]]


@pytest.mark.parametrize("colour", [(1, 2, 3), (10, 20, 30)])
def test_a_palette_of_other_colours_is_not_compared(path, colour):
    """A rainbow may contain the colour of a class by chance."""
    rainbow = np.random.default_rng(0).integers(0, 256, 768).tolist()
    save_with_palette(path, [3, 7, 200], {7: colour}, rainbow)
    assert codec().read(path).tolist() == [[0, 1, 2]]


def test_greys_1_2_3_are_no_palette(path):
    """Although the classes have such colours in this order."""
    grey = Descriptor(
        title="Grey", classes={name: [value] * 3 for value, name in enumerate("abc", 1)}, layout=[{"images": "{frame}.png"}]
    )
    save(path, [[0, 1, 2]], palette=[value for value in range(256) for _ in range(3)])
    assert mode_of(path) == "P" and codec(grey).read(path).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("colors", "says"),
    [
        (
            {3: "wood", 7: "stone", 200: (1, 2, 3)},
            "the id 3 the colour of 'wood', but the descriptor reads 3 as 'stone'; add #010203",
        ),
        ({0: "wood", 7: (1, 2, 3)}, "the id 0 the colour of 'wood', but the descriptor reads 0 as void; add #010203"),
        (
            {5: "glass", 7: "wood", 3: (1, 2, 3)},
            "the id 5 the colour of 'glass', but the descriptor reads 5 as nothing; add #010203",
        ),
    ],
)
def test_a_palette_that_contradicts_the_descriptor_is_refused(path, colors, says):
    save_with_palette(path, sorted(colors), colors)
    assert says in fault(path)


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_labels(path, channels):
    colors = [[10, 20, 30], [40, 50, 60], [255, 255, 255], [0, 0, 255]]
    save(path, [[color + [77] * (channels - 3) for color in colors]])
    assert codec().read(path).tolist() == [[0, 1, 255, 2]]


def test_cityscapes_colours(path):
    save(path, [[[128, 64, 128], [0, 0, 142], [0, 0, 0], [111, 74, 0], [119, 11, 32]]])
    assert codec(load("cityscapes")).read(path).tolist() == [[0, 13, 255, 255, 18]]


def test_dropped_classes_become_the_ignore_label(path):
    target = Descriptor(title="Two", classes={"wood": [0, 0, 0], "stone": [1, 1, 1]}, layout=[{"images": "a"}])
    save(path, [[3, 7, 200, 0]])
    assert codec(target=target).read(path).tolist() == [[1, 0, 255, 255]]
    save(path, [[[10, 20, 30], [40, 50, 60], [0, 0, 255]]])
    assert codec(target=target).read(path).tolist() == [[1, 0, 255]]


def test_camvid_in_the_classes_of_idd_lite(path):
    descriptor = load("camvid")
    mapping, _ = map_classes(descriptor, Classes("idd_lite7", load("idd_lite").table()))
    save(path, [list(range(12))])
    assert LabelCodec(descriptor, "ids", mapping).read(path).tolist() == [[6, 5, 4, 0, 1, 5, 4, 4, 3, 2, 2, 255]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (5, 4)).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (5, 4))


def test_exif_rotation(tmp_path):
    """EXIF orientation 6: stored columns become rows."""
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    shown = np.asarray(read_image(tmp_path / "turned.png"))
    assert shown.shape == (6, 4, 3) and (shown[0] == 255).all() and (shown[1:] == 0).all()


def test_sixteen_bit_grey_is_scaled(tmp_path):
    Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 1, 128, 255]


def png_of_sixteen_bits(path, values):
    """Write values (H, W, 3) as a 16-bit RGB PNG, which Pillow cannot write; every second row is filtered."""
    height, width, _ = values.shape
    rows = []
    for number, row in enumerate(values.astype(">u2")):
        data = np.frombuffer(row.tobytes(), np.uint8)
        if number % 2:
            data = data - np.concatenate([np.zeros(6, np.uint8), data[:-6]])
        rows.append(bytes([number % 2]) + data.tobytes())

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def test_synthia_labels(path):
    """As published: 16 bits, the id in the red channel, an instance number in the green one."""
    synthia = load("synthia")
    values = np.zeros((3, 4, 3), np.uint16)
    values[..., 0] = np.array([[3, 4, 22, 0], [1, 21, 19, 8], [10, 17, 12, 11]])
    values[..., 1] = 60000
    png_of_sixteen_bits(path, values)
    names = synthia.table().names
    expected = ["road", "sidewalk", None, None, "sky", "wall", "bus", "car", "person", "rider", "motorcycle", "bicycle"]
    label = LabelCodec(synthia, "ids_in_red", np.arange(256, dtype=np.uint8)).read(path)
    assert [None if value == 255 else names[value] for value in label.ravel()] == expected
    Image.fromarray(values.astype(np.uint8)).save(path)  # with 8 bits
    assert np.array_equal(LabelCodec(synthia, "ids_in_red", np.arange(256, dtype=np.uint8)).read(path), label)


def test_a_pair_of_image_and_label(tmp_path, path):
    picture = save(tmp_path / "image.png", np.full((2, 3, 3), 9))
    save(path, [[3, 7, 0], [3, 3, 3]])
    before = digest(picture, path)
    image, label = read_pair(Item("1.png", picture, path), codec())
    assert np.asarray(image).shape == (2, 3, 3) and label.shape == (2, 3)
    assert digest(picture, path) == before


# Files that are refused


def fault(path, reader=None):
    before = digest(path) if path.is_file() else None
    with pytest.raises(FileError) as caught:
        (reader or codec().read)(path)
    assert before is None or digest(path) == before
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_unknown_ids_are_named(path):
    save(path, [[3, 5, 5, 99]])
    message = fault(path)
    assert "5, 99" in message and "[ids]" in message


def test_errors_about_many_unknown_ids_are_short(path):
    save(path, [list(range(100, 180))])
    assert len(fault(path).removeprefix(str(path))) < 250


def test_unknown_sixteen_bit_value(path):
    Image.fromarray(np.array([[3, 7000]], np.uint16)).save(path)
    assert "7000" in fault(path)


def test_unknown_colour(path):
    save(path, [[[10, 20, 30], [10, 20, 31]]])
    message = fault(path)
    assert "#0a141f" in message and "void_colors" in message


def test_grey_with_alpha(path):
    """Opaque, it is grey; transparent, it is not clear what the label of a pixel is."""
    ids = Image.fromarray(np.array([[3, 7, 0]], np.uint8))
    Image.merge("LA", (ids, Image.new("L", ids.size, 255))).save(path)
    assert codec().read(path).tolist() == [[0, 1, 255]]
    Image.new("LA", (3, 2)).save(path)
    assert "greys that are transparent, neither ids nor RGB colours" in fault(path)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_lossy_labels_are_refused(path, kind, mode):
    """Their values may all be known, so that they would be read wrongly. The suffix does not matter."""
    label = Image.fromarray(np.full((16, 16), 3, np.uint8)).convert(mode)
    options = {"tif": {"format": "TIFF", "compression": "jpeg"}, "webp": {"format": "WEBP"}}.get(kind, {"format": "JPEG"})
    label.save(path, **options)
    assert "lossy" in fault(path) and "export the labels again as PNG" in fault(path)


def test_lossless_webp_and_tiff(tmp_path):
    label = Image.fromarray(np.array([[[10, 20, 30], [0, 0, 255]]], np.uint8))
    label.save(tmp_path / "label.webp", lossless=True)
    label.save(tmp_path / "label.tif", compression="tiff_lzw")
    assert codec().read(tmp_path / "label.webp").tolist() == codec().read(tmp_path / "label.tif").tolist() == [[0, 2]]


def bands(values=(0, 128, 255)):
    label = np.repeat(np.array(values, np.uint8), 32)[:, None].repeat(128, 1)
    label[40:60, 20:70] = values[2]
    return label


def test_noise_is_not_a_list_of_classes(path):
    """A JPEG that was converted to PNG: no advice to declare each value."""
    stream = io.BytesIO()
    Image.fromarray(bands()).save(stream, "JPEG", quality=80)
    noisy = np.asarray(Image.open(stream))
    save(path, noisy)
    assert "lossy compression" in fault(path) and "add them" not in fault(path)
    assert looks_lossy(noisy) and not looks_lossy(bands())


def test_many_small_objects_are_no_noise():
    label = np.zeros((96, 128), np.uint8)
    for index in range(40):
        label[2 * index : 2 * index + 2, 3 * index : 3 * index + 3] = index
    assert not looks_lossy(label)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["u2", "i4"])
def test_wide_ids_of_both_byte_orders(tmp_path, kind, order):
    path = tmp_path / "label.tif"
    Image.fromarray(np.array([[3, 7, 200]], order + kind if kind == "u2" else kind)).save(path)
    assert codec().read(path).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([3, -1], "ids must be from 0 to 255, found -1; convert the labels"),
        ([3, 300], "ids must be from 0 to 255, found 300; convert the labels"),
        ([3, 70000], "found 70000; convert the labels; values from 1000 are often instances"),
    ],
)
def test_ids_that_no_descriptor_can_name(tmp_path, values, says):
    path = tmp_path / "label.tif"
    Image.fromarray(np.array([values], np.int32)).save(path)
    assert says in fault(path) and "add them" not in fault(path)


def test_ids_in_three_equal_channels(path):
    save(path, np.array([[3, 7, 200]])[..., None].repeat(3, 2))
    assert 'set encoding = "ids_in_red" in its [[layout]]' in fault(path)
    assert codec(encoding="ids_in_red").read(path).tolist() == [[0, 1, 2]]


def test_cmyk_labels_are_refused(tmp_path):
    Image.new("CMYK", (3, 2)).save(tmp_path / "label.tif")
    assert "CMYK colours, neither ids nor RGB colours" in fault(tmp_path / "label.tif")


def test_sixteen_bit_colours_are_read_in_both_scales(path):
    colors = np.array([[[10, 20, 30], [40, 50, 60]]])
    for scale in (1, 256, 257):
        png_of_sixteen_bits(path, colors * scale)
        assert codec().read(path).tolist() == [[0, 1]]


def test_label_of_floats(tmp_path):
    path = tmp_path / "label.tif"
    Image.fromarray(np.zeros((2, 3), np.float32)).save(path)
    assert "float32" in fault(path)


def test_unequal_sizes_name_both_files(tmp_path, path):
    picture = save(tmp_path / "image.png", np.zeros((4, 6, 3)))
    save(path, np.full((4, 5), 3))
    with pytest.raises(FileError, match="the label is 5x4, its image .*image.png is 6x4") as caught:
        read_pair(Item("1.png", picture, path), codec())
    assert str(path) in str(caught.value)


def content(kind):
    """Return the content of an unreadable file."""
    if kind == "empty":
        return b""
    if kind == "text":
        return b"this is a text file\n" * 9
    if kind == "web page":
        return b"<!DOCTYPE html><html>404</html>"
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)).save(stream, "png")
    return stream.getvalue()[: len(stream.getvalue()) // 2]


@pytest.mark.parametrize("kind", ["empty", "text", "web page", "truncated"])
@pytest.mark.parametrize("what", ["image", "label"])
def test_unreadable_files_are_named(path, kind, what):
    path.write_bytes(content(kind))
    message = fault(path, read_image if what == "image" else None)
    assert f"this {what} cannot be read" in message and "skip" in message


@pytest.mark.parametrize("cut", range(8, 60, 4))
def test_png_truncated_in_its_header(path, cut):
    Image.new("L", (40, 50)).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    fault(path)


def test_a_missing_file_is_named(tmp_path):
    assert "cannot be read" in fault(tmp_path / "nowhere.png")


def test_a_folder_instead_of_a_file_is_named(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert "cannot be read" in fault(tmp_path / "a.png")


def test_a_too_large_image_is_refused(path, monkeypatch):
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "cannot be read" in fault(path)


def test_unreadable_file_is_closed(path):
    path.write_bytes(content("truncated"))
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        fault(path)
        gc.collect()
    assert not [warning for warning in caught if warning.category is ResourceWarning]
