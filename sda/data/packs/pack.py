"""Read packs: one file with the images and labels of a dataset at training resolution, with checksums.

A pack is an HDF5 file of format 1.10:

    /images/SPLIT           uint8 (N, height, width, 3) RGB, one chunk per image
    /labels/train           uint8 (N, height, width) train ids of the dataset's own class table, 255 = ignored or no label.
                            With fit = "inside", images and labels are in the upper left corner, at the size of their entry
    /labels/SPLIT/000012    any other split: uint8 at the label file's own size, at which networks are scored
    /about                  JSON: what was packed and how, and the file, size, time and SHA-256 of every image

Every chunk has a Fletcher-32 checksum, so that damage is detected on reading. `write_pack` in `make.py` writes packs.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
from pydantic import ConfigDict, Field, InstanceOf

from sda import shelf
from sda.data.descriptor import Color, Descriptor
from sda.data.files import DECODING, FileError
from sda.data.item import Item
from sda.data.listing import Listing, list_items
from sda.data.packs import hdf5
from sda.errors import SdaError
from sda.sizes import Fit
from sda.system.resumable import first_line

FORMAT = 2
KIND = "sda pack"
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST = 2**28  # pixels of an image or label


@dataclass(frozen=True, slots=True)
class Entry:
    """One image of a pack, and the state of its files when they were read.

    Attributes:
        key: the image's path relative to the root.
        bytes, mtime_ns: size and modification time of the image file; -1 if it did not exist.
        label_bytes, label_mtime_ns: the same for the label file.
        sha256: hash of the image file's content, in hexadecimal digits.
        fault: why the image was skipped; empty for images in the pack.
        height, width: of the image in the pack, and of its label in `train`; 0: the pack's size.
    """

    key: str
    bytes: int
    mtime_ns: int
    label_bytes: int
    label_mtime_ns: int
    sha256: str = ""
    fault: str = ""
    height: int = 0
    width: int = 0

    @property
    def has_label(self) -> bool:
        return self.label_bytes >= 0

    @property
    def corner(self) -> tuple[slice, slice]:
        """The rows and columns of the pack that hold the image."""
        return slice(self.height or None), slice(self.width or None)

    @property
    def stamps(self) -> tuple:
        return self.key, self.bytes, self.mtime_ns, self.label_bytes, self.label_mtime_ns


class _Settings(shelf.Strict):
    model_config = ConfigDict(extra="allow")

    root: InstanceOf[str]  # a path that may not be valid Unicode, which pydantic's own type refuses
    size: Annotated[list[Annotated[int, Field(ge=1, le=_MOST)]], Field(min_length=2, max_length=2)]
    fit: Fit = "stretch"
    encodings: dict[str, str]


class _Descriptor(shelf.Strict):
    model_config = ConfigDict(extra="allow")

    title: str
    classes: dict[str, Color]


class _About(shelf.Strict):
    """The JSON in /about."""

    name: str
    descriptor: _Descriptor
    settings: _Settings
    splits: dict[str, list[dict]]
    left_out: dict[str, list[dict]]


class Pack:
    """A pack, open for reading. It may be pickled and forked: every process opens the file itself when it first reads an image.

    Attributes:
        path, name, title: the file; the name of the dataset; the dataset's title.
        descriptor: the dataset's descriptor as plain values, with its classes as name → [r, g, b].
        classes: the names of the classes, in the order of the train ids.
        root: the dataset's folder, which may no longer exist.
        size: (height, width) that images and training labels were resized to. fit: how: see `sda.sizes.fitted`.
        splits: split → its images, in the order of their indices.
        left_out: split → the images that could not be used.
        settings: everything that determines the content of the pack.

    Raises:
        SdaError: the file is missing, truncated, open for writing, not an HDF5 file, not a pack, or of another format; or its
            parts do not fit together.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._stamp = _stamp(self.path)
        about, *splits = _read_about(self.path)
        self.name = about.name
        self.descriptor = about.descriptor.model_dump()
        self.title = about.descriptor.title
        self.classes = list(about.descriptor.classes)
        self.settings = about.settings.model_dump()
        self.root = Path(about.settings.root)
        self.size: tuple[int, int] = (about.settings.size[0], about.settings.size[1])
        self.fit: Fit = about.settings.fit
        self.splits, self.left_out = splits
        self._opened: tuple[int, h5py.File, dict[str, h5py.Dataset]] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}

    @property
    def faults(self) -> list[str]:
        """The reason why each of the skipped images could not be used."""
        return [entry.fault for entries in self.left_out.values() for entry in entries]

    def image(self, split: str, index: int) -> np.ndarray:
        """Read an image as (H, W, 3) uint8 RGB, at its size in the pack. Raise FileError if it cannot be read."""
        entry = self.splits[split][index]
        with self._reading(entry):
            return self._images(split)[index][entry.corner]

    def label(self, split: str, index: int) -> np.ndarray:
        """Read a label as (H, W) uint8 train ids of the pack's own classes, 255 = ignored.

        It has the size of its image in the pack for `train`, the size of its file for any other split.

        Raises:
            FileError: the image has no label, or it cannot be read.
        """
        entry = self.splits[split][index]
        if not entry.has_label:
            raise FileError(f"{self.path}: {entry.key} has no label")
        with self._reading(entry):
            return self._native_label(split, index) if is_native(split) else self._labels(split)[index][entry.corner]

    @contextlib.contextmanager
    def _reading(self, entry: Entry) -> Iterator[None]:
        try:
            yield
        except hdf5.FAULTS as error:
            raise FileError(
                f"{self.path}: {entry.key} cannot be read from this pack ({first_line(error)}); make the pack again with "
                "sda pack, or skip such images with --bad-files skip"
            ) from None

    def _images(self, split: str) -> h5py.Dataset:
        file, opened = self._file()
        name = f"images/{split}"
        if name not in opened:
            opened[name] = hdf5.dataset(file, name, "uint8", (len(self.splits[split]), *self.size, 3))
        return opened[name]

    def _labels(self, split: str) -> h5py.Dataset:
        file, opened = self._file()
        name = f"labels/{split}"
        if name not in opened:  # sparse: images without a label have none
            opened[name] = hdf5.dataset(file, name, "uint8", (len(self.splits[split]), *self.size), sparse=True)
        return opened[name]

    def _native_label(self, split: str, index: int) -> np.ndarray:
        found = hdf5.dataset(self._file()[0], native_label(split, index), "uint8", (None, None))
        if found.size > _MOST:
            raise ValueError(f"its label has {found.size} pixels, more than {_MOST}")
        return found[()]

    def _file(self) -> tuple[h5py.File, dict[str, h5py.Dataset]]:
        """Return this process's handles of the file and of its datasets.

        If two threads open the file at once, both handles work and one is kept.
        """
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            if opened is not None:  # inherited by a fork: HDF5 would return the parent's handle again
                opened[1].close()
            if _stamp(self.path) != self._stamp:
                raise OSError("the file was removed or replaced after it was first opened")
            self._opened = opened = os.getpid(), hdf5.open_file(self.path, has_text=False), {}
        return opened[1:]


