"""Make a list of training images by a rule or from an existing list: what `sda split` writes."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sda.data.descriptor import Descriptor
from sda.data.inspect.bad_pairs import bad_pairs
from sda.data.inspect.encoding import class_pixels
from sda.data.item import Item
from sda.data.listing import Listing, NoImages, list_items
from sda.data.splits import rules
from sda.data.splits.choose import find_shared
from sda.data.splits.lists import read_keys
from sda.data.splits.pickled import from_indices, read_pickle
from sda.errors import SdaError
from sda.system.console import Progress

PICKLES = (".pkl", ".pickle", ".p")


@dataclass(frozen=True)
class SplitRequest:
    """What to list: exactly one of `labels`, `hold_out` and `given`, or `labels` and `given` (the start of a list).

    Attributes:
        labels: number of images.
        by: random (the default), balanced (rare classes early), or a word of the layout, such as city, whose values take turns.
        seed: seed of the rule; None means 0.
        hold_out: share of images to validate on, 0 to 1; if `by` is a word, whole groups with all their images.
        given: a list in any format that `read_keys` accepts, or the paper's pickled indices.
        order: the order of images that the indices refer to: sorted, walk (see `from_indices`), or the path of a list.
        entry: key of the indices in a pickled dict.
        exclude: lists of images that must not be listed, so that several lists share no image.
    """

    labels: int | None = None
    by: str = ""
    seed: int | None = None
    hold_out: float | None = None
    given: str = ""
    order: str = "sorted"
    entry: str = ""
    exclude: tuple[str, ...] = ()


class ChosenSplit(NamedTuple):
    """The chosen images, the classes in them if the rule counted classes, and notes for the user."""

    items: list[Item]
    classes: list[rules.ClassCount]
    notes: list[str]


def make_split(descriptor: Descriptor, root: Path, request: SplitRequest, progress: Progress) -> ChosenSplit:
    """Choose the requested images. Rules skip pairs that `sda doctor` found bad and copies of validation images.

    Raises:
        SdaError: an empty or contradictory request, too few images or labels, an unknown word, or a list that does not match
            the images.
    """
    _check(request)
    listing = list_items(descriptor, root, "train")
    by_key = {item.key: item for item in listing.items}
    excluded = _excluded(request, listing.items)
    notes = [*listing.notes, *([f"{len(excluded)} images of {' and '.join(request.exclude)} are excluded"] if excluded else [])]
    if request.given:
        keys = _read_given(request, listing.items, excluded)
        return ChosenSplit([by_key[key] for key in keys], [], notes)
    bad = bad_pairs(root, listing.items, descriptor)
    copies = _copies_of_validation(descriptor, root, listing.items)
    notes += [f"{len(bad)} pairs that sda doctor found bad are skipped"] if bad else []
    notes += [f"{len(copies)} images that are copies of validation images are skipped"] if copies else []
    skipped = {*bad, *copies, *excluded}
    good = Listing([item for item in listing.items if item.key not in skipped], listing.encoding)
    if request.hold_out is not None:
        keys = _hold_out(descriptor, root, good.items, request, request.hold_out, [by_key[key] for key in excluded])
        return ChosenSplit([by_key[key] for key in keys], [], notes)
    keys, classes = _choose(descriptor, root, good, request, progress)
    return ChosenSplit([by_key[key] for key in keys], classes, notes)


def _check(request: SplitRequest) -> None:
    """Raise SdaError if the parts of a request contradict each other."""
    asked = [request.labels is not None, request.hold_out is not None, bool(request.given)]
    if sum(asked) != 1 and asked != [True, False, True]:
        raise SdaError("choose what to list: --labels N, --hold-out SHARE or --from FILE")
    if (request.order != "sorted" or request.entry) and not request.given.endswith(PICKLES):
        raise SdaError(f"--order and --entry need pickled indices ({', '.join(PICKLES)}), given with --from")
    if request.given and (request.by or request.seed is not None):
        raise SdaError(f"{request.given} has an order of its own: omit --by and --seed")
    if request.hold_out is not None and request.by == "balanced":
        raise SdaError("--hold-out does not support --by balanced: use random, or a word of the layout to keep groups together")


def _excluded(request: SplitRequest, items: list[Item]) -> dict[str, None]:
    """Return the keys of the images in the lists to exclude, and of their copies."""
    keys = {key: None for file in request.exclude for key in read_keys(Path(file), items, "training images")}
    rest = [item for item in items if item.key not in keys]
    return keys | {item.key: None for _, item in find_shared([item for item in items if item.key in keys], rest)}


def _read_given(request: SplitRequest, items: list[Item], excluded: Collection[str]) -> list[str]:
    """Return the keys of a list or of pickled indices that are not excluded; with `labels`, the first ones."""
    given = Path(request.given)
    if request.given.endswith(PICKLES):
        order = request.order
        if order not in ("sorted", "walk"):
            by_key = {item.key: item for item in items}
            items, order = [by_key[key] for key in read_keys(Path(order), items, "training images")], "given"
        keys = from_indices(read_pickle(given, request.entry), items, order, given)
    else:
        keys = read_keys(given, items, "training images")
    keys = [key for key in keys if key not in excluded]
    return keys[: _at_most(request.labels, len(keys), f"{request.given} names")]


def _copies_of_validation(descriptor: Descriptor, root: Path, items: list[Item]) -> set[str]:
    """Return the keys of the items that are also validation images."""
    try:
        validation = list_items(descriptor, root, "val").items
    except NoImages:
        return set()
    return {item.key for _, item in find_shared(validation, items)}


def _hold_out(
    descriptor: Descriptor, root: Path, items: list[Item], request: SplitRequest, share: float, excluded: list[Item]
) -> list[str]:
    """Return the keys of the held-out images. A group with an excluded image is not held out."""
    groups = _groups(descriptor, [*items, *excluded], request.by)
    if groups is not None:
        taken = {groups[item.key] for item in excluded}
        items = [item for item in items if groups[item.key] not in taken]
    labelled = _labelled(descriptor, root, items)
    _, held = rules.hold_out(labelled, share, request.seed or 0, groups)
    if groups is None:
        return [item.key for item in held]
    held_groups = {
        groups[item.key] for item in held
    }  # with their unlabelled images, so that no stream contains a neighbouring frame
    return [item.key for item in items if groups[item.key] in held_groups]


def _choose(
    descriptor: Descriptor, root: Path, listing: Listing, request: SplitRequest, progress: Progress
) -> tuple[list[str], list[rules.ClassCount]]:
    """Return the keys of the first `labels` images by a rule, and the classes in them if the rule counts classes."""
    labelled, seed = _labelled(descriptor, root, listing.items), request.seed or 0
    keys = [item.key for item in labelled]
    groups = _groups(descriptor, listing.items, request.by)
    count = _at_most(request.labels, len(keys), f"{descriptor.title} has labels for")
    if groups:
        return rules.by_group(keys, seed, groups)[:count], []
    if request.by == "balanced":
        pixels = class_pixels(descriptor, listing.encoding, labelled, root, progress)
        chosen = rules.balanced(keys, seed, pixels)[:count]
        return chosen, rules.count_classes(chosen, pixels, descriptor.table().names)
    return rules.rank(keys, seed)[:count], []


def _labelled(descriptor: Descriptor, root: Path, items: list[Item]) -> list[Item]:
    labelled = [item for item in items if item.label is not None]
    if not labelled:
        raise SdaError(f"{descriptor.title}: no training image in {root} has a label file")
    return labelled


def _groups(descriptor: Descriptor, items: list[Item], by: str) -> dict[str, str] | None:
    """Map keys to groups, if `by` is a word of the layout."""
    return None if by in ("", "random", "balanced") else rules.groups_by_word(descriptor, items, by)


def _at_most(labels: int | None, count: int, supply: str) -> int:
    if labels is not None and labels > count:
        raise SdaError(f"--labels {labels}: {supply} {count} training images")
    return count if labels is None else labels
