"""The list of pairs that `sda doctor` found bad, which splits, packs and training skip. It is stored beside the scan's cache."""

import hashlib
import json
import logging
from pathlib import Path

from sda.data.descriptor import Descriptor
from sda.data.inspect.scan import cache_file, stats_of
from sda.data.item import Item
from sda.errors import SdaError
from sda.reading import read_bytes
from sda.system.atomic import written_whole

logger = logging.getLogger(__name__)


def write_bad(root: Path, descriptor: Descriptor, examined: dict[str, Item], bad: list[tuple[str, str]]) -> None:
    """Update the list of the dataset in `root`. Keep the entries of images that were not examined.

    Args:
        descriptor: the descriptor that the pairs were checked against.
        examined: key → item.
        bad: (key, reason) of each bad pair.
    """
    path, judge = _file(root), _fingerprint(descriptor)
    added = []
    for key, why in bad:
        image, label = stats_of(examined[key])
        added.append({"key": key, "why": why, "image": image, "label": label, "judge": judge})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:  # locks the list before reading it, so that no other doctor's entries are lost
            kept = [entry for entry in _read(path) if entry["key"] not in examined and entry["judge"] == judge]
            lines = kept + added
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    except OSError as error:
        logger.warning("%s cannot be written, so training will not skip the bad pairs: %s", path, error.strerror)


def bad_pairs(root: Path, items: list[Item], descriptor: Descriptor) -> dict[str, str]:
    """Return key → reason for the listed items. Ignore entries of changed files, and entries from another descriptor."""
    judge = _fingerprint(descriptor)
    listed: dict[str, dict] = {}
    for entry in _read(_file(root)):
        if entry["judge"] == judge:
            listed.setdefault(entry["key"], entry)
    if not listed:
        return {}
    found = ((item, listed[item.key]) for item in items if item.key in listed)
    return {item.key: entry["why"] for item, entry in found if [*stats_of(item)] == [entry["image"], entry["label"]]}


def _file(root: Path) -> Path:
    return cache_file("bad", root)


def _fingerprint(descriptor: Descriptor) -> str:
    """Return a hash of everything that decides whether a pair is bad. Entries with another hash are stale."""
    judged_by = descriptor.model_dump(exclude={"title", "home", "licence", "download", "classes", "maps", "root", "generated"})
    return hashlib.sha256(json.dumps([judged_by, descriptor.table().colors]).encode()).hexdigest()[:16]


def _read(path: Path) -> list[dict]:
    """Return the entries. Skip lines that are incomplete or have another format."""
    try:
        lines = read_bytes(path).decode(errors="replace").splitlines()
    except (FileNotFoundError, SdaError):
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
            entries.append({name: entry[name] for name in ("key", "why", "image", "label", "judge")})
        except (ValueError, TypeError, KeyError):
            continue
    return entries
