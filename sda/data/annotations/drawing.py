"""Paint annotated objects: polygons, masks and run lengths become one array of values, with the class name of each value."""

import base64
import binascii
import io
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from sda.data.files import SKIP, FileError, LabelFile, open_file, orientation_of
from sda.errors import SdaError

Ring = Sequence[Sequence[float]]  # (x, y) of each corner, in pixels from the upper left corner of the image

_FAR = 1e7  # pixels: no image is so large, and differences of such numbers are exact enough


class Unusable(ValueError):
    """Raised for an annotation that cannot be read; whoever knows its file names that."""


@dataclass(frozen=True)
class Shape:
    """One object.

    Attributes:
        name: of its class.
        outer, inner: polygons that it covers, together, without its holes.
        runs: (N, 2) int, the first pixel, from 1, and the number of pixels of each run, down the columns of the whole image.
        mask: (h, w) bool, with the upper left corner at `origin`, (x, y), which may be outside the image.
    """

    name: str
    outer: tuple[Ring, ...] = ()
    inner: tuple[Ring, ...] = ()
    runs: np.ndarray | None = None
    mask: np.ndarray | None = None
    origin: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Drawing:
    """The annotations of one image.

    Attributes:
        shapes: the objects, the topmost last.
        size: (width, height) that the file gives for the image; None if it gives none.
        unit: the coordinates are shares of the width and height of the image, 0 to `unit`; 0 if they are pixels.
    """

    shapes: list[Shape]
    size: tuple[int, int] | None = None
    unit: float = 0


def paint(drawing: Drawing, image: Path, file: Path) -> LabelFile:
    """Paint the annotations of an image, each object over the earlier ones, as the image is shown: turned as EXIF says.

    If the file gives the size of the image as it is stored, the annotations are turned with it.

    Raises:
        FileError: the image cannot be opened, or the file gives another size for it.
    """
    stored, turn = _size(image), orientation_of(image)
    shown = stored[::-1] if turn >= 5 else stored
    given = drawing.size or shown
    if given not in (stored, shown):
        raise FileError(
            f"{file}: it gives {image.name} a size of {given[0]}x{given[1]}, but {image} is {shown[0]}x{shown[1]}; annotate the "
            f"image as it is, {SKIP}"
        )
    names = ["", *dict.fromkeys(shape.name for shape in drawing.shapes)]
    values = np.zeros(given[::-1], np.uint8 if len(names) <= 256 else np.uint16)
    scale = (given[0] / drawing.unit, given[1] / drawing.unit) if drawing.unit else (1.0, 1.0)
    for shape in drawing.shapes:
        _paint(values, shape, names.index(shape.name), scale)
    if given != shown:
        turned = Image.fromarray(values)
        turned.getexif()[ExifTags.Base.Orientation] = turn
        values = np.array(ImageOps.exif_transpose(turned))
    return LabelFile(values, names=tuple(names))


def _size(image: Path) -> tuple[int, int]:
    """Return (width, height) of an image as it is stored."""
    try:
        with Image.open(image) as opened:
            return opened.size
    except Exception:  # it says what is wrong
        return open_file(image, "image").size


def _paint(values: np.ndarray, shape: Shape, value: int, scale: tuple[float, float]) -> None:
    """Give the pixels of an object a value. What is outside of the image is cut off."""
    if shape.outer:
        outer, inner = ([_points(ring) * scale for ring in rings] for rings in (shape.outer, shape.inner))
        corners, most = np.concatenate(outer), values.shape[::-1]
        left, top = np.floor(corners.min(axis=0)).clip(0, most).astype(int)
        right, bottom = np.ceil(corners.max(axis=0)).clip(0, most).astype(int)
        box = bottom - top, right - left
        covered = np.zeros(box, bool)
        for ring in outer:
            covered |= fill(ring - (left, top), box)
        for ring in inner:
            covered &= ~fill(ring - (left, top), box)
        values[top:bottom, left:right][covered] = value
    if shape.runs is not None:
        firsts, ends = shape.runs[:, 0] - 1, shape.runs.sum(axis=1) - 1
        if firsts.min() < 0 or (ends <= firsts).any() or ends.max() > values.size:
            raise Unusable(f"run lengths that do not fit an image of {values.shape[1]}x{values.shape[0]} pixels")
        changes = np.bincount(firsts, minlength=values.size + 1) - np.bincount(ends, minlength=values.size + 1)
        values[(changes[:-1].cumsum() > 0).reshape(values.shape[::-1]).T] = value
    if shape.mask is not None:
        (left, top), (height, width) = shape.origin, shape.mask.shape
        rows = slice(max(top, 0), max(min(top + height, values.shape[0]), 0))
        columns = slice(max(left, 0), max(min(left + width, values.shape[1]), 0))
        part = shape.mask[max(-top, 0) :, max(-left, 0) :][: rows.stop - rows.start, : columns.stop - columns.start]
        if part.size:
            values[rows, columns][part] = value


