"""Dataset descriptors and class tables: TOML in, class names, colours, label ids and file patterns out."""

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Protocol

import numpy as np
from pydantic import Field, field_validator, model_validator

from sda import shelf
from sda.data.split_lists import read_keys
from sda.errors import SdaError
from sda.labels import IGNORE

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}

Byte = Annotated[int, Field(ge=0, le=255)]
Color = Annotated[list[Byte], Field(min_length=3, max_length=3)]


class ClassTable(shelf.Strict):
    """The classes of a benchmark: the order of `colors` is the order of the train ids, 0 first."""

    title: str = ""
    colors: dict[str, Color] = Field(min_length=1, max_length=250)

    @property
    def names(self) -> list[str]:
        return list(self.colors)


class Layout(shelf.Strict):
    """Where images and their labels lie below the root.

    `{split}` stands for the split's folder, any other `{word}` for one part of a path; the label's path is made from
    the same words as its image's.
    """

    images: str
    labels: str | None = None
    encoding: Literal["ids", "train_ids", "ids_in_red"] = "ids"
    split: str | None = Field(None, description="this layout holds only this split")
    list: str | None = Field(None, description="text file of the split's images, one per line: names, with or without folders")

    @field_validator("images", "labels", "list")
    @classmethod
    def _is_pattern(cls, pattern):
        if pattern is None:
            return pattern
        if not pattern or pattern.startswith("/") or "*" in pattern:
            raise ValueError("expected a path below the root with {words} in it, and no *")
        if re.search(r"[{}]", re.sub(r"{[A-Za-z_]\w*}", "", pattern)):
            raise ValueError("braces hold one plain word each, such as {frame}")
        return pattern

    @property
    def by_split(self) -> bool:
        """Whether the name of the split stands in the paths."""
        return "{split}" in self.images or "{split}" in (self.list or "")

    @model_validator(mode="after")
    def _words_agree(self):
        if self.list is not None and set(_words(self.list)) - {"split"}:
            raise ValueError("list may hold {split} and no other word")
        if self.labels is not None:
            unknown = set(_words(self.labels)) - set(_words(self.images)) - {"split"}
            if unknown:
                raise ValueError(f"labels uses {{{unknown.pop()}}}, which images does not")
        return self


class Descriptor(shelf.Strict):
    """One dataset, as `datasets/NAME.toml` or a TOML of the user's describes it."""

    title: str
    home: str = ""
    licence: str = ""
    download: str = Field("", description="what to download and where it goes")
    classes: str | dict[str, Color] = Field(description="a table in datasets/classes/, or name = [r, g, b] per class")
    ids: dict[str, str] = Field({}, description="value in the label file = class; default: positions in the class table")
    void: list[Byte] = Field([], description="values that are known and ignored; without [ids] also 255")
    void_colors: list[Color] = Field([], description="ignored colours, for labels stored as RGB")
    layout: list[Layout] = Field(min_length=1, description="tried in order; the first that finds labelled images is taken")
    splits: dict[str, str] = Field({}, description="split = its folder name, where they differ")
    maps: dict[str, dict[str, str]] = Field({}, description="per class table: class here = class there")
    root: str = Field("", description="the folder looked in when no root is given")
    generated: bool = Field(False, description="made by sda on first use")

    @field_validator("ids")
    @classmethod
    def _ids_are_bytes(cls, ids):
        for key in ids:
            if not key.isdecimal() or int(key) > 255:
                raise ValueError(f"key {key!r} must be a whole number from 0 to 255")
        return ids

    @model_validator(mode="after")
    def _values_have_one_meaning(self):
        values = [int(key) for key in self.ids]
        for value in values:
            if value in self.void or values.count(value) > 1:
                raise ValueError(f"the value {value} stands for two things in ids and void")
        return self

    @model_validator(mode="after")
    def _ids_name_classes(self):
        if isinstance(self.classes, dict):
            unknown = set(self.ids.values()) - set(self.classes)
            if unknown:
                raise ValueError(f"ids names the class {unknown.pop()!r}, which is not in classes")
        return self

    def table(self) -> ClassTable:
        """The class table that the labels are decoded to."""
        if isinstance(self.classes, dict):
            return ClassTable(title=self.title, colors=self.classes)
        return class_table(self.classes)


def class_table(name: str) -> ClassTable:
    """The class table `datasets/classes/NAME.toml`, or a TOML path."""
    return shelf.read(shelf.find("datasets/classes", name), ClassTable)


