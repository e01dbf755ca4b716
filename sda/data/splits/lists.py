"""Split lists: text files that name images, read in the forms in circulation and written in ours and in UniMatch's."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sda.errors import SdaError
from sda.system.atomic import written_whole

if TYPE_CHECKING:
    from sda.data.item import Item

_LONGEST = 10_000  # characters in a line: more than two paths can have


def read_list(path: Path) -> list[str]:
    """The entries of a list, one per line, as they stand there.

    Line ends of Windows, a byte order mark, empty lines and comments (`#` first) are fine; an entry `./#…` is no comment.

    Raises:
        SdaError: unreadable, not text, empty, or an entry listed twice.
    """
    return [entry for _, entry in _entries(path)]


def read_keys(path: Path, items: list[Item], what: str = "images") -> list[str]:
    """The keys of the items that a list names, in the order of the list.

    Its entries may be
    - ours: the path relative to the root, with or without spaces;
    - UniMatch's: `image_path label_path`, of which the image counts;
    - names without folder or without suffix, as in VOC's lists;
    - paths with more or fewer leading folders than ours, or with another first folder, if at least one folder agrees.
      That other folder must not be that of a split: `val/ulm/1.png` is not `train/ulm/1.png`.

    Args:
        what: the items, in words, for the messages.

    Raises:
        SdaError: as `read_list`; an entry that fits none of the items or several, or the item of an earlier line.
    """
    known, names = {item.key for item in items}, _by_name(items)
    lines: dict[str, int] = {}
    for line, entry in _entries(path):
        keys = _fitting(entry, known, names)
        if not keys:
            example = f", such as {items[0].key!r}" if items else ""
            raise SdaError(f"{path}: line {line}: {entry!r} is not among the {len(items)} {what}{example}")
        if len(keys) > 1:
            raise SdaError(
                f"{path}: line {line}: {entry!r} fits {len(keys)} of the {len(items)} {what}, such as {keys[0]!r} and "
                f"{keys[1]!r}: write the whole path"
            )
        if keys[0] in lines:
            raise SdaError(f"{path}: line {line}: {entry!r} is listed twice: line {lines[keys[0]]} is {keys[0]!r} too")
        lines[keys[0]] = line
    return list(lines)


def write_list(path: Path, items: list[Item] | list[str], labels: bool = False) -> None:
    """Write a list whole or not at all; `read_keys` gives the same keys back.

    Args:
        items: the images, or their keys.
        labels: UniMatch's form: image and label path in each line; needs items.

    Raises:
        SdaError: the file exists, no images, a name that no list can hold, an item without label, or a failing disk.
    """
    text = unimatch_text(items) if labels else list_text(items)
    if not items:
        raise SdaError(f"{path}: no images to list; nothing is written")
    for key in map(_key, items):
        if key != key.strip() or re.search(r"[\r\n\0]", key):
            raise SdaError(f"{path}: {key!r} cannot stand in a list, one image per line: rename the image")
    if os.path.lexists(path):
        raise SdaError(f"{path}: exists already; nothing is overwritten: name another file or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(text.encode(errors="surrogateescape"))
    except OSError as error:
        raise SdaError(f"{path}: cannot be written: {error}") from None


def list_text(items: list[Item] | list[str]) -> str:
    """A list in our form. `./` before a name that begins with `#` keeps it from being a comment."""
    return "".join(f"./{key}\n" if key.startswith("#") else f"{key}\n" for key in map(_key, items))


def list_hash(items: list[Item] | list[str]) -> str:
    """SHA-256 of the list as text: two runs with equal hashes saw the same images."""
    return hashlib.sha256(list_text(items).encode(errors="surrogateescape")).hexdigest()


def unimatch_text(items: list[Item]) -> str:
    """A list in UniMatch's form: `image_path label_path`, both relative to the root.

    Raises:
        SdaError: an item without label, or a path with a space, at which UniMatch would cut it.
    """
    lines = []
    for item in items:
        if item.label is None:
            raise SdaError(f"{item.image}: has no label file, which UniMatch's form lists beside the image")
        root = Path(item.image.as_posix().removesuffix(item.key))
        if not item.label.is_relative_to(root):
            raise SdaError(f"{item.label}: is not below {root}, from which UniMatch's form names images and labels")
        line = [item.key, item.label.relative_to(root).as_posix()]
        for name in line:
            if re.search(r"\s", name):
                raise SdaError(f"{name!r}: UniMatch's form parts image and label by a space, so no name may hold one")
        lines.append(" ".join(line) + "\n")
    return "".join(lines)


def _key(item: Item | str) -> str:
    return item if isinstance(item, str) else item.key


def _entries(path: Path) -> list[tuple[int, str]]:
    """The entries of a list with the number of their line, from 1 on."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SdaError(f"{path}: the split list cannot be read: {error}") from None
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell's > writes
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig", "strict" if wide else "surrogateescape")
    except UnicodeDecodeError:
        text = "\0"
    entries: dict[str, int] = {}
    for line, entry in enumerate(map(str.strip, re.split("\r\n|\n|\r", text)), start=1):
        if len(entry) > _LONGEST or "\0" in entry:
            raise SdaError(f"{path}: line {line} is no path: a split list is a text file with one relative image path per line")
        if not entry or entry.startswith("#"):
            continue
        if entry in entries:
            raise SdaError(f"{path}: line {line}: {entry!r} is listed twice: it stands in line {entries[entry]} too")
        entries[entry] = line
    if not entries:
        raise SdaError(f"{path}: the split list is empty")
    return [(line, entry) for entry, line in entries.items()]


def _by_name(items: list[Item]) -> dict[str, list[tuple[str, str]]]:
    """File name, with and without its suffix → the keys of that name, each beside its path so spelt."""
    names: dict[str, list[tuple[str, str]]] = {}
    for item in items:
        path = PurePosixPath(_composed(item.key))
        for spelt in {path, path.with_suffix("")}:
            names.setdefault(spelt.name, []).append((item.key, str(spelt)))
    return names


def _fitting(entry: str, known: set[str], names: dict[str, list[tuple[str, str]]]) -> list[str]:
    """The keys that an entry may mean: itself, or the part before a space, since UniMatch's form has the label behind it."""
    readings = [entry, *(entry[: gap.start()] for gap in re.finditer(r"\s+", entry))]
    exact = [reading for reading in readings if reading in known]
    if exact:
        return exact[:1] if exact[0] == entry else exact
    return list(dict.fromkeys(key for reading in readings for key in _alike(reading, names)))


def _alike(entry: str, names: dict[str, list[tuple[str, str]]]) -> list[str]:
    """The keys whose ends agree with that of an entry, the longest agreement only."""
    parts = [part for part in re.split(r"[/\\]", _composed(entry)) if part not in ("", ".")]
    if not parts or parts[-1] not in names:
        return []
    for dropped in range(len(parts)):
        tail = "/".join(parts[dropped:])
        fitting = [(key, path) for key, path in names[parts[-1]] if f"/{path}".endswith(f"/{tail}")]
        other_folder = dropped == 1 and len(parts) > 2 and not re.match("train|val|test", parts[0], re.IGNORECASE)
        if dropped and not other_folder:  # what the entry has more than ours must be all of a path to the root
            fitting = [(key, path) for key, path in fitting if path == tail]
        if fitting:
            return [key for key, _ in fitting]
    return []


def _composed(name: str) -> str:
    """Letters with accents as one character each: Macs write them as two."""
    return unicodedata.normalize("NFC", name)
