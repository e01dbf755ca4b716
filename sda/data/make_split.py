"""A list of training images, by one of several rules or from a list of another's: what `sda split` writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sda.data import split_rules
from sda.data.descriptor import Descriptor, Item, list_items
from sda.data.doctor import class_pixels
from sda.data.split_lists import read_keys
from sda.data.split_pickle import from_indices, read_pickle
from sda.errors import SdaError

PICKLES = (".pkl", ".pickle", ".p")


@dataclass(frozen=True)
class Wish:
    """What to list: exactly one of `labels`, `hold_out` and `given`, or the first `labels` of `given`.

    Attributes:
        labels: how many.
        by: random, balanced (rare classes early), or a word of the layout, such as city, whose values take turns.
        seed: of the rule.
        hold_out: a share to validate on; whole groups where `by` is a word.
        given: a list in any form that `read_keys` knows, or the paper's pickled indices.
        order: what indices count, see `from_indices`. entry: of a pickled dict.
    """

    labels: int | None = None
    by: str = "random"
    seed: int = 0
    hold_out: float | None = None
    given: str = ""
    order: str = "sorted"
    entry: str = ""


def make_split(
    descriptor: Descriptor, root: Path, wish: Wish, progress: Callable[[int, int], None]
) -> tuple[list[Item], list[split_rules.ClassRow]]:
    """The images wished for, and, where classes were counted for it, what they show of each class.

    Raises:
        SdaError: a wish for nothing or for too much, no labels, no such word, or a list that does not fit the images.
    """
    asked = [wish.labels is not None, wish.hold_out is not None, bool(wish.given)]
    if sum(asked) != 1 and asked != [True, False, True]:
        raise SdaError("say what to list: --labels N, --hold-out SHARE or --from FILE")
    listing = list_items(descriptor, root, "train")
    by_key = {item.key: item for item in listing.items}
    items = [item for item in listing.items if item.label is not None]
    keys, rows = [item.key for item in items], []
    if not items:
        raise SdaError(f"{descriptor.title}: no training image in {root} has a label file")
    groups = None if wish.by in ("random", "balanced") else split_rules.groups_by_word(descriptor, items, wish.by)
    if wish.given.endswith(PICKLES):
        indices = read_pickle(Path(wish.given), wish.entry)
        chosen = from_indices(indices, listing.items, wish.order, wish.given)[: wish.labels]
    elif wish.given:
        chosen = read_keys(Path(wish.given), listing.items, "training images")[: wish.labels]
    elif wish.hold_out is not None:
        chosen = [item.key for item in split_rules.hold_out(items, wish.hold_out, wish.seed, groups)[1]]
    elif wish.labels > len(items):
        raise SdaError(f"--labels {wish.labels}: {descriptor.title} has labels for {len(items)} training images")
    elif groups:
        chosen = split_rules.by_group(keys, wish.seed, groups)[: wish.labels]
    elif wish.by == "balanced":
        pixels = class_pixels(descriptor, listing.encoding, items, root, progress)
        chosen = split_rules.balanced(keys, wish.seed, pixels)[: wish.labels]
        rows = split_rules.class_rows(chosen, pixels, descriptor.table().names)
    else:
        chosen = split_rules.rank(keys, wish.seed)[: wish.labels]
    return [by_key[key] for key in chosen], rows