def _points(ring: Ring) -> np.ndarray:
    """Return the corners of a polygon, (N, 2). Raise Unusable if they make none."""
    points = np.array(ring, np.float64).reshape(-1, 2)
    if len(points) < 3:
        raise Unusable(f"a polygon of {len(points)} points; it needs 3")
    if not (np.isfinite(points).all() and (abs(points) < _FAR).all()):
        raise Unusable("a polygon with coordinates that are no numbers, or too large")
    return points


def fill(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool: the pixels whose centre is inside a polygon, by the even-odd rule.

    Pillow and OpenCV round the corners to whole pixels and include the lower and right border: a rectangle of 20x10 would have
    21x11 pixels.

    Args:
        points: (N, 2), x and y. shape: (H, W).
    """
    height, width = shape
    x, y = (points - 0.5).T  # the centre of pixel (0, 0) is at 0
    flips = np.zeros((height, width + 1), bool)
    for x1, y1, x2, y2 in zip(x, y, np.roll(x, -1), np.roll(y, -1), strict=True):
        if y1 == y2:
            continue
        rows = np.arange(max(np.ceil(min(y1, y2)), 0), min(np.ceil(max(y1, y2)), height)).astype(int)
        columns = np.ceil(x1 + (rows - y1) * (x2 - x1) / (y2 - y1)).clip(0, width).astype(int)
        flips[rows, columns] ^= True
    return np.logical_xor.accumulate(flips[:, :-1], axis=1)


def rectangle(left: float, top: float, right: float, bottom: float) -> Ring:
    """Return a rectangle as a polygon."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def ellipse(x: float, y: float, radius_x: float, radius_y: float, turn: float = 0) -> Ring:
    """Return an ellipse around (x, y) as a polygon of 180 corners. turn: in degrees, clockwise on the screen."""
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    across, down, turn = radius_x * np.cos(angles), radius_y * np.sin(angles), np.radians(turn)
    return np.stack(
        [x + across * np.cos(turn) - down * np.sin(turn), y + across * np.sin(turn) + down * np.cos(turn)], 1
    ).tolist()


def bitmap(data: object) -> np.ndarray:
    """Return a picture in base64, also compressed by zlib, as (h, w) bool: its alpha channel, or what is not 0.

    Raises:
        Unusable: it cannot be read.
    """
    try:
        content = base64.b64decode(str(data), validate=True)
        if not content.startswith(b"\x89PNG"):
            unpack = zlib.decompressobj()
            content = unpack.decompress(content, 2**26)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, zlib.error, binascii.Error, Image.DecompressionBombError) as error:
        raise Unusable(f"a mask that cannot be read ({error})") from None
    values = np.asarray(image.getchannel("A") if "A" in image.getbands() else image.convert("L"))
    return np.asarray(values > 0)


def check_area(width: int, height: int) -> None:
    """Raise Unusable if an image of this size would not be read either."""
    if width < 1 or height < 1 or width * height > 2 * (Image.MAX_IMAGE_PIXELS or 2**27):
        raise Unusable(f"a size of {width}x{height} pixels")


def unroll(lengths: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return run lengths along the rows, of 0 first, as (H, W) bool. Raise Unusable if they do not fit. size: (height, width)."""
    check_area(*size)
    counts = np.array(lengths)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any() or sum(counts.tolist()) != size[0] * size[1]:
        raise Unusable(f"run lengths that do not add up to {size[0] * size[1]} pixels")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(size)


def runs(counts: object, size: tuple[int, int]) -> np.ndarray:
    """Return COCO's run lengths, as a list or as its compressed text, as (H, W) bool. They go down the columns.

    Args:
        size: (height, width).

    Raises:
        Unusable: they do not fit the size. SdaError: pycocotools is missing, which reads the text.
    """
    height, width = size
    if isinstance(counts, list):
        return unroll(counts, (width, height)).T
    check_area(width, height)
    try:
        from pycocotools import mask
    except ImportError:
        raise SdaError(
            'this label has COCO\'s compressed run lengths; to read them: pip install pycocotools (or "sda[coco]")'
        ) from None
    text = str(counts).encode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy 2, by pycocotools
        try:
            found = mask.decode({"size": [height, width], "counts": text})
        except ValueError:
            raise Unusable(f"run lengths of more than {width}x{height} pixels") from None
        try:  # of too few, pycocotools leaves the rest of the memory as it finds it
            mask.decode({"size": [height * width - 1, 1], "counts": text})
        except ValueError:
            return found.astype(bool)
    raise Unusable(f"run lengths of less than {width}x{height} pixels")
