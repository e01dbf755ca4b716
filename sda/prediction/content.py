"""Tell images, videos and other files apart by their content."""

import contextlib
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sda.data.files import HEAD, missing_plugin

# Formats that are recognised under any file name. Pillow knows more, but some have no signature: any file may look like one.
ANY_NAME = {"AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "MPO", "PNG", "PPM", "PSD", "QOI", "TIFF", "WEBP"}
# Formats that Pillow recognises and cannot decode, or only with a program that runs the file as a script.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
SEQUENCES = {"AVIF", "GIF", "PNG", "TIFF", "WEBP"}  # formats of animations and pages; in others, further frames are thumbnails
VIDEO_SUFFIXES = {
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".vob"),
    *(".webm", ".wmv"),
}
RAW_SUFFIXES = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"}
_AUDIO = {b"M4A ", b"M4B "}
_DNG_VERSION, _SUBFILE_TYPE = 50706, 254  # tags of TIFF


@dataclass(frozen=True)
class Content:
    """What a file is.

    Attributes:
        kind: "image"; "video"; "unreadable": an image or a video by its name or content, but it cannot be used; or "other".
        reason: why it is unreadable, else "". pixels: of an image, their number. frames: an image has several frames or pages.
    """

    kind: str
    reason: str = ""
    pixels: int = 0
    frames: bool = False


@contextlib.contextmanager
def pixels_up_to(megapixels: float) -> Iterator[None]:
    """Let Pillow read images of up to `megapixels` within the context, and refuse larger ones."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6) // 2  # Pillow warns above this number, and refuses above twice of it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def examine(path: Path) -> Content:
    """Read the start of a file and say what it is. Never raises an error."""
    suffix = path.suffix.lower()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return Content("unreadable", "not a regular file")  # opening a pipe may wait for ever
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        return Content("unreadable", error.strerror or str(error))
    if suffix in RAW_SUFFIXES:
        return Content("unreadable", "a raw photo; export it as JPEG, PNG or TIFF")
    image = _image(path, suffix)
    if image:
        return image
    if reason := missing_plugin(head):
        return Content("unreadable", reason)
    if head and (suffix in VIDEO_SUFFIXES or _is_video(head)):
        return Content("video")
    named_so = Image.registered_extensions().get(suffix) in Image.OPEN.keys() - NOT_DECODED
    if not named_so and suffix not in VIDEO_SUFFIXES | {".heic", ".heif", ".jxl"}:
        return Content("other")
    return Content("unreadable", "its content is neither an image nor a video" if head else "the file is empty")


def _image(path: Path, suffix: str) -> Content | None:
    """Return the content of a file that Pillow recognises as an image; None for another file."""
    try:
        with Image.open(path) as image:
            if image.format in NOT_DECODED:
                return None
            if image.format not in ANY_NAME and Image.registered_extensions().get(suffix) != image.format:
                return None
            tags = getattr(image, "tag_v2", {})
            if _DNG_VERSION in tags or tags.get(_SUBFILE_TYPE) == 1:
                return Content("unreadable", "a raw photo that starts with a thumbnail; export it as JPEG, PNG or TIFF")
            frames = image.format in SEQUENCES and getattr(image, "is_animated", False)
            return Content("image", "", math.prod(image.size), frames)
    except Image.DecompressionBombError as error:
        found = re.search(r"(\d+) pixels", str(error))
        need = math.ceil(int(found[1]) / 1e6) if found else "N"
        return Content("unreadable", f"{need} megapixels are too many; add --max-megapixels {need} to predict it nevertheless")
    except Exception:  # Pillow raises nearly anything for files that only look like images
        return None


def _is_video(head: bytes) -> bool:
    """Return whether a file starts like a video: MP4, MOV, Matroska, AVI, FLV, WMV, MPEG or Theora."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in _AUDIO
    if head.startswith(b"OggS"):
        return b"theora" in head
    starts = (b"\x1aE\xdf\xa3", b"FLV\x01", b"0&\xb2u\x8ef\xcf\x11", b"\0\0\1\xba", b"\0\0\1\xb3")
    transport = any(head[first : first + 3 * step : step] == b"GGG" for first, step in ((0, 188), (4, 192)))
    return head.startswith(starts) or (head[:4], head[8:12]) == (b"RIFF", b"AVI ") or transport
