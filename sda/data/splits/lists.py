"""Split lists: text files that name images. This module reads the usual formats, and writes ours and UniMatch's."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sda.data.layouts.pattern import composed
from sda.errors import SdaError
from sda.reading import read_bytes
from sda.system.atomic import written_whole

if TYPE_CHECKING:
    from sda.data.item import Item

_LONGEST = 10_000  # characters in a line: more than two paths can have
_MOST_BYTES = 64 << 20  # of a list: about a million paths


def read_keys(path: Path, items: list[Item], what: str = "images") -> list[str]:
    """Return the keys of the items that a list names, in the order of the list.

    Its entries may be
    - paths relative to the root, with or without spaces: our format;
    - `image_path label_path`, UniMatch's format; the label path is ignored;
    - names without folder or without suffix, as in VOC's lists;
    - paths with more or fewer leading folders than ours, or with a different first folder, if at least one folder agrees.
      A different first folder must not be that of a split: `val/ulm/1.png` does not match `train/ulm/1.png`.

    Args:
        what: what the items are, for the error messages.

    Raises:
        SdaError: as `read_entries`; or an entry matches no item, several items, or the item of an earlier line.
    """
    known, names = {item.key for item in items}, _by_name(items)
    lines: dict[str, int] = {}
    for line, entry in read_entries(path):
        keys = _fitting(entry, known, names)
        if not keys:
            example = f", such as {items[0].key!r}" if items else ""
            raise SdaError(
                f"{path}: line {line}: {entry!r} is not among the {len(items)} {what}{example}; fix or remove the line"
            )
        if len(keys) > 1:
            raise SdaError(
                f"{path}: line {line}: {entry!r} matches {len(keys)} of the {len(items)} {what}, such as {keys[0]!r} "
                f"and {keys[1]!r}: write the whole path"
            )
        if keys[0] in lines:
            raise SdaError(
                f"{path}: line {line}: {entry!r} is listed twice: line {lines[keys[0]]} is {keys[0]!r} too; remove one"
            )
        lines[keys[0]] = line
    return list(lines)


def write_list(path: Path, items: Sequence[Item | str], labels: bool = False) -> None:
    """Write a list, completely or not at all. `read_keys` returns the same keys.

    Args:
        items: the images, or their keys.
        labels: write UniMatch's format, image and label path in each line; needs items.

    Raises:
        SdaError: the file exists or cannot be written, there are no images, a list cannot hold one of their names, or an item
            has no label.
    """
    text = unimatch_text([item for item in items if not isinstance(item, str)]) if labels else list_text(items)
    if not items:
        raise SdaError(f"{path}: no images to list; nothing is written")
    for key in map(_key, items):
        if key != key.strip() or re.search(r"[\r\n\0]", key):
            raise SdaError(f"{path}: {key!r} cannot be written as one line of a list: rename the image")
    if os.path.lexists(path):
        raise SdaError(f"{path}: it exists and is not overwritten; choose another file or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(text.encode(errors="surrogateescape"))
    except OSError as error:
        raise SdaError(f"{path}: cannot be written: {error}") from None


def list_text(items: Sequence[Item | str]) -> str:
    """Return a list in our format. A key that begins with `#` gets a leading `./`, so that it is not read as a comment."""
    return "".join(f"./{key}\n" if key.startswith("#") else f"{key}\n" for key in map(_key, items))


def list_hash(items: Sequence[Item | str]) -> str:
    """Return the SHA-256 of the list as text: two runs with equal hashes used the same images."""
    return hashlib.sha256(list_text(items).encode(errors="surrogateescape")).hexdigest()


def unimatch_text(items: list[Item]) -> str:
    """Return a list in UniMatch's format: `image_path label_path` per line, both relative to the root.

    Raises:
        SdaError: an item without a label, a label outside the root, or a path with a space, which separates the two paths.
    """
    lines = []
    for item in items:
        if item.label is None:
            raise SdaError(f"{item.image}: has no label file, but UniMatch's format needs one; remove the image")
        root = root_of(item)
        if not item.label.is_relative_to(root):
            raise SdaError(f"{item.label}: is not below {root}, to which the paths in UniMatch's format are relative")
        line = [item.key, item.label.relative_to(root).as_posix()]
        for name in line:
            if re.search(r"\s", name):
                raise SdaError(f"{name!r}: UniMatch's format separates image and label by a space, so no name may contain one")
        lines.append(" ".join(line) + "\n")
    return "".join(lines)


def root_of(item: Item) -> Path:
    """Return the folder that an item's key is relative to. The stored name may differ from the key in its accents."""
    return item.image.parents[len(PurePosixPath(item.key).parts) - 1]