def load(name: str) -> Descriptor:
    """The descriptor of a dataset on the shelf, or of a TOML path.

    Raises:
        SdaError: no such file, a fault in it, or ids that name classes outside its table.
    """
    path = shelf.find("datasets", name)
    descriptor = shelf.read(path, Descriptor)
    if isinstance(descriptor.classes, str) and descriptor.classes.endswith(".toml"):
        descriptor = descriptor.model_copy(update={"classes": str(path.parent / descriptor.classes)})
    table = descriptor.table()
    for value, label in descriptor.ids.items():
        if label not in table.colors:
            raise SdaError(f"{path}: ids: {value} = {label!r}: no such class{shelf.hint(label, table.names)}")
    for name, mapped in descriptor.maps.items():
        for label in mapped:
            if label not in table.colors:
                raise SdaError(f"{path}: maps.{name}: no class {label!r} here{shelf.hint(label, table.names)}")
    return descriptor


class NoImages(SdaError):
    """A dataset without a single image of a split."""


class Stored(Protocol):
    """An image and its label that are read from elsewhere than from files of their own."""

    bytes: int  # of the image's file, and the SHA-256 of these in hexadecimal digits
    sha256: str

    @property
    def path(self) -> Path: ...  # where it is read from

    def image(self) -> np.ndarray: ...  # (H, W, 3) uint8
    def label(self) -> np.ndarray: ...  # (H, W) uint8, train ids of the dataset's own table


@dataclass(frozen=True)
class Item:
    """One image: its path relative to the root (the portable name in split lists), its file and its label's, if any.

    Where it is `stored` in a pack, the files are the pack's originals and may be gone.
    """

    key: str
    image: Path
    label: Path | None
    stored: Stored | None = None


@dataclass(frozen=True)
class Listing:
    """The images of one split, sorted by key, and the label encoding of the layout they were found in."""

    items: list[Item]
    encoding: str
    layout: Layout | None = None

    @property
    def label_pattern(self) -> str | None:
        """Where its layout looks for labels; None where there is no layout, or it has no labels."""
        return self.layout.labels if self.layout else None


def list_items(descriptor: Descriptor, root: Path, split: str) -> Listing:
    """Find the images of `split` below `root` and the label of each, in the first layout that finds any labels.

    Where no layout finds labels, the first that finds images counts: an unlabelled set.

    Raises:
        SdaError: the root is missing, or no layout finds an image; says what was looked for.
    """
    get = f"; {descriptor.download}" if descriptor.download else ""
    if not _is_dir(root):
        what = "is a file: here the folder itself is needed" if root.is_file() else f"does not exist{get}"
        raise SdaError(f"{descriptor.title}: the folder {root} {what}")
    tried, unlabelled = [], None
    for layout in descriptor.layout:
        if layout.split not in (None, split) or (layout.split is None and not layout.by_split and split != "train"):
            continue
        words = {"split": descriptor.splits.get(split, split)}
        pattern, expression = compile_pattern(layout.images, words)
        listed = root / layout.list.format(**words) if layout.list else None
        tried.append(f"{pattern} of {listed.relative_to(root)}" if listed else pattern)
        if listed and not _is_file(listed):
            continue
        items = []
        for path in _find(root, pattern):
            key = path.relative_to(root).as_posix()
            match = expression.fullmatch(key)
            if match and not path.name.startswith("."):  # macOS leaves ._files behind
                label = layout.labels and root / layout.labels.format(**match.groupdict(), **words)
                items.append(Item(key, path, label if label and _is_file(label) else None))
        items.sort(key=lambda item: item.key)
        if listed and items:
            named = set(read_keys(listed, items, f"images of {pattern}"))
            items = [item for item in items if item.key in named]
        if any(item.label for item in items):
            return Listing(items, layout.encoding, layout)
        unlabelled = unlabelled or (items and Listing(items, layout.encoding, layout))
    if unlabelled:
        return unlabelled
    if not tried:
        raise NoImages(f"{descriptor.title}: no layout of its descriptor holds a split {split!r}")
    looked = " and ".join(dict.fromkeys(tried))
    raise NoImages(f"{descriptor.title}: no images of split {split!r} in {root}: looked for {looked}{get}")


def list_splits(descriptor: Descriptor, root: Path, splits: Sequence[str] = ("train", "val")) -> dict[str, Listing]:
    """Those of the splits that have images below `root`. SdaError as `list_items`, and when none of them has images."""
    listings, errors = {}, []
    for split in splits:
        try:
            listings[split] = list_items(descriptor, root, split)
        except NoImages as error:
            errors.append(error)
    if not listings:
        raise errors[0]
    return listings


def find_orphans(descriptor: Descriptor, root: Path, split: str, listing: Listing) -> list[str]:
    """Label files of the listing's layout that go with none of its images, relative to the root."""
    layout = listing.layout
    if layout is None or layout.labels is None or layout.list is not None:
        return []  # beside a list, other labels are nobody's fault
    pattern, expression = compile_pattern(layout.labels, {"split": descriptor.splits.get(split, split)})
    used = {item.label for item in listing.items}
    paths = (path for path in _find(root, pattern) if path not in used and not path.name.startswith("."))
    return sorted(key for path in paths if expression.fullmatch(key := path.relative_to(root).as_posix()))


