"""Rules that choose images to label or to hold out. Each rule gives the same order on every machine; use its first N."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from sda.data.descriptor import Descriptor
from sda.data.item import Item
from sda.data.layouts.pattern import Pattern
from sda.errors import SdaError

Counts = Mapping[str, Sequence[int]]  # key → labelled pixels of each class, C whole numbers


def rank(keys: list[str], seed: int) -> list[str]:
    """Sort keys by SHA-256("seed:key"). The order is the same on every machine; the first 100 are part of the first 200."""
    return sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode(errors="surrogateescape")).digest())


def balanced(keys: list[str], seed: int, counts: Counts) -> list[str]:
    """Sort keys so that every class is covered early and about equally, rare classes first.

    Each step takes the image with the largest share of the class that is covered least so far. An image with the share p of
    its labelled pixels in a class covers it by √p: with the root, many images with a little of a class count for more than one
    that is full of it. Ties between classes go to the rarer one, ties between images to the first by `rank`. Images without
    labelled pixels come last.

    Raises:
        SdaError: an image has no counts, or its counts are not C whole numbers.
    """
    keys = rank(keys, seed)
    if not keys:
        return []
    pixels = _table(keys, counts)
    # Columns are in order of rarity, so that argmin breaks ties. Never compare sums of floats along an axis: they may differ from
    # machine to machine.
    pixels = pixels[:, np.argsort(pixels.sum(axis=0), kind="stable")]
    gain = np.sqrt(pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1))
    richest = np.argsort(-gain, axis=0, kind="stable")  # per class, the images with the largest share first
    left = (pixels > 0).sum(axis=0)  # remaining images that show the class
    coverage = np.where(left > 0, 0.0, np.inf)  # infinite: no remaining image shows the class
    place, taken, order = [0] * len(left), np.zeros(len(keys), bool), []
    while np.isfinite(coverage).any():
        worst = int(coverage.argmin())
        while taken[image := richest[place[worst], worst]]:
            place[worst] += 1
        taken[image] = True
        order.append(image)
        coverage += gain[image]
        left -= pixels[image] > 0
        coverage[left == 0] = np.inf
    return [keys[image] for image in [*order, *np.flatnonzero(~taken)]]


def by_group(keys: list[str], seed: int, groups: Mapping[str, str]) -> list[str]:
    """Take keys from each group in turn (groups: key → group), so that near-duplicates of one sequence come late.

    Groups, and images within a group, are in the order of `rank`.
    """
    members: dict[str, list[str]] = {}
    for key in rank(keys, seed):
        members.setdefault(groups[key], []).append(key)
    rounds = zip_longest(*(members[group] for group in rank(list(members), seed)))
    return [key for turn in rounds for key in turn if key is not None]


def groups_by_word(descriptor: Descriptor, items: list[Item], word: str, split: str = "train") -> dict[str, str]:
    """Map keys to the value of one {word} of the layout that matches the items, such as {city}.

    Args:
        split: the split that the items were listed for.

    Raises:
        SdaError: no layout that matches all the items has such a word.
    """
    known: dict[str, None] = {}
    for layout in descriptor.layout:
        if layout.split not in (None, split):
            continue
        pattern = Pattern(layout.images, {"split": descriptor.splits.get(split, split)})
        matches = {item.key: match for item in items if (match := pattern.match(item.key)) is not None}
        if any(item.key not in matches for item in items):
            continue
        if word in pattern.words:
            return {key: match[word] for key, match in matches.items()}
        known.update(dict.fromkeys(pattern.words))
    if not known:
        raise SdaError(f"{descriptor.title}: none of its layouts for {split!r} matches images such as {items[0].key!r}")
    words = ", ".join(f"{{{name}}}" for name in known)
    raise SdaError(f"{descriptor.title}: the layout of its images has no word {{{word}}} to group by; it has {words}")


def hold_out(
    items: list[Item], size: int | float, seed: int, groups: Mapping[str, str] | None = None
) -> tuple[list[Item], list[Item]]:
    """Divide items into (kept, held out), for a dataset without a validation split; both keep their order.

    With groups (key → group) whole groups are held out, so that no sequence is on both sides. Groups are visited in the order
    of `rank`. A group is held out if that brings the number of images closer to the requested one; if none does, the smallest is.

    Args:
        size: how many to hold out: a count (int), or a share between 0 and 1 (float).

    Raises:
        SdaError: one side would be empty.
    """
    share = isinstance(size, float)
    wanted = size if not share else max(1, round(size * len(items))) if 0 < size < 1 else 0
    if not 0 < wanted < len(items):
        raise SdaError(
            f"cannot hold out {size} of {len(items)} images: one side would be empty; "
            f"give a share between 0 and 1, or a count from 1 to {len(items) - 1}"
        )
    members: dict[str, set[str]] = {}
    for item in items:
        members.setdefault(groups[item.key] if groups else item.key, set()).add(item.key)
    if len(members) < 2:
        raise SdaError(
            f"all {len(items)} images are in one group, {next(iter(members))!r}: it cannot be divided; group by something finer"
        )
    held: set[str] = set()
    order = rank(list(members), seed)
    for group in order:
        count = len(members[group])
        if count < 2 * (wanted - len(held)) and len(held) + count < len(items):
            held |= members[group]
    held = held or members[min(order, key=lambda group: len(members[group]))]
    return [item for item in items if item.key not in held], [item for item in items if item.key in held]


class ClassCount(NamedTuple):
    """One class in a set of images: the number of images that show it, and its share of their labelled pixels (0 to 1)."""

    name: str
    images: int
    share: float


def count_classes(keys: list[str], counts: Counts, names: list[str]) -> list[ClassCount]:
    """Count the images and pixels of each class in a set of images.

    Args:
        names: the names of the C classes, in the order of the counts.

    Raises:
        SdaError: an image has no counts, or its counts are not C whole numbers.
    """
    pixels = _table(keys, counts, len(names))
    total = max(1, int(pixels.sum()))
    return [
        ClassCount(name, int((column > 0).sum()), int(column.sum()) / total) for name, column in zip(names, pixels.T, strict=True)
    ]


def _table(keys: list[str], counts: Counts, classes: int | None = None) -> np.ndarray:
    """Return the counts of the keys as int64 (n, C)."""
    rows = []
    for key in keys:
        if key not in counts:
            raise SdaError(f"{key!r} has no class counts: its label was not counted, or the counts are of other images")
        row = np.asarray(counts[key])
        classes = row.size if classes is None else classes
        if row.shape != (classes,) or row.dtype.kind not in "iu" or row.min(initial=0) < 0:
            raise SdaError(f"the class counts of {key!r} are not {classes} whole numbers from 0: count again")
        rows.append(row.astype(np.int64))
    return np.array(rows, np.int64).reshape(len(rows), classes or 0)