@dataclass(frozen=True)
class Packed:
    """One image of a pack; implements `Stored`."""

    pack: Pack
    split: str
    index: int
    bytes: int
    sha256: str

    @property
    def path(self) -> Path:
        return self.pack.path

    def image(self) -> np.ndarray:
        return self.pack.image(self.split, self.index)

    def label(self) -> np.ndarray:
        return self.pack.label(self.split, self.index)


def list_packed(path: Path, descriptor: Descriptor, split: str, size: tuple[int, int] | None, fit: Fit = "stretch") -> Listing:
    """List the images of a split in a pack, as `list_items` does for a folder.

    Args:
        size: (height, width) that the images should be resized to; None for their own sizes. fit: how.

    Raises:
        SdaError: the pack cannot be read or is stale, it lacks the split, or it was made with another size or fit.
    """
    pack = Pack(path)
    check_fresh(pack, descriptor)
    if split not in pack.splits:
        raise SdaError(f"{path}: this pack has no split {split!r}, only {', '.join(pack.splits)}; pack that split, too")
    if pack.size != size:
        wanted = f"{size[0]}x{size[1]} is" if size else "images at their own sizes are"
        raise SdaError(
            f"{path}: this pack is at {pack.size[0]}x{pack.size[1]}, but {wanted} needed; pack that size, or give the folder"
        )
    if pack.fit != fit:
        raise SdaError(
            f'{path}: this pack was made with fit = "{pack.fit}", but fit = "{fit}" is needed: pack with --fit {fit} and a new '
            "--out, or give the folder"
        )
    return _listing(pack, split)


