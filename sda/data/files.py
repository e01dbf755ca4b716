"""Decode image and label files. The user's files are never written to."""

import contextlib
import importlib
import importlib.util
import json
import logging
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from sda import shelf
from sda.data.descriptor import Descriptor, label_colors, label_names, label_values
from sda.data.item import Item
from sda.errors import SdaError
from sda.labels import IGNORE

# Packages that teach Pillow more formats, if they are installed (sda's extra photos) → the function that registers them; "" if
# importing does.
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": ""}
for _name, _register in PLUGINS.items():
    with contextlib.suppress(ImportError):
        _plugin = importlib.import_module(_name)
        if _register:
            getattr(_plugin, _register)()

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what is wrong with a file is said in our error

_UNKNOWN = 254  # a value in the lookup tables that no class table reaches (at most 250 classes)
DECODING = 3  # version of the decoding; raise it if the same tables decode a file differently
ARRAY_SUFFIXES = {".npy", ".npz", ".mat"}  # of labels stored as arrays of NumPy or MATLAB
SKIP = "or skip such files with --bad-files skip"
HEAD = 4096  # bytes that contain the signature of an image or a video
_HEIF = {b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevm", b"hevs", b"hevx", b"mif1", b"msf1"}
_CHANNELS = 277  # tag of TIFF: number of channels


class FileError(SdaError):
    """A file of a dataset that cannot be used. Streams skip it if the user asks for that, and the message says how."""

    @property
    def fault(self) -> str:
        """The message without this advice, for a file that is not one of many in a dataset."""
        return re.sub(r",? or skip such \w+ with --bad-files skip", "", str(self))


def read_image(path: Path) -> Image.Image:
    """Read an image as 8-bit RGB, rotated as its EXIF tag says. docs/datasets.md says how each kind of image is converted.

    Raises:
        FileError: it cannot be read completely, or no conversion to RGB is obvious: more than 4 channels, more than 16 bits.
    """
    image = ImageOps.exif_transpose(open_file(path, "image", lambda image: _refuse_channels(path, image)))
    if image.mode.startswith("I"):
        image = _in_8_bits(path, image)
    if image.mode in ("F", "LAB"):
        raise _not_rgb(path, "floating-point numbers" if image.mode == "F" else "LAB colours")
    image.info.pop("transparency", None)  # of a palette: Pillow would warn that it is dropped
    return image.convert("RGB")


def _refuse_channels(path: Path, image: ImageFile.ImageFile) -> None:
    """Raise FileError if an image has more than 4 channels. Pillow would take the first three of some, and they may be any."""
    tags = getattr(image, "tag_v2", {})
    if (channels := tags.get(_CHANNELS, 1)) > 4:
        raise _not_rgb(path, f"{channels} channels")


def _in_8_bits(path: Path, image: Image.Image) -> Image.Image:
    """Return a grey image of 16 bits in 8 bits: the high byte of each value. Pillow's own conversion clips values above 255.

    Raises:
        FileError: it has values outside of 16 bits.
    """
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise _not_rgb(path, f"whole numbers from {low} to {high}")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _not_rgb(path: Path, found: str) -> FileError:
    return FileError(
        f"{path}: this image holds {found}, and only grey and colour images with 8 or 16 bits per channel are read; convert it "
        f"to 8-bit RGB, {SKIP}"
    )


def size_of(path: Path) -> tuple[int, int] | None:
    """Return (height, width) of an image, rotated as its EXIF tag says, without decoding it; None if it cannot be read."""
    with contextlib.suppress(Exception), Image.open(path) as image:
        return image.size if orientation_of(path) >= 5 else image.size[::-1]
    return None


def orientation_of(path: Path) -> int:
    """Return how EXIF says to turn or mirror an image: 2 to 8, or 1 for not at all. 5 to 8 exchange width and height."""
    with contextlib.suppress(Exception), Image.open(path) as image:  # whoever reads the image says what is wrong
        found = image.getexif().get(ExifTags.Base.Orientation)
        return found if isinstance(found, int) and 1 <= found <= 8 else 1
    return 1


def different_sizes(image: Path, image_size: Sequence[int], label_size: Sequence[int], orientation: int) -> str:
    """Return a sentence about a label that has another size than its image, both as (width, height), and what to do.

    Args:
        orientation: of the image; see `orientation_of`.
    """
    sizes = f"the label is {label_size[0]}x{label_size[1]}, its image {image} is {image_size[0]}x{image_size[1]}"
    if orientation >= 5 and [*label_size] == [*image_size][::-1]:
        return (
            f"{sizes}: EXIF orientation {orientation} turns the image, but its label fits the image as it is stored; turn the "
            "label, or remove the orientation from the image's EXIF"
        )
    return f"{sizes}; they must be equal; fix them"


def open_file(path: Path, what: str, prepare: Callable[[ImageFile.ImageFile], None] = lambda image: None) -> Image.Image:
    """Decode a file. Raise FileError if that fails.

    Args:
        what: "image" or "label", for the error message.
        prepare: called with the image before its pixels are decoded.
    """
    try:
        with Image.open(path) as image:
            prepare(image)
            image.load()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if reason := _why_unknown(path):
            raise FileError(f"{path}: {reason}, {SKIP}") from None
        raise FileError(f"{path}: this {what} cannot be read ({error}); fix or remove it, {SKIP}") from None
    return image


def _why_unknown(path: Path) -> str:
    """Return what an image that Pillow cannot open is, and what to do: read it with a package, or convert it; "" if unknown."""
    with contextlib.suppress(Exception), path.open("rb") as file:  # a damaged file can raise nearly anything
        head = file.read(HEAD)
        if reason := missing_plugin(head):
            return reason
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if 43 in head[2:4] else 8])
        file.seek(tags.next)
        tags.load(file)
        with contextlib.suppress(UnidentifiedImageError), Image.open(path):
            return ""  # damaged
        channels, bits = tags.get(_CHANNELS, 1), max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        grey = " that says it is grey" * (channels > 2 and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) in (0, 1))
        kind = f"{channels} channel{'s' * (channels > 1)} of {bits} bits{grey}"
        return f"a TIFF with {kind}, which is not read; convert it to 8-bit RGB"
    return ""


