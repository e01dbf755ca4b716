"""From a recipe to its datasets: roots found, classes mapped, labels split off, and overlaps ruled out."""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sda import streets
from sda.data import descriptor as descriptors
from sda.data.dataset import Dataset
from sda.data.descriptor import ClassTable, Descriptor
from sda.data.files import LabelCodec
from sda.data.inspect.bad_pairs import bad_pairs
from sda.data.inspect.encoding import check_encoding, class_pixels
from sda.data.item import Item
from sda.data.listing import Listing, list_folder, list_items
from sda.data.pack import list_packed
from sda.data.splits import choose as splits
from sda.data.splits.lists import read_keys
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.recipe import Recipe

Count = Callable[[str, int, int], None]  # what is being done, how many are done, how many there are


def ignore_count(_what: str, _done: int, _total: int) -> None:
    """The progress report of those who want none."""


@dataclass
class Data:
    """The datasets of one run; a stream that the setting lacks is None.

    Attributes:
        table, table_name: the classes trained in.
        held_out: labelled images that are not trained on, to choose a checkpoint by.
        lists: stream → its items, as written to the run folder.
        notes: what a user should know: images left out, classes dropped.
        pixels: labelled stream → (N, C) pixels of the classes trained in, of each image; where the recipe wants statistics.
    """

    table: ClassTable
    table_name: str
    source: Dataset | None = None
    labelled: Dataset | None = None
    unlabelled: Dataset | None = None
    val: Dataset | None = None
    held_out: Dataset | None = None
    lists: dict[str, list[Item]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pixels: dict[str, np.ndarray] = field(default_factory=dict)


def assemble(recipe: Recipe, progress: Count = ignore_count) -> Data:
    """Open every dataset that `recipe` needs.

    Raises:
        SdaError: a missing root, no images, too few labels, an overlap between streams or with validation.
    """
    _check_classmix(recipe)
    target = descriptors.load(recipe.target)
    table_name, table = training_classes(recipe)
    data = Data(table, table_name)
    labelled = []  # stream, descriptor, root and listing

    if recipe.source:
        source = descriptors.load(recipe.source)
        root = find_root(source, recipe.source_root, "--source-root", progress)
        whole = _list(source, root, "train", recipe.source_image_size)
        listing = _without_bad(data, source, root, whole) if recipe.doctor else whole
        _check_encoding(data, recipe.source, source, root, listing)
        items = _with_labels(data, source, listing.items, root)
        data.source = Dataset(items, _codec(data, source, listing), recipe.source_image_size)
        data.lists["source"] = items
        labelled.append(("source", source, root, listing))

    root = find_root(target, recipe.target_root, "--target-root", progress)
    _open_validation(data, recipe.target, root, recipe.scoring.input, "val", recipe.val_list, recipe.doctor)
    whole = _list(target, root, "train", recipe.image_size)
    listing = _without_bad(data, target, root, whole) if recipe.doctor else whole
    if recipe.val_list:
        held_out = set(read_keys(Path(recipe.val_list), whole.items, "training images"))
        listing = replace(listing, items=[item for item in listing.items if item.key not in held_out])
    sound = {item.key for item in listing.items}
    passed_over = {item.key for item in whole.items} - sound
    copies = {item.key for _, item in splits.find_shared(data.lists["val"], listing.items)}
    if copies and not recipe.split:
        data.notes.append(f"{len(copies)} target images are copies of validation images and get no labels, such as {min(copies)}")
    passed_over |= copies
    chosen = splits.choose(whole.items, recipe.labels, recipe.split_seed, recipe.split, passed_over)
    splits.check_disjoint("validation", data.lists["val"], "labelled", chosen)
    if recipe.split:
        chosen = _of_list(data, recipe.split, chosen, sound)
    if recipe.hold_out:
        if root.is_file():
            raise SdaError(f"{root}: hold_out scores training images, whose labels a pack holds at its own size: give the folder")
        if recipe.hold_out >= len(chosen):
            raise SdaError(f"hold_out = {recipe.hold_out} leaves none of the {len(chosen)} labelled images to train on")
        chosen, kept = chosen[: -recipe.hold_out], chosen[-recipe.hold_out :]
        data.held_out = Dataset(kept, _codec(data, target, listing), recipe.scoring.input, native_labels=True)
        data.lists["held_out"] = kept
    if chosen:
        _check_encoding(data, recipe.target, target, root, replace(listing, items=chosen))
        data.labelled = Dataset(chosen, _codec(data, target, listing), recipe.image_size)
        data.lists["labelled"] = chosen
        labelled.append(("labelled", target, root, listing))
    if recipe.unlabelled:
        if recipe.unlabelled == "target":
            taken = {item.key for item in chosen + data.lists.get("held_out", [])}
            rest = [item for item in listing.items if item.key not in taken]
        else:
            rest = list_folder(Path(recipe.unlabelled)).items
        rest = _without_copies(data, rest, chosen + data.lists.get("held_out", []))
        if not rest:
            raise SdaError(f"no unlabelled target images are left beside the {len(chosen)} labelled ones")
        data.unlabelled = Dataset([replace(item, label=None) for item in rest], None, recipe.image_size)
        data.lists["unlabelled"] = rest
    for stream in ("source", "unlabelled"):
        splits.check_disjoint("held-out", data.lists.get("held_out", []), stream, data.lists.get(stream, []))
        splits.check_disjoint("validation", data.lists["val"], stream, data.lists.get(stream, []))
    for first, second in itertools.combinations(("source", "labelled", "unlabelled"), 2):
        splits.check_disjoint(first, data.lists.get(first, []), second, data.lists.get(second, []))

    if recipe.rare_class_sampling or recipe.class_statistics:
        for stream, described, place, listed in labelled:
            data.pixels[stream] = _pixels(data, described, place, replace(listed, items=data.lists[stream]), progress)
    if recipe.in_memory:
        for name in ("source", "labelled", "unlabelled", "val"):
            if dataset := getattr(data, name):
                dataset.preload(lambda done, total, name=name: progress(f"reading {name}", done, total))
    return data


def _check_classmix(recipe: Recipe) -> None:
    """SdaError when a step's labelled images, taken part by part, come one at a time, and none is there to mix with."""
    sizes = [recipe.batch_source] if recipe.source else []
    sizes += [recipe.batch_labelled] if recipe.labels or recipe.split else []
    if recipe.classmix_labelled and (min if recipe.alternate else sum)(sizes) == recipe.accumulate:
        raise SdaError("one labelled image at a time leaves ClassMix no other: raise batch_labelled, or classmix_labelled = 0")


def _of_list(data: Data, file: str, listed: list[Item], sound: set[str]) -> list[Item]:
    """The images of a list that may be trained on."""
    out = [item.key for item in listed if item.key not in sound]
    if len(out) == len(listed):
        raise SdaError(
            f"{file}: sda doctor found all {len(out)} images of this list bad, such as {out[0]}; mend them, or list others"
        )
    if out:
        data.notes.append(
            f"{file}: {len(out)} of its {len(listed)} images are left out, such as {out[0]}: sda doctor found them bad"
        )
    return [item for item in listed if item.key in sound]


def _pixels(data: Data, descriptor: Descriptor, root: Path, listing: Listing, progress: Count) -> np.ndarray:
    """(N, C) pixels of the training's classes in each image of a listing."""

    def counting(done: int, total: int) -> None:
        progress("counting classes", done, total)

    counted = class_pixels(descriptor, listing.encoding, listing.items, root, counting)
    mapping, _ = descriptors.map_classes(descriptor, data.table_name, data.table)
    pixels = np.zeros((len(listing.items), len(data.table.names)), np.int64)
    for row, item in zip(pixels, listing.items, strict=True):
        for index, count in enumerate(counted[item.key]):
            if mapping[index] != IGNORE:
                row[mapping[index]] += count
    return pixels


def training_classes(recipe: Recipe) -> tuple[str, ClassTable]:
    """The name and the table of the classes that `recipe` trains in: its own, or its target's."""
    target = descriptors.load(recipe.target)
    if recipe.classes:
        return Path(recipe.classes).stem, descriptors.class_table(recipe.classes)
    return _table_name(target, recipe.target), target.table()


def evaluation_set(
    table_name: str,
    table: ClassTable,
    size: tuple[int, int] | None,
    dataset: str,
    root: str,
    split: str,
    val_list: str = "",
    progress: Count = ignore_count,
) -> Data:
    """The labelled images of any dataset as `val`, in the classes of `table`, for a network that takes images of `size`,
    (height, width), or None for their own; less those that the doctor found bad. With a `val_list`, its images in `train`."""
    data = Data(table, table_name)
    descriptor = descriptors.load(dataset)
    folder = find_root(descriptor, root, "--root", progress)
    _open_validation(data, dataset, folder, size, split, val_list, leave_out=True)
    return data


def all_images(
    table_name: str,
    table: ClassTable,
    size: tuple[int, int] | None,
    dataset: str,
    root: str,
    split: str,
    progress: Count = ignore_count,
) -> tuple[Dataset, Path, list[str]]:
    """Every image of a split of any dataset, or of a folder, at `size`; with its label, at its own size, where it has one.

    Args:
        dataset: a name, a TOML path, or a folder of images. table: the classes of the labels.

    Returns:
        The images, where they lie, and notes for the user.
    """
    if Path(dataset).is_dir():
        return Dataset(list_folder(Path(dataset)).items, None, size), Path(dataset), []
    data = Data(table, table_name)
    descriptor = descriptors.load(dataset)
    folder = find_root(descriptor, root, "--root", progress)
    listing = _without_bad(data, descriptor, folder, _list(descriptor, folder, split, size))
    codec = None
    if any(item.label for item in listing.items):
        _check_encoding(data, dataset, descriptor, folder, listing)
        codec = _codec(data, descriptor, listing)
    return Dataset(listing.items, codec, size, native_labels=True), folder, data.notes


def find_root(descriptor: Descriptor, given: str, flag: str, progress: Count) -> Path:
    """The folder of a dataset, or its pack: the one given, or the descriptor's; streets is made there on first use."""
    if not given and not descriptor.root:
        raise SdaError(f"{descriptor.title}: where is it? Give its folder with {flag}. {descriptor.download}".strip())
    root = Path(os.path.expanduser(given or descriptor.root))
    if descriptor.generated and not root.is_file():
        streets.write(root, progress=lambda done: progress("drawing streets", done, streets.COUNT))
    return root


def _open_validation(
    data: Data, dataset: str, root: Path, size: tuple[int, int] | None, split: str, val_list: str, leave_out: bool
) -> None:
    descriptor = descriptors.load(dataset)
    listing = _list(descriptor, root, "train" if val_list else split, size)
    if val_list:
        if root.is_file():
            raise SdaError(f"{root}: a pack holds training labels at its own size, and scores need theirs: give the folder")
        wanted = set(read_keys(Path(val_list), listing.items, "training images"))
        listing = replace(listing, items=[item for item in listing.items if item.key in wanted])
    if leave_out:
        listing = _without_bad(data, descriptor, root, listing)
    _check_encoding(data, dataset, descriptor, root, listing)
    items = _with_labels(data, descriptor, listing.items, root)
    data.val, data.lists["val"] = Dataset(items, _codec(data, descriptor, listing), size, native_labels=True), items


def _list(descriptor: Descriptor, root: Path, split: str, size: tuple[int, int] | None) -> Listing:
    """The images of a split in a folder or in a pack."""
    return list_packed(root, descriptor, split, size) if root.is_file() else list_items(descriptor, root, split)


def _check_encoding(data: Data, dataset: str, descriptor: Descriptor, root: Path, listing: Listing) -> None:
    """Refuse labels that are surely not what the descriptor says, and note what is doubtful."""
    if doubt := check_encoding(dataset, descriptor, listing, root):
        data.notes.append(f"{descriptor.title}: {doubt}")


def _without_bad(data: Data, descriptor: Descriptor, root: Path, listing: Listing) -> Listing:
    """A listing less the pairs that `sda doctor` found bad."""
    bad = bad_pairs(root, listing.items, descriptor)
    if not bad:
        return listing
    key, why = next(iter(bad.items()))
    data.notes.append(f"{descriptor.title}: {len(bad)} pairs that sda doctor found bad are left out, such as {key} ({why})")
    if len(bad) == len(listing.items):
        raise SdaError(f"{descriptor.title}: sda doctor found all {len(bad)} pairs in {root} bad, such as {key} ({why})")
    return replace(listing, items=[item for item in listing.items if item.key not in bad])


def _codec(data: Data, descriptor: Descriptor, listing: Listing) -> LabelCodec:
    mapping, dropped = descriptors.map_classes(descriptor, data.table_name, data.table)
    note = f"{descriptor.title}: classes without a counterpart in {data.table_name} are ignored: {', '.join(dropped)}"
    if dropped and note not in data.notes:
        data.notes.append(note)
    return LabelCodec(descriptor, listing.encoding, mapping)


def _with_labels(data: Data, descriptor: Descriptor, items: list[Item], root: Path) -> list[Item]:
    labelled = [item for item in items if item.label is not None]
    if not labelled:
        raise SdaError(f"{descriptor.title}: {len(items)} images such as {items[0].key} in {root}, but no label file for any")
    if len(labelled) < len(items):
        lone = next(item for item in items if item.label is None)
        data.notes.append(
            f"{descriptor.title}: {len(items) - len(labelled)} images have no label file and are left out, such as {lone.key}"
        )
    return labelled


def _without_copies(data: Data, rest: list[Item], chosen: list[Item]) -> list[Item]:
    """Unlabelled images less those that are copies of a labelled or validation image: real sets hold some."""
    copies = splits.find_shared(chosen + data.lists["val"], rest)
    if not copies:
        return rest
    twin, item = copies[0]
    data.notes.append(
        f"{len(copies)} unlabelled images are copies of labelled or validation images and are left out, "
        f"such as {item.key} (= {twin.key})"
    )
    out = {item.key for _, item in copies}
    return [item for item in rest if item.key not in out]


def _table_name(descriptor: Descriptor, dataset: str) -> str:
    return Path(descriptor.classes if isinstance(descriptor.classes, str) else dataset).stem