def list_packed_splits(path: Path, descriptor: Descriptor, splits: Sequence[str]) -> dict[str, Listing]:
    """List the given splits that a pack has, at its own size. Raise SdaError as `list_packed` does, or if it has none of them."""
    pack = Pack(path)
    check_fresh(pack, descriptor)
    listings = {split: _listing(pack, split) for split in splits if split in pack.splits}
    if not listings:
        raise SdaError(f"{path}: this pack has no split {' or '.join(splits)}, only {', '.join(pack.splits)}")
    return listings


def _listing(pack: Pack, split: str) -> Listing:
    items = []
    for index, entry in enumerate(pack.splits[split]):
        stored = Packed(pack, split, index, entry.bytes, entry.sha256)
        items.append(Item(entry.key, pack.root / entry.key, pack.path if entry.has_label else None, stored))
    return Listing(items, "train_ids")


def _entry(values: dict) -> Entry:
    """Return the entry with these fields. Raise TypeError if one is missing, unknown or of another type."""
    entry = Entry(**values)
    for field in fields(Entry):
        if type(getattr(entry, field.name)) is not field.type:
            raise TypeError(f"the field {field.name} of an image has another type")
    if entry.height < 0 or entry.width < 0:
        raise ValueError("an image has a negative size")
    return entry


def _read_about(path: Path) -> tuple[_About, dict[str, list[Entry]], dict[str, list[Entry]]]:
    """Read everything of a pack except its images and labels, and check that it fits to them."""
    if not path.is_file():
        what = "this is a folder, not a pack" if path.is_dir() else "no such pack; make it with sda pack"
        raise SdaError(f"{path}: {what}")
    try:
        with path.open("rb") as file:
            if file.read(len(_SIGNATURE)) != _SIGNATURE:
                raise SdaError(f"{path}: not an HDF5 file, so not a pack; give a dataset's folder, or a file made by sda pack")
        with hdf5.open_file(path, has_text=False) as file:
            if not hdf5.is_kind(file, KIND):
                raise SdaError(f"{path}: an HDF5 file, but not a pack; give a dataset's folder, or a file made by sda pack")
            found = hdf5.number(file, "format")
            if found != FORMAT:
                raise SdaError(
                    f"{path}: a pack of format {found}, but this sda reads format {FORMAT}; make it again with sda pack"
                )
            text = hdf5.dataset(file, "about", "uint8", (None,))[()].tobytes()
            about = shelf.check(_About, json.loads(text), f"{path}: metadata")
            splits, left_out = (
                {split: [_entry(values) for values in entries] for split, entries in part.items()}
                for part in (about.splits, about.left_out)
            )
            size = about.settings.size
            if math.prod(size) > _MOST:
                raise ValueError(f"its images have {math.prod(size)} pixels, more than {_MOST}")
            if not about.splits.keys() == about.left_out.keys() == about.settings.encodings.keys():
                raise ValueError("its lists of images have different splits")
            for split, entries in splits.items():
                hdf5.dataset(file, f"images/{split}", "uint8", (len(entries), *size, 3))
            return about, splits, left_out
    except hdf5.FAULTS as error:
        raise SdaError(hdf5.unreadable(path, error, "make it again with sda pack")) from None