def missing_plugin(head: bytes) -> str:
    """Return what an image that needs a package to be read is, and which package; "" for other files.

    Args:
        head: the first HEAD bytes of a file that Pillow cannot open.
    """
    if head[4:8] == b"ftyp":
        size = int.from_bytes(head[:4], "big")
        brands = {head[place : place + 4] for place in range(8, min(max(size, 12), len(head)), 4)}
        if brands & {b"avif", b"avis"}:
            return "an AVIF image, but this Pillow cannot decode it; try: pip install --upgrade pillow"
        if brands & _HEIF:
            return _needs("HEIC", "pillow_heif", "pillow-heif")
        if b"crx " in brands:
            return "a raw photo; export it as JPEG, PNG or TIFF"
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return _needs("JPEG XL", "pillow_jxl", "pillow-jxl-plugin")
    return ""


def _needs(what: str, module: str, package: str) -> str:
    if importlib.util.find_spec(module):
        return f"this {what} image is damaged; fix or remove it"
    return f"reading {what} images needs the package {package}: pip install {package} (it is in sda's extra photos)"


# What a label file holds


@dataclass(frozen=True)
class LabelFile:
    """The values of a label file, before a descriptor gives them a meaning.

    Attributes:
        values: (H, W) whole numbers: ids, or colours as 0xrrggbb.
        red: (H, W) uint8, the red channel, if the values are colours; else None.
        palette: of a palettized file, the colour 0xrrggbb of each id; empty if there is none or it only numbers the ids.
        names: of annotations, the class name of each value in the file; values[0] = "" is what nothing covers.
    """

    values: np.ndarray
    red: np.ndarray | None = None
    palette: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


def label_of(item: Item) -> LabelFile:
    """Read the label of an item, which has one, whatever its form. Raise FileError if it cannot be read."""
    assert item.label is not None
    return item.drawn.read(item.image) if item.drawn else read_label(item.label)


