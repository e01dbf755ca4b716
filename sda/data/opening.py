"""Open one split of a dataset: find its root, list its images, skip bad pairs, check its labels, map its classes."""

import os
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sda import streets
from sda.data.dataset import Dataset
from sda.data.descriptor import Classes, Descriptor, map_classes, map_stub
from sda.data.files import FileError, LabelCodec, size_of
from sda.data.inspect.bad_pairs import bad_pairs
from sda.data.inspect.encoding import check_encoding, class_pixels
from sda.data.item import Item
from sda.data.layouts.words import counterparts
from sda.data.listing import Listing, NoImages, list_items
from sda.data.packs.pack import list_packed
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.sizes import Fit
from sda.system.console import Count
from sda.system.tables import named

COUNTED = 32  # most labels whose classes are counted before training
LOOKS = 200  # most labels that are decoded before training to find a labelled pixel, and images whose size is read
SQUASHED = 1.5  # change of the aspect ratio above which images are reported


@dataclass(frozen=True)
class Split:
    """One split of a dataset, in the dataset's folder or in a pack of it. `dataset` is its name or TOML path."""

    dataset: str
    descriptor: Descriptor
    root: Path
    listing: Listing

    @property
    def items(self) -> list[Item]:
        return self.listing.items

    def only(self, items: list[Item]) -> "Split":
        """Return this split with some of its items."""
        return replace(self, listing=replace(self.listing, items=items))


def find_root(descriptor: Descriptor, given: str, flag: str, progress: Count) -> Path:
    """Return the folder or pack of a dataset: the given one, or the descriptor's. Draw streets there on first use.

    Args:
        flag: the command-line option to name in the error message.
    """
    get = f"; {descriptor.download}" if descriptor.download else ""
    if not given and not descriptor.root:
        raise SdaError(f"{descriptor.title}: no folder is given; set it with {flag}{get}")
    root = Path(os.path.expanduser(given or descriptor.root))
    if descriptor.generated and not root.is_file():
        streets.write(root, progress=lambda done: progress("drawing streets", done, streets.COUNT))
    if not root.exists():
        raise SdaError(f"{descriptor.title}: the folder {root} does not exist; give the folder with {flag}{get}")
    return root


def open_split(
    dataset: str,
    descriptor: Descriptor,
    root: Path,
    split: str,
    size: tuple[int, int] | None,
    notes: list[str],
    fit: Fit = "stretch",
) -> Split:
    """List the images of a split in a folder, or in a pack, which must be made with `size` and `fit`. Add notes on files left
    out."""
    listing = list_packed(root, descriptor, split, size, fit) if root.is_file() else list_items(descriptor, root, split)
    notes += [note for note in listing.notes if note not in notes]
    return Split(dataset, descriptor, root, listing)


def open_validation(
    dataset: str,
    descriptor: Descriptor,
    root: Path,
    split: str,
    size: tuple[int, int] | None,
    classes: Classes,
    notes: list[str],
    skip_bad: bool = True,
    fit: Fit = "stretch",
    of_train: Callable[[list[Item]], Collection[str]] | None = None,
    listed: bool = False,
) -> Dataset:
    """Return the labelled images of a split at `size`, with labels at their own size.

    Args:
        of_train: what to do without images in the split: training images → the keys of those to use. None: an error.
        listed: use `of_train` in any case.
    """
    try:
        opened = open_split(dataset, descriptor, root, "train" if listed else split, size, notes, fit)
        if not listed and split == "val" and not any(item.label for item in opened.items):
            count, lone = len(opened.items), opened.items[0].key
            raise NoImages(f"{descriptor.title}: none of the {count} images of val in {root}, such as {lone}, has a label file")
    except NoImages as error:
        if listed or split != "val" or descriptor.generated:
            raise
        if of_train is None:
            command = shlex.join(["sda", "split", dataset, "--root", str(root), "--hold-out", "0.1", "--out", "val.txt"])
            raise NoImages(f"{error}; or hold out training images: {command}, then train with --val-list val.txt") from None
        opened = open_split(dataset, descriptor, root, "train", size, notes, fit)
        listed = True
    if listed and of_train is not None:
        wanted = set(of_train(opened.items))
        if root.is_file():
            raise SdaError(f"{root}: a pack holds resized training labels, but scoring needs the originals: give the folder")
        opened = opened.only([item for item in opened.items if item.key in wanted])
    if skip_bad:
        opened = without_bad(opened, notes)
    return open_labelled(opened, size, classes, notes, native_labels=True, fit=fit)


