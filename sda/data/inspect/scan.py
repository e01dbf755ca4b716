"""Read a dataset's files once and record sizes, values and faults, in a cache outside the user's folders.

The doctor and the class statistics read datasets through this module.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from sda.data.files import FileError, LabelFile, label_of, looks_lossy, orientation_of, read_image, show_color
from sda.data.item import Item, Stored
from sda.errors import SdaError
from sda.reading import read_bytes
from sda.system.children import ChildDied, run_tasks
from sda.system.console import Progress, ignore_count

logger = logging.getLogger(__name__)

VERSION = 5  # format of the cache's lines
CHUNK = 16  # pairs per task
MOST_VALUES = 512  # a file with more different values is not a label
MOST_COLOURS = 4096  # the same for colours: smoothing makes many


@dataclass(frozen=True)
class Finding:
    """Facts about one image and its label.

    Attributes:
        key: key of the item.
        label: the label file, relative to the image's folder, and its place in it; None if there is none.
        image_stat, label_stat: [bytes, mtime in ns]; None if there is no file.
        size, label_size: [width, height].
        sha256: hash of the image file's bytes.
        orientation: of the image; see `orientation_of`.
        black: whether every pixel is (nearly) black.
        kind: `index` (one channel), `rgb`, `names` (annotations), or empty if no label could be read.
        values: value in the label → pixels; colours as "#rrggbb", indices in decimal, names as "=name"; hidden names have none.
        red: the same for the red channel of an RGB label.
        palette: of a palettized label: the colour "#rrggbb" of each index, in order, with spaces between; see `LabelFile`.
        lossy: whether the values of the label look as after lossy compression or smoothing.
        image_fault, label_fault: why the file cannot be used, or empty.
    """

    key: str
    label: str | None
    image_stat: list[int] | None
    label_stat: list[int] | None
    size: list[int] | None = None
    label_size: list[int] | None = None
    sha256: str = ""
    orientation: int = 1
    black: bool = False
    kind: str = ""
    values: dict[str, int] | None = None
    red: dict[str, int] | None = None
    palette: str = ""
    lossy: bool = False
    image_fault: str = ""
    label_fault: str = ""


def cache_folder() -> Path:
    """Return $SDA_CACHE, or sda/ in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("SDA_CACHE") or Path(base) / "sda")


def cache_file(kind: str, root: Path) -> Path:
    """Return the cache file of one kind for the dataset in `root`."""
    name = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    return cache_folder() / kind / f"{name}.jsonl"


def stats_of(item: Item) -> tuple[list[int] | None, list[int] | None]:
    """Return [bytes, mtime in ns] of an item's image and of its label, or of the pack they are in; None for missing files.

    Of a label in several files, the sums.
    """
    if item.stored is not None:
        stat = _stat(item.stored.path)
        return stat, None if item.label is None else stat
    return _stat(item.image), None if item.label is None else _stat(*item.label_files)


def _stat(*paths: Path) -> list[int] | None:
    try:
        stats = [path.stat() for path in paths]
    except OSError:
        return None
    return [sum(stat.st_size for stat in stats), sum(stat.st_mtime_ns for stat in stats)]


def scan(
    items: list[Item],
    root: Path,
    progress: Progress = ignore_count,
    processes: int | None = None,
) -> list[Finding]:
    """Read every item, in parallel. Findings on files that have not changed since the last scan (size and time) come from the
    cache, so an interrupted scan resumes where it stopped.

    Args:
        root: the dataset's folder or pack, which identifies the cache.
        processes: number of processes; one per core by default, and always one for a pack.

    Returns:
        One finding per item, in the same order.
    """
    cache = cache_file("scans", root)
    found = {finding.key: finding for finding in scanned(items, root)}
    todo = [item for item in items if item.key not in found]
    done = len(found)
    progress(done, len(items))
    if any(item.stored for item in todo):
        processes = 1
    if todo:
        with _append(cache) as file:
            for findings in _look_at_all([todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)], processes):
                file.write("".join(json.dumps({"version": VERSION, **asdict(finding)}) + "\n" for finding in findings))
                file.flush()
                found.update({finding.key: finding for finding in findings})
                done += len(findings)
                progress(done, len(items))
    return [found[item.key] for item in items]


def scanned(items: list[Item], root: Path) -> list[Finding]:
    """Return the findings of earlier scans on those of the items whose files have not changed since."""
    known = _read_cache(cache_file("scans", root))
    return [finding for item in items if (finding := known.get(item.key)) and _fresh(finding, item)]