def read_label(path: Path) -> LabelFile:
    """Read a label file in any lossless format, without loss. The transparency of RGB labels is dropped.

    Raises:
        FileError: the file cannot be read, is stored with loss, or holds something else than ids or RGB colours.
    """

    if path.suffix.lower() in ARRAY_SUFFIXES:
        return _read_array(path)

    def prepare(image: ImageFile.ImageFile) -> None:
        _refuse_loss(path, image)
        _take_low_bytes(path, image)

    image = open_file(path, "label", prepare)
    values = np.asarray(image, np.uint8 if image.mode == "1" else None)
    if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
        return LabelFile(values, palette=_palette(image))
    if image.mode in ("LA", "PA") and (values[..., 1] == 255).all():
        return LabelFile(values[..., 0], palette=_palette(image))
    if image.mode not in ("RGB", "RGBA", "RGBX"):
        kinds = {"F": f"floating-point numbers ({values.dtype})", "LA": "greys that are transparent", "PA": "transparent colours"}
        kind = kinds.get(image.mode, f"{image.mode} colours")
        raise FileError(
            f"{path}: this label holds {kind}, neither ids nor RGB colours; convert it to a PNG of ids from 0 to 255, {SKIP}"
        )
    if not values.any():  # 16-bit files may hold their colours in the high bytes
        values = np.asarray(open_file(path, "label"))
    wide = values.astype(np.int32)
    return LabelFile(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], values[..., 0])


_LARGEST = 2**30  # bytes of the arrays in a file


def _numpy_arrays(path: Path) -> list[np.ndarray]:
    """Return the arrays in a file of NumPy. Pickled objects are refused."""
    if path.suffix.lower() == ".npy":
        return [np.lib.format.open_memmap(path, mode="r")]  # which a wrong shape cannot make large
    with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
        if sum(member.file_size for member in zipfile.ZipFile(file).infolist()) > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes when unpacked")
        return [loaded[name] for name in loaded.files]


def _matlab_arrays(path: Path) -> list[np.ndarray]:
    """Return the numbers in tables of a MATLAB file, also in its structs, such as `GTcls.Segmentation` of SBD."""
    import scipy.io

    found = []
    waiting = [value for name, value in scipy.io.loadmat(path).items() if name[:2] != "__"]
    while waiting:
        value = waiting.pop()
        if isinstance(value, np.void):
            waiting += [value[name] for name in value.dtype.names or ()]
        elif isinstance(value, np.ndarray) and value.dtype.kind in "OV":
            waiting += list(value.ravel())
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and min(value.shape, default=0) > 1:
            found.append(value)
    return found


def _read_array(path: Path) -> LabelFile:
    """Read a label stored as an array of NumPy or MATLAB: (H, W) whole numbers of any type, or (H, W, 3) uint8 colours."""
    try:
        arrays = _matlab_arrays(path) if path.suffix.lower() == ".mat" else _numpy_arrays(path)
        if len(arrays) != 1:
            raise ValueError(f"{len(arrays)} arrays, expected one")
    except Exception as error:  # NumPy and SciPy raise many kinds of errors for damaged files
        raise FileError(f"{path}: this label cannot be read ({' '.join(str(error).split())}); fix or remove it, {SKIP}") from None
    loaded = arrays[0]
    shape = loaded.shape[1:] if loaded.ndim == 3 and loaded.shape[0] == 1 else loaded.shape
    values: np.ndarray = loaded.reshape(shape[:2] if loaded.ndim == 3 and shape[-1:] == (1,) else shape)
    if values.size and values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8:
        wide = values.astype(np.int32)
        return LabelFile(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], np.array(values[..., 0]))
    if values.ndim != 2 or not values.size or values.dtype.kind not in "biuf":
        raise FileError(
            f"{path}: this label is an array of shape {loaded.shape} and type {loaded.dtype}; expected (height, width) whole "
            f"numbers, or (height, width, 3) uint8 colours; convert it, {SKIP}"
        )
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.floor(values)) & (abs(values) < 2**31)).all():
        raise FileError(f"{path}: this label holds floating-point numbers ({values.dtype}) that are not whole; convert, {SKIP}")
    return LabelFile(np.array(values, values.dtype if values.dtype in (np.uint8, np.uint16) else np.int64))