def check_fresh(pack: Pack, descriptor: Descriptor) -> None:
    """Raise SdaError if a pack is stale.

    The decoding of the labels is always compared. If the folder that was packed still exists, the names, sizes and times of
    its files are compared, too, which takes one `stat` per file.

    Args:
        descriptor: the dataset's current descriptor.

    Raises:
        SdaError: another dataset, a changed descriptor, or a new, missing or changed file, which the message names.
    """
    again = f"run sda pack again with a new --out, or give the folder {pack.root} instead"
    if pack.title != descriptor.title:
        raise SdaError(f"{pack.path}: this is a pack of {pack.title}, not of {descriptor.title}; give the right pack or folder")
    if pack.settings.get("decoding") != DECODING:
        raise SdaError(f"{pack.path}: this pack was made by a version of sda that reads label files differently; {again}")
    for part, value in decoding(descriptor).items():
        if pack.settings.get(part) != value:
            raise SdaError(
                f"{pack.path}: the descriptor of {pack.title} has changed since this pack was made: {part} differs; "
                "run sda pack again with a new --out, or undo the change"
            )
    if not pack.root.is_dir():
        return
    for split, entries in pack.splits.items():
        try:
            listing = list_items(descriptor, pack.root, split)
        except SdaError as error:
            raise SdaError(f"{pack.path}: its folder has changed since it was packed: {error}; {again}") from None
        packed = {entry.key: entry for entry in entries + pack.left_out[split]}
        for item in listing.items:
            entry = packed.pop(item.key, None)
            if entry is None:
                raise SdaError(f"{pack.path}: {item.image} was added since this pack was made; {again}")
            if change := _change(entry, item):
                raise SdaError(f"{pack.path}: {change} since this pack was made; {again}")
        for key in packed:
            raise SdaError(f"{pack.path}: {pack.root / key} was removed since this pack was made; {again}")
        if listing.encoding != pack.settings["encodings"][split]:
            raise SdaError(f"{pack.path}: the labels of {split} are now read as {listing.encoding}; {again}")


# Settings and stamps


def decoding(descriptor: Descriptor) -> dict:
    """Return what decides which train id a label value becomes: the version of the decoding, and the parts of a descriptor. The
    order of the classes counts."""
    return {
        "decoding": DECODING,
        "classes": [[name, *color] for name, color in descriptor.table().colors.items()],
        "labels": [[layout.labels, layout.format] for layout in descriptor.layout],
        "ids": dict(sorted(descriptor.ids.items())),
        "void": sorted(descriptor.void),
        "void_colors": sorted(descriptor.void_colors),
        "colors": {"tolerance": descriptor.color_tolerance, "other": dict(sorted(descriptor.other_colors.items()))},
        "names": {"": descriptor.background, **dict.fromkeys(descriptor.void_names, ""), **descriptor.names},
        "empty_images": descriptor.empty_images,
    }


def is_native(split: str) -> bool:
    """Return whether labels keep their own size: in all splits except `train`, because networks are scored at that size."""
    return split != "train"


def native_label(split: str, index: int) -> str:
    """Return the name of the HDF5 dataset of a label at its own size."""
    return f"labels/{split}/{index:06}"


def _stamp(*paths: Path) -> tuple[int, int]:
    """Return the sums of the sizes and of the modification times of files; (-1, -1) without files, or if one does not exist."""
    try:
        found = [os.stat(path) for path in paths]
    except OSError:
        found = []
    return (sum(one.st_size for one in found), sum(one.st_mtime_ns for one in found)) if found else (-1, -1)


def entry_of(item: Item) -> Entry:
    """Return an item's entry, with the sizes and times that its files have now."""
    return Entry(item.key, *_stamp(item.image), *_stamp(*item.label_files))


def _change(entry: Entry, item: Item) -> str:
    """Describe what happened to the files of an item since `entry` was made; "" if nothing did."""
    now = entry_of(item)
    if now.stamps[1:3] != entry.stamps[1:3]:
        return f"{item.image} has changed"
    if now.has_label != entry.has_label:
        return f"{item.label} was added" if now.has_label else f"the label of {item.image} was removed"
    return f"{item.label} has changed" if now.stamps != entry.stamps else ""
