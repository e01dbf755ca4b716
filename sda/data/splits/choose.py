"""Choose the target images that training may see with labels, and check that no two streams share an image."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from sda.data.item import Item
from sda.data.splits.lists import read_keys
from sda.data.splits.rules import rank
from sda.errors import SdaError

WATCHED = 50  # most unlabelled images that are held out


class NoLabels(SdaError):
    """None of the images has a label."""


def choose(items: list[Item], labels: int | str, seed: int, split_file: str = "", skipped: Collection[str] = ()) -> list[Item]:
    """Return the labelled items: the ones in a list, or the first `labels` items with a label file in the order of `rank`.

    Args:
        labels: a count, or "all".
        split_file: a text file in any format that `read_keys` accepts; overrides count and seed.
        skipped: keys that the rule skips; a list may name them.

    Raises:
        SdaError: a listed image is missing or has no label, or there are fewer labelled images than requested.
    """
    by_key = {item.key: item for item in items}
    if split_file:
        chosen = [by_key[key] for key in read_keys(Path(split_file), items, "target training images")]
        for item in chosen:
            if item.label is None:
                raise SdaError(f"{split_file}: {item.key!r} has no label file; remove it from the list")
        return chosen
    labelled = [item.key for item in items if item.label is not None and item.key not in skipped]
    if isinstance(labels, str):
        if not labelled:
            raise SdaError(
                f"labels = 'all', but none of the {len(items)} target training images has a label file; run sda doctor"
            )
        return [by_key[key] for key in labelled]
    if labels > len(labelled):
        raise SdaError(
            f"labels = {labels}, but only {len(labelled)} of the {len(items)} target training images have labels; reduce labels"
        )
    return [by_key[key] for key in rank(labelled, seed)[:labels]]


def hold_out_labelled(items: list[Item], labels: int | str, split_file: str, share: float) -> list[str]:
    """Return the keys of labelled images to validate on, in a dataset without a validation split.

    They are the last ones in the order of `rank` with seed 0: a share of all labelled images, fewer if `labels` leaves fewer, at
    least one. The images in `split_file` are to be trained on.

    Raises:
        NoLabels: no image has a label. SdaError: no labelled image is left to validate on.
    """
    labelled = [item.key for item in items if item.label is not None]
    listed = set(read_keys(Path(split_file), items, "target training images")) if split_file else set()
    free = [key for key in labelled if key not in listed]
    count = max(1, round(share * len(labelled)))
    if not labelled:
        raise NoLabels(
            f"the target has no validation split, and none of its {len(items)} images has a label to score on: label some, give "
            "a validation split, or train without scores: labels = 0"
        )
    if isinstance(labels, int) and not split_file:
        count = min(count, len(free) - labels)
    if not free or count < 1 or (labels == "all" and len(labelled) < 2):
        what = f"the list {split_file}" if split_file else f"labels = {labels}"
        raise SdaError(
            f"the target has no validation split, and {what} leaves none of its {len(labelled)} labelled images to validate on: "
            + ("take some out of the list" if split_file else 'label more images, or set labels = "all" or a smaller number')
        )
    return rank(free, 0)[-count:]


def hold_out_unlabelled(items: list[Item], share: float) -> list[Item]:
    """Return a share of images without labels, at least one and at most WATCHED: the last ones in the order of `rank`."""
    keys = set(rank([item.key for item in items], 0)[-min(WATCHED, max(1, round(share * len(items)))) :])
    return [item for item in items if item.key in keys]


def find_shared(first: list[Item], second: list[Item]) -> list[tuple[Item, Item]]:
    """Return pairs that are the same image: the same file, a link to it, or a copy with the same bytes.

    Only files of equal size are read, so the check is fast on large sets.
    """
    by_file = {item.image.resolve(): item for item in first}
    by_size: dict[int, list[Item]] = {}
    for item in first:
        by_size.setdefault(_size(item), []).append(item)
    by_size.pop(0, None)  # empty or unreadable: reported when the image is read
    digests: dict[Path, bytes] = {}
    shared = []
    for item in second:
        twin = by_file.get(item.image.resolve())
        for candidate in by_size.get(_size(item), []) if twin is None else []:
            if _digest(candidate, digests) == _digest(item, digests):
                twin = candidate
        if twin is not None:
            shared.append((twin, item))
    return shared


def check_disjoint(first: str, first_items: list[Item], second: str, second_items: list[Item]) -> None:
    """Raise SdaError if two streams share an image; the message names both files."""
    for twin, item in find_shared(first_items, second_items):
        raise SdaError(
            f"{item.image} ({second}) is the same image as {twin.image} ({first}); "
            "training streams and validation must not share images; remove one of the two"
        )


def _size(item: Item) -> int:
    if item.stored is not None:
        return item.stored.bytes
    try:
        return item.image.stat().st_size
    except OSError:
        return 0


def _digest(item: Item, digests: dict[Path, bytes]) -> bytes:
    if item.stored is not None:
        return bytes.fromhex(item.stored.sha256)
    if item.image not in digests:
        try:
            digests[item.image] = hashlib.sha256(item.image.read_bytes()).digest()
        except OSError as error:
            raise SdaError(f"{item.image}: cannot be read: {error}") from None
    return digests[item.image]