def list_folder(folder: Path) -> Listing:
    """Every image in a folder and the folders below it, without labels."""
    if not folder.is_dir():
        raise SdaError(f"{folder}: no such folder of unlabelled images")
    found = (place / name for place, names in walk(folder) for name in names)
    paths = sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SdaError(f"{folder}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return Listing([Item(path.relative_to(folder).as_posix(), path, None) for path in paths], "ids")


def walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folder and all below it, with the names of the files in each; hidden ones are passed over, links followed, once.

    Raises:
        SdaError: a folder cannot be looked into.
    """
    seen = set()
    for place, below, names in os.walk(folder, onerror=_no_access, followlinks=True):
        seen.add(os.path.realpath(place))
        below[:] = [name for name in sorted(below) if name[0] != "." and os.path.realpath(os.path.join(place, name)) not in seen]
        yield Path(place), sorted(name for name in names if name[0] != ".")


def _find(root: Path, pattern: str) -> Iterator[Path]:
    """What matches a glob pattern below `root`. Unlike pathlib's, this does not pass over folders that cannot be read.

    Raises:
        SdaError: names the folder.
    """
    *heads, last = pattern.split("/")
    folders = [root]
    for part in heads:
        folders = [path for folder in folders for path in _matches(folder, part) if _is_dir(path)]
    for folder in folders:
        yield from _matches(folder, last)


def _matches(folder: Path, part: str) -> list[Path]:
    """The entries of a folder that match one part of a pattern."""
    if part == "..":
        return [folder / part]
    try:
        return [folder / name for name in fnmatch.filter(os.listdir(folder), part)]
    except OSError as error:
        return _no_access(error)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        return _no_access(error)


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        return _no_access(error)


def _no_access(error: OSError) -> NoReturn:
    raise SdaError(f"{error.filename}: cannot be looked into ({error.strerror}); mend its permissions") from None


def label_values(descriptor: Descriptor, encoding: str) -> dict[int, int]:
    """Value in a label file → train id (255 for void), for one encoding. Values that are not keys are unknown.

    Where `[ids]` is given, 255 counts only if `void` names it: label ids do not use it, files converted to train ids do.
    """
    names = descriptor.table().names
    void = dict.fromkeys(descriptor.void, IGNORE)
    train_ids = {index: index for index in range(len(names))}
    if encoding == "train_ids":
        return {**void, 250: IGNORE, 255: IGNORE, **train_ids}
    if descriptor.ids:
        return {**void, **{int(value): names.index(name) for value, name in descriptor.ids.items()}}
    return {**train_ids, 255: IGNORE, **void}


def map_classes(source: Descriptor, target_name: str, target: ClassTable) -> tuple[np.ndarray, list[str]]:
    """How the train ids of `source` become those of `target`: by equal name, or by the source's own `maps` table.

    Args:
        target_name: the name under which `maps` lists the table.

    Returns:
        A uint8 table of 256 entries (train id → train id, 255 where dropped) and the names of the classes dropped.

    Raises:
        SdaError: the map names a class that does not exist, or nothing maps at all.
    """
    explicit = source.maps.get(target_name, {})
    table = source.table()
    for name, mapped in explicit.items():
        for word, known in ((name, table.names), (mapped, target.names)):
            if word not in known:
                raise SdaError(
                    f"{source.title}: maps.{target_name}: {name!r} = {mapped!r}: no class {word!r}{shelf.hint(word, known)}"
                )
    places = {_plain(name): index for index, name in enumerate(target.names)}
    lut, dropped = np.full(256, IGNORE, np.uint8), []
    for index, name in enumerate(table.names):
        mapped = places.get(_plain(explicit.get(name, name)))
        if mapped is None:
            dropped.append(name)
        else:
            lut[index] = mapped
    if len(dropped) == len(table.names):
        raise SdaError(
            f"{source.title}: none of its classes is in the class table {target_name}; add a [maps.{target_name}] "
            f"to its descriptor: class here = class there ({', '.join(target.names)})"
            + (f"; it has maps for {', '.join(source.maps)}" if source.maps else "")
        )
    return lut, dropped


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


def _words(pattern: str) -> list[str]:
    return re.findall(r"{(\w+)}", pattern)


def compile_pattern(pattern: str, words: dict[str, str]) -> tuple[str, re.Pattern]:
    """A layout pattern as a glob and as a regular expression that captures its words."""
    globbed, expression, seen = "", "", set()
    for part in re.split(r"({\w+})", pattern):
        word = part[1:-1] if part.startswith("{") else None
        if word is None or word in words:
            literal = part if word is None else words[word]
            globbed += glob.escape(literal)
            expression += re.escape(literal)
        else:
            globbed += "*"
            expression += f"(?P={word})" if word in seen else f"(?P<{word}>[^/]+)"
            seen.add(word)
    return globbed, re.compile(expression)
