"""Find the images of a split in a dataset's folder, by the layouts of its descriptor."""

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sda.data.descriptor import Descriptor, Layout
from sda.data.item import Item
from sda.data.splits.lists import read_keys
from sda.errors import SdaError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}


class NoImages(SdaError):
    """Raised if a split has no images."""


@dataclass(frozen=True)
class Listing:
    """The images of one split, sorted by key, and the label encoding of the layout that found them."""

    items: list[Item]
    encoding: str
    layout: Layout | None = None

    @property
    def label_pattern(self) -> str | None:
        """The layout's pattern of label files; None without a layout, or if the layout has no labels."""
        return self.layout.labels if self.layout else None


def list_items(descriptor: Descriptor, root: Path, split: str) -> Listing:
    """Find the images of `split` below `root` and their labels, by the first layout that finds any labels.

    If no layout finds labels, the first that finds images is used: the split is unlabelled.

    Raises:
        SdaError: the root is missing, or a folder cannot be read.
        NoImages: no layout finds an image; the message names the patterns.
    """
    get = f"; {descriptor.download}" if descriptor.download else ""
    if not _is_dir(root):
        what = "is a file: give the folder itself" if root.is_file() else f"does not exist{get}"
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
        raise NoImages(
            f"{descriptor.title}: no layout of its descriptor has a split {split!r}; choose another split, or add a [[layout]]"
        )
    looked = " and ".join(dict.fromkeys(tried))
    raise NoImages(
        f"{descriptor.title}: no images of split {split!r} in {root}: looked for {looked}{'' if descriptor.generated else get}"
    )


def list_splits(descriptor: Descriptor, root: Path, splits: Sequence[str] = ("train", "val")) -> dict[str, Listing]:
    """List the given splits that have images below `root`.

    Raises:
        SdaError: as `list_items`.
        NoImages: none of the splits has images.
    """
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
    """Return the label files of the listing's layout that belong to none of its images, relative to the root."""
    layout = listing.layout
    if layout is None or layout.labels is None or layout.list is not None:
        return []  # the list may name only some of the labelled images
    pattern, expression = compile_pattern(layout.labels, {"split": descriptor.splits.get(split, split)})
    used = {item.label for item in listing.items}
    paths = (path for path in _find(root, pattern) if path not in used and not path.name.startswith("."))
    return sorted(key for path in paths if expression.fullmatch(key := path.relative_to(root).as_posix()))


def list_folder(folder: Path) -> Listing:
    """List every image in a folder and the folders below it, without labels."""
    if not folder.is_dir():
        raise SdaError(f"{folder}: no such folder of unlabelled images; give an existing one")
    found = (place / name for place, names in walk(folder) for name in names)
    paths = sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SdaError(f"{folder}: contains no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give another folder")
    return Listing([Item(path.relative_to(folder).as_posix(), path, None) for path in paths], "ids")


def _no_access(error: OSError) -> NoReturn:
    raise SdaError(f"{error.filename}: cannot be read ({error.strerror}); fix its permissions") from None


def walk(folder: Path, unreadable: Callable[[OSError], object] = _no_access) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and all folders below it, each with the names of its files. Skip hidden ones; follow links once.

    Args:
        unreadable: called for a folder that cannot be read; by default, raises SdaError.
    """
    seen = set()
    for place, below, names in os.walk(folder, onerror=unreadable, followlinks=True):
        seen.add(os.path.realpath(place))
        below[:] = [name for name in sorted(below) if name[0] != "." and os.path.realpath(os.path.join(place, name)) not in seen]
        yield Path(place), sorted(name for name in names if name[0] != ".")


def _find(root: Path, pattern: str) -> Iterator[Path]:
    """Yield the paths below `root` that match a glob pattern. Unlike pathlib's glob, this does not skip unreadable folders.

    Raises:
        SdaError: a folder cannot be read.
    """
    *heads, last = pattern.split("/")
    folders = [root]
    for part in heads:
        folders = [path for folder in folders for path in _matches(folder, part) if _is_dir(path)]
    for folder in folders:
        yield from _matches(folder, last)


def _matches(folder: Path, part: str) -> list[Path]:
    """Return the entries of a folder that match one part of a pattern."""
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


def compile_pattern(pattern: str, words: dict[str, str]) -> tuple[str, re.Pattern]:
    """Return a layout pattern as a glob and as a regular expression that captures its words."""
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