def _refuse_loss(path: Path, image: ImageFile.ImageFile) -> None:
    lossy = ""
    if image.format in ("JPEG", "MPO") or "jpeg" in str(image.info.get("compression")):
        lossy = "JPEG, which is lossy"
    elif image.format == "AVIF" or (image.format == "WEBP" and not _is_lossless_webp(path)):
        lossy = f"lossy {image.format}"
    if lossy:
        raise FileError(
            f"{path}: this label is stored as {lossy}: its values are no longer those that were drawn; export the labels again "
            f"as PNG, {SKIP}"
        )


def _is_lossless_webp(path: Path) -> bool:
    """Return whether a WebP file holds a lossless image: its first image chunk is VP8L."""
    content = path.read_bytes()
    place = 12
    while content[place : place + 4] not in (b"VP8 ", b"VP8L", b"ANMF", b""):
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8 + size + size % 2
    return content[place : place + 4] == b"VP8L"


def _take_low_bytes(path: Path, image: ImageFile.ImageFile) -> None:
    """Make Pillow read the lower byte of each value of a file with several 16-bit channels. It would read the higher one."""
    raw = str(image.tile[0][3]) if image.tile else ""
    if ";16" not in raw or image.mode.startswith("I"):
        return
    if raw not in ("RGB;16B", "RGBA;16B"):
        raise FileError(
            f"{path}: this label has several channels of 16 bits, which cannot be read without loss; convert it to a PNG of one "
            f"channel, {SKIP}"
        )
    image.tile = [tile._replace(args=raw.replace("16B", "16L")) for tile in image.tile]


def _palette(image: Image.Image) -> tuple[int, ...]:
    """Return the palette of an image as 0xrrggbb, without unused greys and blacks at its end.

    Palettes that only number the ids are empty: greys 0, 1, 2, …, or VOC's colours in their own order.
    """
    flat = image.getpalette("RGB") if image.mode in ("P", "PA") else None
    colors = [red << 16 | green << 8 | blue for red, green, blue in zip(*[iter(flat or [])] * 3, strict=True)]
    numbered = [index for index, color in enumerate(colors) if color]
    if len(colors) > 1 and all(colors[index] == 0x010101 * index for index in numbered):
        return ()
    if len(numbered) >= 16 and all(colors[index] == voc_color(index) for index in numbered):
        return ()
    used = int(np.asarray(image.getchannel(0) if image.mode == "PA" else image).max()) if colors else 0
    while len(colors) > used + 1 and colors[-1] in (0, 0x010101 * (len(colors) - 1)):
        colors.pop()
    return tuple(colors)


def voc_color(index: int) -> int:
    """Return the colour of class number `index` by VOC's rule, which keeps neighbours apart, as 0xrrggbb."""
    color = 0
    for bit in range(8):
        for channel, shift in enumerate((16, 8, 0)):
            color |= (index >> (3 * bit + channel) & 1) << (7 - bit + shift)
    return color


