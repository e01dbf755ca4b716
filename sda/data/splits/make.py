"""A list of training images, by one of several rules or from a list of another's: what `sda split` writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sda.data.descriptor import Descriptor
from sda.data.inspect.bad_pairs import bad_pairs
from sda.data.inspect.encoding import class_pixels
from sda.data.item import Item
from sda.data.listing import Listing, NoImages, list_items
from sda.data.splits import rules as split_rules
from sda.data.splits.choose import find_shared
from sda.data.splits.lists import read_keys
from sda.data.splits.pickled import from_indices, read_pickle
from sda.errors import SdaError

PICKLES = (".pkl", ".pickle", ".p")


@dataclass(frozen=True)
class Wish:
    """What to list: exactly one of `labels`, `hold_out` and `given`, or the first `labels` of `given`.

    Attributes:
        labels: how many.
        by: random (or empty), balanced (rare classes early), or a word of the layout, such as city, whose values take turns.
        seed: of the rule; None is 0.
        hold_out: a share to validate on; where `by` is a word, whole groups with all their images, labelled or not.
        given: a list in any form that `read_keys` knows, or the paper's pickled indices.
        order: what indices count: sorted, walk (see `from_indices`), or the lines of a list, given by its path.
        entry: of a pickled dict.
    """

    labels: int | None = None
    by: str = ""
    seed: int | None = None
    hold_out: float | None = None
    given: str = ""
    order: str = "sorted"
    entry: str = ""


class Choice(NamedTuple):
    """The images chosen; what they show of each class, where classes were counted for it; what a user should know."""

    items: list[Item]
    rows: list[split_rules.ClassRow]
    notes: list[str]


def make_split(descriptor: Descriptor, root: Path, wish: Wish, progress: Callable[[int, int], None]) -> Choice:
    """The images wished for. No rule chooses a pair that `sda doctor` found bad.

    Raises:
        SdaError: a wish for nothing, for too much or for what does not go together, no labels, no such word, or a list that
            does not fit the images.
    """
    asked = [wish.labels is not None, wish.hold_out is not None, bool(wish.given)]
    if sum(asked) != 1 and asked != [True, False, True]:
        raise SdaError("say what to list: --labels N, --hold-out SHARE or --from FILE")
    pickled = wish.given.endswith(PICKLES)
    if (wish.order != "sorted" or wish.entry) and not pickled:
        raise SdaError(f"--order and --entry are for pickled indices ({', '.join(PICKLES)}), given with --from")
    listing = list_items(descriptor, root, "train")
    by_key = {item.key: item for item in listing.items}
    if wish.given:
        if wish.by or wish.seed is not None:
            raise SdaError(f"{wish.given} has an order of its own: leave --by and --seed out")
        keys = _pickled(wish, listing.items) if pickled else read_keys(Path(wish.given), listing.items, "training images")
        return Choice([by_key[key] for key in keys[: _at_most(wish.labels, len(keys), f"{wish.given} names")]], [], [])
    bad = bad_pairs(root, listing.items, descriptor)
    copies = _copies_of_validation(descriptor, root, listing.items)
    notes = [f"{len(bad)} pairs that sda doctor found bad are passed over"] if bad else []
    notes += [f"{len(copies)} images that are copies of validation images are passed over"] if copies else []
    sound = Listing([item for item in listing.items if item.key not in {*bad, *copies}], listing.encoding)
    keys, rows = _by_rule(descriptor, root, sound, wish, progress)
    return Choice([by_key[key] for key in keys], rows, notes)


def _copies_of_validation(descriptor: Descriptor, root: Path, items: list[Item]) -> set[str]:
    try:
        validation = list_items(descriptor, root, "val").items
    except NoImages:
        return set()
    return {item.key for _, item in find_shared(validation, items)}


def _by_rule(
    descriptor: Descriptor, root: Path, listing: Listing, wish: Wish, progress: Callable[[int, int], None]
) -> tuple[list[str], list[split_rules.ClassRow]]:
    seed = wish.seed or 0
    items = [item for item in listing.items if item.label is not None]
    if not items:
        raise SdaError(f"{descriptor.title}: no training image in {root} has a label file")
    keys = [item.key for item in items]
    groups = None
    if wish.by not in ("", "random", "balanced"):
        groups = split_rules.groups_by_word(descriptor, listing.items, wish.by)
    if wish.hold_out is not None:
        if wish.by == "balanced":
            raise SdaError("--hold-out knows no --by balanced: random, or a word of the layout whose groups stay together")
        _, held = split_rules.hold_out(items, wish.hold_out, seed, groups)
        if groups is None:
            return [item.key for item in held], []
        held_groups = {groups[item.key] for item in held}  # with their unlabelled images: no stream may hold a neighbour
        return [item.key for item in listing.items if groups[item.key] in held_groups], []
    count = _at_most(wish.labels, len(items), f"{descriptor.title} has labels for")
    if groups:
        return split_rules.by_group(keys, seed, groups)[:count], []
    if wish.by == "balanced":
        pixels = class_pixels(descriptor, listing.encoding, items, root, progress)
        chosen = split_rules.balanced(keys, seed, pixels)[:count]
        return chosen, split_rules.class_rows(chosen, pixels, descriptor.table().names)
    return split_rules.rank(keys, seed)[:count], []


def _pickled(wish: Wish, items: list[Item]) -> list[str]:
    order = wish.order
    if order not in ("sorted", "walk"):
        by_key = {item.key: item for item in items}
        items, order = [by_key[key] for key in read_keys(Path(order), items, "training images")], "given"
    return from_indices(read_pickle(Path(wish.given), wish.entry), items, order, wish.given)


def _at_most(labels: int | None, count: int, supply: str) -> int:
    if labels is not None and labels > count:
        raise SdaError(f"--labels {labels}: {supply} {count} training images")
    return count if labels is None else labels