def _append(cache: Path) -> contextlib.AbstractContextManager[TextIO]:
    """Open the cache for appending; if it cannot be written, return a buffer that is dropped."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        return cache.open("a", encoding="utf-8")
    except OSError as error:
        logger.warning("%s cannot be written, so the scan is not cached: %s", cache, error.strerror)
        return contextlib.nullcontext(io.StringIO())


def _look_at_all(chunks: list[list[Item]], processes: int | None) -> Iterator[list[Finding]]:
    processes = min(processes or os.cpu_count() or 1, len(chunks))
    if processes == 1:
        yield from map(_look_at_chunk, chunks)
        return
    with contextlib.closing(run_tasks(_look_at_chunk, chunks, processes)) as results:
        for place, found in results:
            if isinstance(found, ChildDied):
                first = chunks[place][0].key
                raise SdaError(f"while reading {first} and the next {len(chunks[place]) - 1} images, {found}")
            yield found


def _look_at_chunk(items: list[Item]) -> list[Finding]:
    return [look_at(item) for item in items]


def look_at(item: Item) -> Finding:
    """Read one image and its label."""
    image_stat, label_stat = stats_of(item)
    facts: dict[str, Any] = {
        "key": item.key,
        "label": _name_of_label(item),
        "image_stat": image_stat,
        "label_stat": label_stat,
    }
    if item.stored is not None:
        return Finding(**facts, **_look_at_stored(item.stored, item.label is not None))
    try:
        image = read_image(item.image)  # first, because a link to /dev/zero has no end
        facts["sha256"] = hashlib.sha256(item.image.read_bytes()).hexdigest()
        facts |= {"size": list(image.size), "orientation": orientation_of(item.image), "black": bool(np.asarray(image).max() < 8)}
    except FileError as fault:
        facts["image_fault"] = fault.fault
    except OSError as error:
        facts["image_fault"] = f"{item.image}: cannot be read ({error.strerror})"
    if item.label is not None:
        try:
            facts |= _look_at_label(item.label, label_of(item))
        except FileError as fault:
            facts["label_fault"] = fault.fault
    return Finding(**facts)


def _look_at_stored(stored: Stored, labelled: bool) -> dict[str, Any]:
    """Read one image of a pack and its label. The label is treated as having the image's size, although it may have another."""
    facts: dict[str, Any] = {}
    try:
        image = stored.image()
        facts |= {"size": [image.shape[1], image.shape[0]], "black": bool(image.max() < 8), "sha256": stored.sha256}
    except FileError as fault:
        facts["image_fault"] = fault.fault
    if labelled:
        try:
            facts |= {"label_size": facts.get("size"), "kind": "index", "values": _count(stored.label())}
        except FileError as fault:
            facts["label_fault"] = fault.fault
    return facts


def _look_at_label(path: Path, label: LabelFile) -> dict[str, Any]:
    values, colours = _count(label.values), label.red is not None
    if label.names:
        named = {f"={name}": values.get(str(value), 0) for value, name in enumerate(label.names)}
        return {"label_size": [*label.values.shape[::-1]], "kind": "names", "values": named}
    facts: dict[str, Any] = {"label_size": [label.values.shape[1], label.values.shape[0]], "kind": "rgb" if colours else "index"}
    if len(values) > (MOST_COLOURS if colours else MOST_VALUES):
        fault = f"{path}: {len(values)} different values: not a label, or saved with lossy compression"
        return {**facts, "values": {}, "label_fault": fault}
    if label.red is not None:
        values = {show_color(int(value)): count for value, count in values.items()}
        facts["red"] = _count(label.red)
    palette = " ".join(map(show_color, label.palette))
    return {**facts, "values": values, "palette": palette, "lossy": looks_lossy(label.values)}


def _count(values: np.ndarray) -> dict[str, int]:
    """Map each whole number, in decimal, to its number of occurrences."""
    if values.dtype in (np.uint8, np.uint16):  # several times faster than sorting
        every = np.bincount(values.ravel())
        found = np.flatnonzero(every)
        counts = every[found]
    else:
        found, counts = np.unique(values, return_counts=True)
    return {str(int(value)): int(count) for value, count in zip(found, counts, strict=True)}


def _read_cache(path: Path) -> dict[str, Finding]:
    """Return key → the last finding with this key. Skip lines that are incomplete or of another version."""
    known: dict[str, Finding] = {}
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines()
    except (FileNotFoundError, SdaError):
        return known
    for line in lines:
        try:
            facts = json.loads(line)
            if facts.pop("version", None) == VERSION:
                known[facts["key"]] = Finding(**facts)
        except (ValueError, TypeError, AttributeError, KeyError):
            continue
    return known


def _fresh(finding: Finding, item: Item) -> bool:
    """Return whether a finding is up to date. Files with faults are read again."""
    same = finding.label == _name_of_label(item) and (finding.image_stat, finding.label_stat) == stats_of(item)
    return same and not finding.image_fault and not finding.label_fault


def _name_of_label(item: Item) -> str | None:
    if item.label is None:
        return None
    name = os.path.relpath(item.label, item.image.parent)
    return f"{name}#{len(item.drawn.files)}#{item.drawn.name}" if item.drawn else name