def looks_lossy(values: np.ndarray) -> bool:
    """Return whether the values of a label (H, W) look as after lossy compression or smoothing.

    Then there are many rare values, and their pixels stand alone between others, whereas the pixels of small objects do not.
    """
    values = values[:: max(1, values.size // 250_000)]  # some rows suffice
    found, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    rare = counts < values.size / 200
    if len(found) <= 16 or rare.sum() < 8:
        return False
    pixels = rare[places.reshape(values.shape)][:, 1:-1]
    alone = (values[:, 1:-1] != values[:, :-2]) & (values[:, 1:-1] != values[:, 2:])
    return bool(pixels.any() and alone[pixels].mean() > 0.3)


# What the values mean


class Legend:
    """The meaning of the values in label files of one encoding: train ids of the descriptor's own table, 255 = void.

    Attributes:
        names: names of the classes.
        ids: id → train id.
        colors: colour as 0xrrggbb → train id.
        by_name: name in annotations → train id; "" is what nothing covers.
        tolerance: the descriptor's `color_tolerance`.
    """

    def __init__(self, descriptor: Descriptor, encoding: str):
        self.encoding = encoding
        self.names = descriptor.table().names
        self.ids = label_values(descriptor, encoding)
        self.colors = label_colors(descriptor)
        self.by_name = label_names(descriptor)
        self.tolerance = descriptor.color_tolerance

    def of_colors(self, colors: Collection[int]) -> dict[int, int]:
        """Return colour → train id for the known ones of the colours 0xrrggbb.

        With a `color_tolerance`, a colour near that of a class counts as the nearest class (by the largest difference of a
        channel), and one that is equally near to two as void.
        """
        found = {color: self.colors[color] for color in colors if color in self.colors}
        others = [color for color in colors if color not in found] if self.tolerance else []
        known, ids = _channels(list(self.colors)), np.array(list(self.colors.values()))
        for color, channels in zip(others, _channels(others), strict=True):
            distance = abs(known - channels).max(axis=1)
            nearest = np.unique(ids[distance == distance.min()])
            if distance.min() <= self.tolerance:
                found[color] = int(nearest[0]) if len(nearest) == 1 else IGNORE
        return found

    def advise_name(self, unknown: Sequence[str]) -> str:
        """Describe names in annotations that are unknown, and what to do about them."""
        line = ", ".join(f"{shelf.toml_value(name)} = CLASS" for name in unknown[:8])
        listed = ", ".join(map(repr, unknown[:8])) + (", …" if len(unknown) > 8 else "")
        return (
            f"the descriptor knows no class of the name {listed}; add it to [classes], or the line {line} to [names], or the "
            "name to void_names"
        )

    def contradicting(self, palette: Sequence[int]) -> set[int]:
        """Return the ids whose colour in a palette means another class. A colour may occur twice, if one of its ids is right."""
        right = {color for value, color in enumerate(palette) if self.ids.get(value, _UNKNOWN) == self.colors.get(color)}
        return {value for value, color in enumerate(palette) if color in self.colors and color not in right}

    def read_palette(self, palette: Sequence[int], present: Collection[int]) -> Literal["ids", "colours", "contradiction"]:
        """Decide how to read a palettized label. Editors number the colours as they like, and differently in each file.

        If no colour of the palette contradicts its id, or the palette does not have the colours of the class table, the label is
        read by its ids. If all its colours are those of the table, it is read by its colours. Otherwise it is a contradiction.

        Args:
            palette: id → colour. present: the ids that occur.
        """
        contradicting = self.contradicting(palette)
        wrong = [value for value in present if value in contradicting]
        if not wrong:
            return "ids"
        known = [value for value in present if value < len(palette) and palette[value] in self.colors]
        own = {color for value, color in enumerate(palette) if value in present or color not in (0, 0x010101 * value)}
        of_table = 2 * len(own & self.colors.keys()) >= len(own)
        numbered = [value for value, color in enumerate(palette) if color]
        generic = len(numbered) > 2 and all(palette[value] == voc_color(value) for value in numbered)
        if len(known) == len(present):
            no_ids = len(present) > 1 and not any(value in self.ids for value in present)
            if no_ids or (of_table and not generic):
                return "colours"
        wrong = [value for value in wrong if self.colors[palette[value]] != IGNORE]
        if wrong and (of_table or (len(wrong) > 1 and 2 * len(known) >= len(present))):
            return "contradiction"
        return "ids"

    def contradiction(self, palette: Sequence[int], present: Collection[int]) -> str:
        """Describe the contradiction that `read_palette` found, and what to do about it."""
        wrong = self.contradicting(palette)
        value = next(value for value in sorted(present) if value in wrong and self.colors[palette[value]] != IGNORE)
        missing = sorted({show_color(palette[each]) for each in present if each < len(palette)} - {*map(show_color, self.colors)})
        advice = "correct [ids], or the colours of the classes"
        if missing:
            advice = f"add {', '.join(missing[:8])} of its palette to [classes] or void_colors, so that it is read by colour"
        return (
            f"its palette gives the id {value} the colour of {self._name(self.colors[palette[value]])}, but the descriptor reads "
            f"{value} as {self._name(self.ids.get(value))}; {advice}"
        )

    def _name(self, train_id: int | None) -> str:
        return "nothing" if train_id is None else "void" if train_id == IGNORE else repr(self.names[train_id])

    def holds_ids_in_red(self, colors: Iterable[int]) -> bool:
        """Return whether RGB values are ids in the red channel, as in R=G=B files: all are known, and no colour is a class's."""
        found = set(colors)
        return not any(self.colors.get(color, IGNORE) != IGNORE for color in found) and all(
            color >> 16 in self.ids for color in found
        )

    def advise(self, unknown: Sequence[int], colors: Iterable[int] | None, lossy: bool) -> str:
        """Describe the values of a label that are unknown, and what to do about them.

        Args:
            colors: all colours of an RGB label; None for ids.
            lossy: whether the label `looks_lossy`.
        """
        show = str if colors is None else show_color
        found = ", ".join(map(show, unknown[:8])) + (", …" if len(unknown) > 8 else "")
        strange = f"label values {found} are not in the dataset's descriptor"
        if lossy:
            return (
                f"{strange}: {len(unknown)} values, most of them in single pixels, as after lossy compression (JPEG) or "
                "smoothing; export the labels again as PNG, without either, or raise color_tolerance in the descriptor"
            )
        if colors is not None and self.holds_ids_in_red(colors):
            return f'{strange}, but the red channel holds its ids; set encoding = "ids_in_red" in its [[layout]]'
        if colors is None and (outside := [value for value in unknown if not 0 <= value <= 255]):
            instances = "; values from 1000 are often instances: look for files of class ids" if max(outside) >= 1000 else ""
            return f"ids must be from 0 to 255, found {', '.join(map(str, outside[:8]))}; convert the labels{instances}"
        key = "[classes] or void_colors"
        if colors is None:
            key = "[classes] or void" if self.encoding == "train_ids" else "[ids] or void"
        if colors is None and self.encoding == "ids" and set(unknown) <= {250, 255}:
            key += ' (if the file holds train ids, its layout needs encoding = "train_ids")'
        return f"{strange}; add them to its {key}"


def _channels(colors: Sequence[int]) -> np.ndarray:
    """Return colours 0xrrggbb as an array (N, 3)."""
    return np.array(colors, np.int64)[:, None] >> np.array([16, 8, 0]) & 255


def show_color(color: int) -> str:
    """Return 0xrrggbb as "#rrggbb"."""
    return f"#{color:06x}"


class LabelCodec:
    """Decodes the label files of a dataset to train ids of the training's class table, with lookup tables.

    Index files are looked up in a table of 65,536 values, RGB files in the colours of the class table. Palettized files are
    index files, unless their palette shows the colours of the class table at other indices: see `Legend.read_palette`. With
    `ids_in_red`, the red channel is looked up like an index file.

    Args:
        descriptor: the dataset's descriptor.
        encoding: `ids`, `train_ids` or `ids_in_red`, from the descriptor's layout.
        mapping: (256,) uint8, train id of the descriptor's table → train id of the training's table, 255 = ignored.
    """

    def __init__(self, descriptor: Descriptor, encoding: str, mapping: np.ndarray):
        self._mapping = mapping
        self._red = encoding == "ids_in_red"
        self._legend = Legend(descriptor, encoding)
        self._lut = np.full(65536, _UNKNOWN, np.uint8)
        for value, train_id in self._legend.ids.items():
            self._lut[value] = mapping[train_id]
        self._colors = np.array(sorted(self._legend.colors))
        self._color_ids = np.array([mapping[self._legend.colors[color]] for color in self._colors], np.uint8)

    def rules(self) -> bytes:
        """Return bytes that identify the decoding: they change whenever label files would be decoded differently."""
        tables = (self._mapping, self._lut, self._colors, self._color_ids)
        names = json.dumps([sorted(self._legend.by_name.items()), self._legend.tolerance]).encode()
        return b"".join(table.tobytes() for table in tables) + bytes([self._red, DECODING]) + names

    def map(self, train_ids: np.ndarray) -> np.ndarray:
        """Convert train ids of the descriptor's table, of any shape, to those of the training's table."""
        return self._mapping[train_ids]

    def read(self, path: Path) -> np.ndarray:
        """Read an image of labels; see `decode`."""
        return self.decode(path, read_label(path))

    def read_item(self, item: Item) -> np.ndarray:
        """Read the label of an item, which has one, whatever its form; see `decode`."""
        assert item.label is not None
        return self.decode(item.label, label_of(item))

    def decode(self, path: Path, file: LabelFile) -> np.ndarray:
        """Return the content of a label file as (H, W) uint8 train ids, 255 = ignored.

        Raises:
            FileError: it contains values, colours or names that the descriptor does not name, or its palette contradicts the
                descriptor.
        """
        if file.names:
            return self._decode_names(path, file)
        rgb = file.red is not None and not self._red
        values = file.red if file.red is not None and self._red else file.values
        if rgb:
            places = np.searchsorted(self._colors, values).clip(max=len(self._colors) - 1)
            label = np.where(self._colors[places] == values, self._color_ids[places], np.uint8(_UNKNOWN))
            if self._legend.tolerance:
                strange = label == _UNKNOWN
                near, places = np.unique(values[strange], return_inverse=True)
                label[strange] = self._lut_of(self._legend.of_colors(near.tolist()), near.tolist())[places.reshape(-1)]
        elif file.palette and self._reads_colors(path, file):
            label = self._lut_of(self._legend.colors, file.palette)[values]
        elif values.dtype.kind == "u":
            label = self._lut[values]
        else:
            inside = values.astype(np.int64).clip(0, len(self._lut) - 1)
            label = np.where(inside == values, self._lut[inside], np.uint8(_UNKNOWN))
        unknown = label == _UNKNOWN
        if unknown.any():
            colors = [int(color) for color in np.unique(values)] if rgb else None
            found = [int(value) for value in np.unique(values[unknown])]
            raise FileError(f"{path}: {self._legend.advise(found, colors, looks_lossy(values))}, {SKIP}")
        return label

    def _lut_of(self, known: dict[int, int], colors: Sequence[int]) -> np.ndarray:
        """Return the train id of each of the colours, (N,) uint8, as the training's table has it."""
        return np.array([self._mapping[known[color]] if color in known else _UNKNOWN for color in colors], np.uint8)

    def _decode_names(self, path: Path, file: LabelFile) -> np.ndarray:
        known = self._legend.by_name
        unknown = [name for name in file.names if name not in known]
        if unknown:  # also of objects that others hide
            raise FileError(f"{path}: {self._legend.advise_name(unknown)}, {SKIP}")
        return np.array([self._mapping[known[name]] for name in file.names], np.uint8)[file.values]

    def _reads_colors(self, path: Path, file: LabelFile) -> bool:
        """Return whether a palettized file is read by its colours. Raise FileError if its palette contradicts the descriptor."""
        legend, palette = self._legend, file.palette
        if not legend.contradicting(palette):
            return False
        present = np.unique(file.values).tolist()
        read = legend.read_palette(palette, present)
        if read == "contradiction":
            raise FileError(f"{path}: {legend.contradiction(palette, present)}, {SKIP}")
        return read == "colours"


def read_pair(item: Item, codec: LabelCodec) -> tuple[Image.Image, np.ndarray]:
    """Read the image and the label of an item, which must have the same size.

    Raises:
        FileError: one of them cannot be read, or their sizes differ.
    """
    image, label = read_image(item.image), codec.read_item(item)
    if image.size != (label.shape[1], label.shape[0]):
        fault = different_sizes(item.image, image.size, label.shape[::-1], orientation_of(item.image))
        raise FileError(f"{item.label}: {fault}, or skip such pairs with --bad-files skip")
    return image, label
