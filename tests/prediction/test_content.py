"""Files are recognised by their content, and each one that cannot be used gets a reason."""

import os
import struct
import zlib

import pytest
from PIL import Image

from sda.prediction import content
from sda.prediction.content import examine, pixels_up_to


def png(width, height):
    """Return a PNG of a black image, compressed to a thousandth."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes((width + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a", "JPEG"), ("a.png", "JPEG"), ("a.txt", "PNG"), ("a.mp4", "GIF")),
        *(("a.gif", "GIF"), ("a.avif", "AVIF"), ("a.ppm", "PPM"), ("a.jp2", "JPEG2000"), ("a.j2k", "JPEG2000")),
        *(("a.webp", "WEBP"), ("a.tga", "TGA"), ("a.pcx", "PCX"), ("a.sgi", "SGI"), ("a.TIF", "TIFF")),
    ],
)
def test_images_are_recognised_under_any_name(tmp_path, name, form):
    Image.new("RGB", (64, 48), (10, 200, 30)).save(tmp_path / name, form)
    found = examine(tmp_path / name)
    assert (found.kind, found.pixels, found.frames) == ("image", 64 * 48, False)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_further_frames_are_noticed(tmp_path, form):
    frames = [Image.new("RGB", (64, 48), (10, index, 30)) for index in (0, 90, 200)]
    frames[0].save(tmp_path / "a", form, save_all=True, append_images=frames[1:])
    assert examine(tmp_path / "a").frames


@pytest.mark.parametrize(
    ("name", "data", "kind", "says"),
    [
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unreadable", "pip install pillow-heif"),
        ("phone.jpg", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "unreadable", "pip install pillow-heif"),
        ("a.jxl", b"\xff\x0a\0\0", "unreadable", "pip install pillow-jxl-plugin"),
        ("a.avif", b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "unreadable", "pip install --upgrade pillow"),
        ("a.nef", b"II*\0", "unreadable", "a raw photo"),
        ("a.tif", b"", "unreadable", "the file is empty"),
        ("a.mov", b"", "unreadable", "the file is empty"),
        ("a.jpg", b"hello", "unreadable", "neither an image nor a video"),
        ("a.heic", b"hello", "unreadable", "neither an image nor a video"),
        ("clip.m4v", b"\0\0\0\x18ftypM4V \0\0\0\0", "video", ""),
        ("clip", b"\x1aE\xdf\xa3", "video", ""),
        ("clip.png", b"RIFF\0\0\0\0AVI LIST", "video", ""),
        ("clip.ts", (b"G" + bytes(187)) * 3, "video", ""),
        ("code.ts", b"Good morning", "other", ""),
        ("song.m4a", b"\0\0\0\x18ftypM4A \0\0\0\0", "other", ""),
        ("a.txt", b"P5 and GIF are formats", "other", ""),
        ("a.json", b"", "other", ""),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "other", ""),
        ("a.pdf", b"%PDF-1.4", "other", ""),
        ("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "other", ""),  # never run a script
        ("a.dat", b"\0" * 600, "other", ""),  # may be many of the formats that have no signature
    ],
)
def test_other_files_have_a_kind_and_a_reason(tmp_path, name, data, kind, says):
    (tmp_path / name).write_bytes(data)
    found = examine(tmp_path / name)
    assert found.kind == kind and says in found.reason and bool(says) == bool(found.reason)


def test_thumbnails_of_raw_photos_are_not_photos(tmp_path):
    tags = {content._SUBFILE_TYPE: 1}
    Image.new("RGB", (64, 48)).save(tmp_path / "a.tif", "TIFF", tiffinfo=tags)
    assert "a raw photo that starts with a thumbnail" in examine(tmp_path / "a.tif").reason


def test_a_damaged_photo_needs_no_package(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "pillow_heif")
    assert examine(tmp_path / "a.heic").reason == "this HEIC image is damaged; fix or remove it"


def test_files_that_are_not_regular(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    assert examine(tmp_path / "pipe.jpg").reason == "not a regular file"  # without waiting for a writer
    assert examine(tmp_path / "gone.jpg").reason == "No such file or directory"


def test_the_limit_of_megapixels(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_bytes(png(1200, 1000))
    for limit, kind in [(1.1, "unreadable"), (1.2, "image"), (2000, "image")]:
        with pixels_up_to(limit):
            found = examine(tmp_path / "a.png")
        assert found.kind == kind
        assert kind == "image" or "2 megapixels are too many; add --max-megapixels 2 to" in found.reason
    assert before == Image.MAX_IMAGE_PIXELS