def open_labelled(
    split: Split,
    size: tuple[int, int] | None,
    classes: Classes,
    notes: list[str],
    native_labels: bool = False,
    together: Sequence[tuple[Descriptor, Classes]] = (),
    fit: Fit = "stretch",
) -> Dataset:
    """Return the labelled images of a split. Add notes on unlabelled images, dropped classes and a doubtful encoding.

    Args:
        together: see `open_codec`.

    Raises:
        SdaError: no image has a label, the labels clearly have another encoding than the descriptor's, or they have no
            labelled pixel.
    """
    check_labels(split, notes)
    labelled = [item for item in split.items if item.label is not None]
    title, count = split.descriptor.title, len(split.items) - len(labelled)
    if not labelled:
        key = split.items[0].key
        raise SdaError(f"{title}: none of the {count} images in {split.root}, such as {key}, has a label file; run sda doctor")
    if count:
        lone = next(item for item in split.items if item.label is None)
        notes.append(f"{title}: {count} images have no label file and are skipped, such as {lone.key}")
    codec = open_codec(split, classes, notes, together)
    require_labelled_pixels(split.only(labelled), codec, classes)
    return Dataset(labelled, codec, size, native_labels, fit)


def note_squashed(stream: str, dataset: Dataset, notes: list[str]) -> None:
    """Add a note if images of a stream are resized to a size of quite another aspect ratio. Reads the size of up to LOOKS images.

    Images in a pack are not looked at.
    """
    if dataset.size is None or dataset.fit != "stretch":
        return
    height, width = dataset.size
    looked = [item for item in dataset.items[:: -(-len(dataset) // LOOKS)] if item.stored is None]
    found = {item.key: size for item in looked if (size := size_of(item.image))}
    squashed = [key for key, (h, w) in found.items() if max(h * width, w * height) > SQUASHED * min(h * width, w * height)]
    if squashed:
        h, w = found[squashed[0]]
        notes.append(
            f"{stream}: {len(squashed)} of {len(found)} images{' looked at' * (len(found) < len(dataset))}, such as "
            f"{squashed[0]} ({h}x{w}), are squashed more than {SQUASHED} times to fill {height}x{width}: to keep their aspect "
            'ratio, train with fit = "inside"'
        )


def require_labelled_pixels(split: Split, codec: LabelCodec, classes: Classes) -> None:
    """Raise SdaError if the labels of a split have no pixel of the classes to train or score.

    Decodes labels until one has such a pixel: usually one label, LOOKS at most. Files that cannot be read are left to training
    and scoring, which name or skip them.
    """
    looked, items = 0, split.items
    for item in items[:: -(-len(items) // LOOKS)]:
        try:
            label = codec.map(item.stored.label()) if item.stored is not None else codec.read_item(item)
        except FileError:
            continue
        if (label != IGNORE).any():
            return
        looked += 1
    if looked:
        few = "the" if looked == len(items) else f"{looked} of the"
        raise SdaError(
            f"{split.descriptor.title} in {split.root}: no labelled pixel in {few} {len(items)} labels, such as {item.label}: "
            f'with encoding = "{split.listing.encoding}" they are void, or of classes that {classes.name} lacks; {_advice(split)}'
        )


def _advice(split: Split) -> str:
    doubt = check_encoding(split.dataset, split.descriptor, split.listing, split.root)
    command = f"sda doctor {shlex.quote(split.dataset)} --root {shlex.quote(str(split.root))}"
    return f"{doubt}; check them with: {command}" if doubt else f"check them with: {command}"


def without_bad(split: Split, notes: list[str]) -> Split:
    """Return a split without the pairs that `sda doctor` found bad. Raise SdaError if all of them are."""
    bad, title = bad_pairs(split.root, split.items, split.descriptor), split.descriptor.title
    if not bad:
        return split
    key, why = next(iter(bad.items()))
    if len(bad) == len(split.items):
        raise SdaError(f"{title}: sda doctor found all {len(bad)} pairs in {split.root} bad, such as {key} ({why}); fix them")
    notes.append(f"{title}: {len(bad)} pairs that sda doctor found bad are skipped, such as {key} ({why})")
    return split.only([item for item in split.items if item.key not in bad])


def check_labels(split: Split, notes: list[str]) -> None:
    """Raise SdaError if the labels clearly have another encoding than the descriptor's; add a note if that is doubtful."""
    if doubt := check_encoding(split.dataset, split.descriptor, split.listing, split.root):
        notes.append(f"{split.descriptor.title}: {doubt}")


def open_codec(
    split: Split, classes: Classes, notes: list[str], together: Sequence[tuple[Descriptor, Classes]] = ()
) -> LabelCodec:
    """Return the codec that maps the labels of a split to `classes`. Add notes on dropped and on missing classes.

    Args:
        together: the datasets, this one among them, that are trained on together: a class is missing if none of them has it; by
            default, this one alone.
    """
    mapping, dropped = map_classes(split.descriptor, classes)
    together = together or [(split.descriptor, classes)]
    title, missing = split.descriptor.title, missing_classes(together)
    found = []
    if dropped:
        near = counterparts(dropped, classes.table.names)
        hint = f"; if some are the same, add to the recipe: {map_stub(dropped, classes.table.names)}" if near else ""
        found.append(f"{title}: classes without a counterpart in {classes.name} are ignored: {', '.join(dropped)}{hint}")
    if missing:
        count = len(classes.table.names)
        has = f"{'has' if len(together) == 1 else 'have'} {count - len(missing)} of the {count} classes of {classes.name}"
        titles = " + ".join(descriptor.title for descriptor, _ in together)
        found.append(f"warning: {titles} {has}, and no labels of {named(missing)}")
    notes += [note for note in found if note not in notes]
    return LabelCodec(split.descriptor, split.listing.encoding, mapping)


def missing_classes(datasets: Sequence[tuple[Descriptor, Classes]]) -> list[str]:
    """Return the classes that no class of the datasets, each with the classes that it is mapped to, is mapped to."""
    mappings = [map_classes(*dataset)[0] for dataset in datasets]
    names = datasets[0][1].table.names
    return [name for index, name in enumerate(names) if not any(index in mapping for mapping in mappings)]


@dataclass(frozen=True)
class Coverage:
    """The classes in some labels of a split.

    Attributes:
        name: of the dataset. read, labels: number of labels that were counted, and of all.
        shares: class to train → its share of the labelled pixels, 0 to 1. dropped: the same for classes of the dataset without a
            counterpart. Classes that a map ignores on purpose do not count.
    """

    name: str
    read: int
    labels: int
    shares: dict[str, float]
    dropped: dict[str, float]


def cover(split: Split, classes: Classes, progress: Count) -> Coverage:
    """Count the classes in COUNTED labels of a split, evenly spread."""
    labelled = [item for item in split.items if item.label is not None]
    some = labelled[:: max(1, -(-len(labelled) // COUNTED))]
    counted = class_pixels(
        split.descriptor, split.listing.encoding, some, split.root, lambda done, total: progress("counting classes", done, total)
    )
    own, here = np.sum([*counted.values()], axis=0), np.zeros(len(classes.table.names), np.int64)
    mapping, dropped = map_classes(split.descriptor, classes)
    lost: dict[str, int] = {}
    for index, (name, pixels) in enumerate(zip(split.descriptor.table().names, own, strict=True)):
        if mapping[index] != IGNORE:
            here[mapping[index]] += pixels
        elif name in dropped:
            lost[name] = int(pixels)
    total = max(1, int(here.sum()) + sum(lost.values()))
    shares = {name: int(pixels) / total for name, pixels in zip(classes.table.names, here, strict=True)}
    name = split.descriptor.name
    return Coverage(name, len(some), len(labelled), shares, {each: pixels / total for each, pixels in lost.items()})


def count_pixels(split: Split, classes: Classes, progress: Count) -> np.ndarray:
    """Count the pixels of each of the C `classes` in each of the N images of a split: int64 (N, C)."""

    def count(done: int, total: int) -> None:
        progress("counting classes", done, total)

    counted = class_pixels(split.descriptor, split.listing.encoding, split.items, split.root, count)
    mapping, _ = map_classes(split.descriptor, classes)
    pixels = np.zeros((len(split.items), len(classes.table.names)), np.int64)
    for row, item in zip(pixels, split.items, strict=True):
        for index, number in enumerate(counted[item.key]):
            if mapping[index] != IGNORE:
                row[mapping[index]] += number
    return pixels