def _key(item: Item | str) -> str:
    return item if isinstance(item, str) else item.key


def read_entries(path: Path) -> list[tuple[int, str]]:
    """Return the entries of a list, unchanged, with their line numbers from 1.

    Windows line ends and a byte order mark are accepted. Empty lines and comments (lines that begin with `#`) are skipped; an
    entry `./#…` is not a comment.

    Raises:
        SdaError: the file is unreadable or no regular file, too large, not text or empty, or lists an entry twice.
    """
    try:
        data = read_bytes(path, _MOST_BYTES)
    except FileNotFoundError:
        raise SdaError(f"{path}: the split list cannot be read: no such file") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # PowerShell's > writes UTF-16
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig", "strict" if wide else "surrogateescape")
    except UnicodeDecodeError:
        text = "\0"
    entries: dict[str, int] = {}
    for line, entry in enumerate(map(str.strip, re.split("\r\n|\n|\r", text)), start=1):
        if len(entry) > _LONGEST or "\0" in entry:
            raise SdaError(
                f"{path}: line {line} is not a path: a split list is a text file with one relative image path per line"
            )
        if not entry or entry.startswith("#"):
            continue
        if entry in entries:
            raise SdaError(
                f"{path}: line {line}: {entry!r} is listed twice: line {entries[entry]} is the same; remove one of them"
            )
        entries[entry] = line
    if not entries:
        raise SdaError(f"{path}: the split list is empty; write one relative image path per line")
    return [(line, entry) for entry, line in entries.items()]


def _by_name(items: list[Item]) -> dict[str, list[tuple[str, str]]]:
    """Map file names, with and without suffix, to the items of that name: (key, path with or without suffix) each."""
    names: dict[str, list[tuple[str, str]]] = {}
    for item in items:
        path = PurePosixPath(composed(item.key))
        for spelt in {path, path.with_suffix("")}:
            names.setdefault(spelt.name, []).append((item.key, str(spelt)))
    return names


def _fitting(entry: str, known: set[str], names: dict[str, list[tuple[str, str]]]) -> list[str]:
    """Return the keys that an entry may mean: all of it, or the part before a space, since UniMatch's label path follows."""
    readings = [entry, *(entry[: gap.start()] for gap in re.finditer(r"\s+", entry))]
    exact = {key: reading for reading in readings for key in (composed(reading), reading) if key in known}
    if exact:
        return [key for key in exact if exact[key] == entry][-1:] or list(exact)
    return list(dict.fromkeys(key for reading in readings for key in _alike(reading, names)))


def _alike(entry: str, names: dict[str, list[tuple[str, str]]]) -> list[str]:
    """Return the keys that share the longest ending with an entry."""
    parts = [part for part in re.split(r"[/\\]", composed(entry)) if part not in ("", ".")]
    if not parts or parts[-1] not in names:
        return []
    for dropped in range(len(parts)):
        tail = "/".join(parts[dropped:])
        fitting = [(key, path) for key, path in names[parts[-1]] if f"/{path}".endswith(f"/{tail}")]
        other_folder = dropped == 1 and len(parts) > 2 and not re.match("train|val|test", parts[0], re.IGNORECASE)
        if dropped and not other_folder:  # the extra folders must lead to the root: the rest is a whole key
            fitting = [(key, path) for key, path in fitting if path == tail]
        if fitting:
            return [key for key, _ in fitting]
    return []
