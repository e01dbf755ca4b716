"""Photos as they come: portrait and landscape in one set, and images of every kind."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from sda.data.dataset import Dataset
from sda.data.descriptor import Classes, Descriptor, map_classes
from sda.data.files import FileError, LabelCodec, read_image, size_of
from sda.data.item import Item
from sda.data.listing import list_folder, list_items
from sda.data.opening import note_squashed
from sda.data.streams import Stream

TABLE = Descriptor(
    title="Rows",
    classes={f"c{value}": [value, 0, 0] for value in range(100)},
    layout=[{"images": "{frame}.{ext}", "labels": "labels/{frame}.{ext}"}],
)
SHAPES = ((60, 40), (40, 60), (50, 50), (30, 90))
SIZE = (72, 96)


def codec():
    return LabelCodec(TABLE, "ids", map_classes(TABLE, Classes("rows", TABLE.table()))[0])


@pytest.fixture
def items(tmp_path):
    """Images of several shapes and their labels, which number the rows and columns."""
    found = []
    for number, (height, width) in enumerate(SHAPES):
        random = np.random.default_rng(number)
        image, label = tmp_path / f"{number}.png", tmp_path / "labels" / f"{number}.png"
        label.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(image)
        Image.fromarray(((np.arange(height)[:, None] + np.arange(width)) % 100).astype(np.uint8)).save(label)
        found.append(Item(image.name, image, label))
    return found


# Geometry


def inside(image, size):
    """Find the size that keeps the shape by trying all scales of one side: the slow reference."""
    height, width = image
    fitting = [(rows, round(width * rows / height)) for rows in range(1, size[0] + 1)]
    fitting += [(round(height * columns / width), columns) for columns in range(1, size[1] + 1)]
    return max((found for found in fitting if found[0] <= size[0] and found[1] <= size[1]), key=lambda found: found[0] * found[1])


def nearest(label, size):
    """Resize a label pixel by pixel."""
    height, width = label.shape
    return np.array(
        [
            [label[int((row + 0.5) * height / size[0]), int((column + 0.5) * width / size[1])] for column in range(size[1])]
            for row in range(size[0])
        ]
    )


def test_images_keep_their_shape(items):
    dataset = Dataset(items, codec(), SIZE, fit="inside")
    for index, item in enumerate(items):
        size = inside(SHAPES[index], SIZE)
        with Image.open(item.image) as image, Image.open(item.label) as label:
            expected = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
            labels = nearest(np.asarray(label), size)
        assert np.array_equal(dataset[index].image.permute(1, 2, 0), expected)
        assert np.array_equal(dataset[index].label, labels)
        native = Dataset(items, codec(), SIZE, native_labels=True, fit="inside")[index]
        assert torch.equal(native.image, dataset[index].image) and native.label.shape == SHAPES[index]


def test_batches_mirror_what_is_left_of_the_frame(items):
    """Without a crop, every image is in the upper left corner; the rest is its mirror image, and has no label."""
    portrait = Dataset(items[:1], codec(), SIZE, fit="inside")
    stream = Stream("labelled", portrait, 1, SIZE, seed=0)
    batch, sample = next(stream), portrait[0]
    stream.close()
    assert sample.image.shape == (3, 72, 48)
    for row in range(72):
        for column in range(96):
            own = column if column < 48 else 95 - column
            assert torch.equal(batch.images[0, :, row, column], sample.image[:, row, own])
            assert batch.labels[0, row, column] == (sample.label[row, column] if column < 48 else 255)


def test_crops_need_less_padding_than_the_frame(items):
    """A portrait image is padded only as far as the crop needs it."""
    stream = Stream("labelled", Dataset(items[:1], codec(), SIZE, fit="inside"), 4, (72, 60), seed=0)
    batch = next(stream)
    stream.close()
    assert batch.images.shape == (4, 3, 72, 60) and (batch.labels[:, :, 48:] == 255).all()
    assert (batch.labels[:, :, :48] != 255).all()


def test_squashed_images_are_reported(items):
    notes = []
    note_squashed("source", Dataset(items, None, SIZE), notes)
    assert notes == [
        "source: 2 of 4 images, such as 0.png (60x40), are squashed more than 1.5 times to fill 72x96: to keep their aspect "
        'ratio, train with fit = "inside"'
    ]
    for dataset in (
        Dataset(items, None, SIZE, fit="inside"),
        Dataset(items, None, None),
        Dataset(items[1:3], None, SIZE),
    ):
        notes = []
        note_squashed("source", dataset, notes)
        assert notes == []


def test_sizes_are_those_after_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (40, 20)).save(tmp_path / "plain.jpg")
    (tmp_path / "none.jpg").write_bytes(b"")
    assert size_of(tmp_path / "turned.jpg") == (40, 20) == read_image(tmp_path / "turned.jpg").size[::-1]
    assert size_of(tmp_path / "plain.jpg") == (20, 40) and size_of(tmp_path / "none.jpg") is None


# Suffixes


def test_one_layout_reads_photos_of_all_suffixes(tmp_path):
    names = ["a.jpg", "b.JPG", "c.png", "d.webp", "e.avif", "f.HEIC", "g.jxl", "h.TIF"]
    (tmp_path / "labels").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"")
        (tmp_path / "labels" / f"{name[0]}.{'PNG' if name < 'c' else 'png'}").write_bytes(b"")
    (tmp_path / "clip.MOV").write_bytes(b"")
    listing = list_items(TABLE, tmp_path, "train")
    assert [item.key for item in listing.items] == names and all(item.label for item in listing.items)
    assert [item.key for item in list_folder(tmp_path).items if "/" not in item.key] == names


# Kinds of images


def png(path, kind, rows):
    """Write a PNG with 16 bits per channel."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = rows.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))


