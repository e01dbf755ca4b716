"""Decode image and label files. The user's files are never written to."""

import contextlib
import importlib
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sda.data.descriptor import Descriptor, label_values
from sda.errors import SdaError
from sda.labels import IGNORE

# Packages that teach Pillow more formats, if they are installed → the function that registers them; "" if importing does.
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": ""}
for _name, _register in PLUGINS.items():
    with contextlib.suppress(ImportError):
        _plugin = importlib.import_module(_name)
        if _register:
            getattr(_plugin, _register)()

_UNKNOWN = 254  # a value in the lookup tables that no class table reaches (at most 250 classes)


class FileError(SdaError):
    """A file of a dataset that cannot be used. Streams skip it if the user asks for that, and the message says how."""

    @property
    def fault(self) -> str:
        """The message without this advice, for a file that is not one of many in a dataset."""
        return re.sub(r",? or skip such \w+ with --bad-files skip", "", str(self))


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB, rotated as its EXIF tag says. Raise FileError if it cannot be read completely.

    16-bit grey images are scaled to 8 bits; transparency is dropped.
    """
    image = ImageOps.exif_transpose(open_file(path, "image"))
    if image.mode.startswith("I"):  # Pillow's own conversion clips values above 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def open_file(path: Path, what: str, low_bytes: bool = False) -> Image.Image:
    """Decode a file. Raise FileError if that fails.

    Args:
        what: "image" or "label", for the error message.
        low_bytes: take the lower byte of each value of a 16-bit RGB PNG, not the higher one.
    """
    try:
        with Image.open(path) as image:
            if low_bytes and image.tile and image.tile[0][3] == "RGB;16B":
                image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
            image.load()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileError(
            f"{path}: this {what} cannot be read ({error}); fix or remove it, or skip such files with --bad-files skip"
        ) from None
    return image


class LabelCodec:
    """Decodes the label files of a dataset to train ids of the training's class table, with lookup tables.

    Index files (greyscale, or palettized, where the index counts and not the colour) are looked up in a table of 65,536
    values, RGB files in the colours of the class table. With `ids_in_red`, the red channel is looked up like an index file.

    Args:
        descriptor: the dataset's descriptor.
        encoding: `ids`, `train_ids` or `ids_in_red`, from the descriptor's layout.
        mapping: (256,) uint8, train id of the descriptor's table → train id of the training's table, 255 = ignored.
    """

    def __init__(self, descriptor: Descriptor, encoding: str, mapping: np.ndarray):
        self._mapping = mapping
        self._red = encoding == "ids_in_red"
        self._lut = np.full(65536, _UNKNOWN, np.uint8)
        for value, train_id in label_values(descriptor, encoding).items():
            self._lut[value] = mapping[train_id]
        colors = {tuple(color): IGNORE for color in descriptor.void_colors}
        colors |= {tuple(color): mapping[index] for index, color in enumerate(descriptor.table().colors.values())}
        packed = {_pack(np.array(color)): train_id for color, train_id in colors.items()}
        self._colors = np.array(sorted(packed))
        self._color_ids = np.array([packed[color] for color in self._colors], np.uint8)

    def rules(self) -> bytes:
        """Return bytes that identify the decoding: they change whenever label files would be decoded differently."""
        tables = (self._mapping, self._lut, self._colors, self._color_ids)
        return b"".join(table.tobytes() for table in tables) + bytes([self._red])

    def map(self, train_ids: np.ndarray) -> np.ndarray:
        """Convert train ids of the descriptor's table, of any shape, to those of the training's table."""
        return self._mapping[train_ids]

    def read(self, path: Path) -> np.ndarray:
        """Read a label file as (H, W) uint8 train ids, 255 = ignored.

        Raises:
            FileError: the file cannot be read, or it contains values that the descriptor does not name.
        """
        values = np.asarray(open_file(path, "label", low_bytes=self._red))
        if self._red and values.ndim == 3:
            values = values[..., 0]
        if values.ndim == 3 and values.shape[2] in (3, 4):
            values = _pack(values[..., :3])
            places = np.searchsorted(self._colors, values).clip(max=len(self._colors) - 1)
            label = np.where(self._colors[places] == values, self._color_ids[places], np.uint8(_UNKNOWN))
            show, key = (lambda value: f"#{value:06x}"), "void_colors"
        elif values.ndim == 2 and values.dtype.kind in "biu" and values.min() >= 0 and values.max() < 65536:
            label = self._lut[values.astype(np.uint16)]
            show, key = str, "void"
        else:
            raise FileError(
                f"{path}: a label of type {values.dtype} and shape {values.shape} is neither ids nor RGB colours; "
                "convert it, or skip such files with --bad-files skip"
            )
        unknown = label == _UNKNOWN
        if unknown.any():
            found = [show(int(value)) for value in np.unique(values[unknown])[:8]]
            if set(found) <= {"250", "255"}:
                key += ' (if the file holds train ids, its layout needs encoding = "train_ids")'
            raise FileError(
                f"{path}: label values {', '.join(found)} are not in the dataset's descriptor; add them to its "
                f"[ids] or {key}, or skip such files with --bad-files skip"
            )
        return label


def _pack(rgb: np.ndarray) -> np.ndarray:
    rgb = rgb.astype(np.int32)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]


def read_pair(image_path: Path, label_path: Path, codec: LabelCodec) -> tuple[Image.Image, np.ndarray]:
    """Read an image and its label, which must have the same size.

    Raises:
        FileError: one of them cannot be read, or their sizes differ.
    """
    image, label = read_image(image_path), codec.read(label_path)
    if image.size != (label.shape[1], label.shape[0]):
        raise FileError(
            f"{label_path}: the label is {label.shape[1]}x{label.shape[0]}, its image {image_path} is "
            f"{image.size[0]}x{image.size[1]}; they must be equal; fix them, or skip such pairs with --bad-files skip"
        )
    return image, label
