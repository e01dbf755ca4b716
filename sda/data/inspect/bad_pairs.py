"""The list of pairs that `sda doctor` found bad, which splits, packs and training leave out. It lies beside the scan's cache."""

import hashlib
import json
import logging
from pathlib import Path

from sda.data.descriptor import Descriptor
from sda.data.inspect.scan import cache_file, stats_of
from sda.data.item import Item
from sda.system.atomic import written_whole

logger = logging.getLogger(__name__)


def write_bad(root: Path, descriptor: Descriptor, looked_at: dict[str, Item], bad: list[tuple[str, str]]) -> None:
    """Put pairs on the list of the dataset in `root`; of images that were not looked at, what is known stays.

    Args:
        descriptor: by which they were judged. looked_at: key → item. bad: (key, why).
    """
    path, judge = _file(root), _fingerprint(descriptor)
    lines = [entry for entry in _read(path) if entry["key"] not in looked_at and entry["judge"] == judge]
    for key, why in bad:
        image, label = stats_of(looked_at[key])
        lines.append({"key": key, "why": why, "image": image, "label": label, "judge": judge})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    except OSError as error:
        logger.warning("%s cannot be written, so training will not know of the bad pairs: %s", path, error.strerror)


def bad_pairs(root: Path, items: list[Item], descriptor: Descriptor) -> dict[str, str]:
    """Of `items`, those on the list: key → why. Not those whose files have changed since, or that another descriptor judged."""
    judge, listed = _fingerprint(descriptor), {}
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
    """What decides whether a pair is bad: another one judges anew."""
    said = descriptor.model_dump(include={"ids", "void", "void_colors", "layout", "splits"})
    return hashlib.sha256(json.dumps([said, descriptor.table().colors]).encode()).hexdigest()[:16]


def _read(path: Path) -> list[dict]:
    """The entries; lines that are cut off or not ours are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
            entries.append({name: entry[name] for name in ("key", "why", "image", "label", "judge")})
        except (ValueError, TypeError, KeyError):
            continue
    return entries