def tiff(path, pixels, photometric=2, form=1):
    """Write a TIFF (H, W, channels) of any number of channels, which Pillow cannot do. `form`: 1 whole numbers, 3 floats."""
    height, width, channels = pixels.shape
    bits = pixels.itemsize * 8
    tags = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [photometric], 273: [0], 277: [channels]}
    tags |= {278: [height], 279: [pixels.nbytes], 338: [0] * max(1, channels - 3), 339: [form] * channels}
    if channels <= 3:
        del tags[338]
    place = 8 + 2 + 12 * len(tags) + 4
    start = place + sum(2 * len(values) for values in tags.values() if len(values) > 2)
    entries, far = b"", b""
    for tag, values in tags.items():
        values = [start] if tag == 273 else values
        content = struct.pack(f"<{len(values)}H", *values)
        if len(content) > 4:
            entries += struct.pack("<HHII", tag, 3, len(values), place + len(far))
            far += content
        else:
            entries += struct.pack("<HHI", tag, 3, len(values)) + content.ljust(4, b"\0")
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + far + pixels.tobytes())


def noise(*shape, top=256, kind=np.uint8):
    return np.random.default_rng(3).integers(0, top, shape).astype(kind)


def test_16_bits_keep_their_high_bytes(tmp_path):
    grey, color = noise(5, 7, top=65536, kind=np.uint16), noise(5, 7, 3, top=65536, kind=np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.tif")
    png(tmp_path / "grey.png", 0, grey)
    png(tmp_path / "color.png", 2, color)
    tiff(tmp_path / "color.tif", color)
    Image.fromarray(grey.astype(np.int32)).save(tmp_path / "wide.tif")  # 32 bits that hold values of 16
    for name in ("grey.tif", "grey.png", "wide.tif"):
        assert np.array_equal(read_image(tmp_path / name), np.repeat(grey[..., None] // 256, 3, axis=2)), name
    for name in ("color.png", "color.tif"):
        assert np.array_equal(read_image(tmp_path / name), color // 256), name


def test_transparency_is_dropped(tmp_path):
    color = noise(5, 7, 3)
    opaque = Image.fromarray(color)
    clear = opaque.copy()
    clear.putalpha(Image.fromarray(noise(5, 7)))
    clear.save(tmp_path / "rgba.png")
    grey = Image.merge("LA", [opaque.convert("L"), clear.getchannel("A")])
    grey.save(tmp_path / "la.png")
    colors = opaque.quantize(8)
    colors.save(tmp_path / "p.png", transparency=bytes(range(8)))
    assert np.array_equal(read_image(tmp_path / "rgba.png"), color)
    assert np.array_equal(read_image(tmp_path / "la.png"), opaque.convert("L").convert("RGB"))
    assert np.array_equal(read_image(tmp_path / "p.png"), colors.convert("RGB"))


def test_other_kinds_have_one_conversion(tmp_path):
    color = noise(5, 7, 3)
    ink = np.concatenate([255 - color, np.zeros((5, 7, 1), np.uint8)], axis=2)  # without black ink, colours are exact
    Image.fromarray(ink, "CMYK").save(tmp_path / "cmyk.tif")
    tiff(tmp_path / "four.tif", np.concatenate([color, noise(5, 7, 1)], axis=2))
    Image.fromarray(color).save(tmp_path / "pages.tif", save_all=True, append_images=[Image.fromarray(255 - color)])
    Image.fromarray(color[..., 0] > 99).save(tmp_path / "bits.png")
    for name in ("cmyk.tif", "four.tif", "pages.tif"):
        assert np.array_equal(read_image(tmp_path / name), color), name
    assert np.array_equal(read_image(tmp_path / "bits.png"), np.repeat((color[..., :1] > 99) * np.uint8(255), 3, axis=2))


REFUSED = {
    "five.tif": (lambda path: tiff(path, noise(5, 7, 5)), "5 channels"),
    "thirteen.tif": (lambda path: tiff(path, noise(5, 7, 13, top=9000, kind=np.uint16)), "13 channels of 16 bits"),
    "bands.tif": (lambda path: tiff(path, noise(5, 7, 3), photometric=1), "3 channels of 8 bits that says it is grey"),
    "lab.tif": (lambda path: tiff(path, noise(5, 7, 3), photometric=8), "LAB colours"),
    "float.tif": (lambda path: Image.fromarray(np.ones((5, 7), np.float32)).save(path), "floating-point numbers"),
    "floats.tif": (lambda path: tiff(path, np.ones((5, 7, 3), np.float32), form=3), "3 channels of 32 bits"),
    "large.tif": (lambda path: Image.fromarray(np.full((5, 7), 70000, np.int32)).save(path), "whole numbers from 70000 to 70000"),
    "below.tif": (lambda path: Image.fromarray(np.full((5, 7), -2, np.int32)).save(path), "whole numbers from -2 to -2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_kinds_without_an_obvious_conversion_are_refused(name, tmp_path, capfd):
    write, found = REFUSED[name]
    write(tmp_path / name)
    with pytest.raises(FileError) as error:
        read_image(tmp_path / name)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / name}: ") and found in message and "convert it to 8-bit RGB" in message
    assert "--bad-files skip" in message and "\n" not in message and "skip" not in error.value.fault
    assert capfd.readouterr() == ("", "")  # Pillow logs some of these faults too


@pytest.mark.parametrize(
    ("name", "head", "package"),
    [("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow_heif"), ("a.jxl", b"\xff\x0a", "pillow_jxl")],
)
def test_the_package_and_the_extra_are_named(name, head, package, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == package else 1 / 0)
    (tmp_path / name).write_bytes(head + bytes(64))
    with pytest.raises(FileError, match=f"pip install {package.replace('_', '-')}.*extra photos.*--bad-files skip"):
        read_image(tmp_path / name)


def test_avif_is_read_where_pillow_can(tmp_path):
    features = pytest.importorskip("PIL.features")
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    color = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Image.fromarray(color).save(tmp_path / "a.avif", quality=100)
    assert np.abs(np.asarray(read_image(tmp_path / "a.avif")).astype(int) - color).max() < 8
