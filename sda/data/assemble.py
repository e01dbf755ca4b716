"""Open the datasets of a recipe as the streams of a training run, and check that no two of them share an image."""

import itertools
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sda import shelf
from sda.data import descriptor as descriptors
from sda.data.dataset import Dataset, Joint
from sda.data.descriptor import Classes, ClassTable, map_stub
from sda.data.inspect.encoding import check_palettes
from sda.data.item import Item
from sda.data.listing import list_folder
from sda.data.opening import (
    Coverage,
    Split,
    count_pixels,
    cover,
    find_root,
    missing_classes,
    note_squashed,
    open_codec,
    open_labelled,
    open_split,
    open_validation,
    require_labelled_pixels,
    without_bad,
)
from sda.data.splits.choose import NoLabels, check_disjoint, choose, find_shared, hold_out_labelled, hold_out_unlabelled
from sda.data.splits.lists import read_keys
from sda.errors import SdaError
from sda.recipe import Recipe
from sda.system.console import Count, ignore_count
from sda.system.tables import named


@dataclass
class Data:
    """The datasets of one run. A stream that the recipe does not use is None.

    Attributes:
        table, table_name: the classes to train on. source_maps: the maps of source classes to these (see `Classes.maps`).
        held_out: labelled target images that are not used for training; the criterion `held_out` scores checkpoints on them.
        lists: stream → its items, as written to the run folder; several sources have a list each (see `sda.recipe.Source`).
        missing: source and target → the classes that the datasets have no labels of.
        notes: notes for the user: skipped images, dropped classes.
        coverage: the classes in labels of each source, and of the labelled target images.
        pixels: labelled stream → pixels of each class in each of its N images, int64 (N, C); only if the recipe needs them.
    """

    table: ClassTable
    table_name: str
    source_maps: dict[str, dict[str, str]] = field(default_factory=dict)
    source: Dataset | Joint | None = None
    labelled: Dataset | None = None
    unlabelled: Dataset | None = None
    val: Dataset | None = None
    held_out: Dataset | None = None
    lists: dict[str, list[Item]] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    coverage: list[Coverage] = field(default_factory=list)
    pixels: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def classes(self) -> Classes:
        return Classes(self.table_name, self.table)

    @property
    def classes_of_source(self) -> Classes:
        return Classes(self.table_name, self.table, self.source_maps)


def assemble(recipe: Recipe, progress: Count = ignore_count) -> Data:
    """Open every dataset that `recipe` needs.

    Raises:
        SdaError: a missing root, no images, too few labels, or an image that two streams share.
    """
    _check_classmix(recipe)
    table_name, table = training_classes(recipe)
    data = Data(table, table_name, source_maps(recipe))
    if unnamed := [name for name in table.names if re.fullmatch(r"(class|colour)_\w+", name)]:
        data.notes.append(
            f"{len(unnamed)} classes have no names of their own, such as {unnamed[0]}: name them in {recipe.target}"
        )
    labelled: dict[str, list[Split]] = {}  # stream → its images
    if recipe.source:
        labelled["source"] = _add_sources(data, recipe, progress)

    target = _open_target(data, recipe, progress)
    usable = _usable(data, recipe, target)
    chosen = _choose_labelled(data, recipe, target, usable)
    if recipe.hold_out:
        chosen = _add_held_out(data, recipe, usable, chosen)
    if chosen:
        split = usable.only(chosen)
        data.labelled = open_labelled(split, recipe.image_size, data.classes, data.notes, fit=recipe.fit)
        data.lists["labelled"] = chosen
        _check_palettes(data, split)
        labelled["labelled"] = [split]
    if recipe.unlabelled:
        _add_unlabelled(data, recipe, usable, chosen)
    _check_streams(data, recipe)
    _check_coverage(data, recipe, labelled, progress)
    _note_squashed(data)

    if recipe.rare_class_sampling or recipe.class_statistics:
        for stream, splits in labelled.items():
            classes = data.classes_of_source if stream == "source" else data.classes
            data.pixels[stream] = np.concatenate([count_pixels(split, classes, progress) for split in splits])
    if recipe.in_memory:
        for name in ("source", "labelled", "unlabelled", "val"):
            if dataset := getattr(data, name):
                dataset.preload(lambda done, total, name=name: progress(f"reading {name}", done, total))
    return data


def _note_squashed(data: Data) -> None:
    for stream in ("source", "labelled", "unlabelled", "val"):
        dataset = getattr(data, stream)
        for part in dataset.datasets if isinstance(dataset, Joint) else [dataset] if dataset else []:
            note_squashed(stream, part, data.notes)


def training_classes(recipe: Recipe) -> tuple[str, ClassTable]:
    """Return the name and the table of the classes that `recipe` trains on: its own, or its target's.

    Raises:
        SdaError: there is only one class.
    """
    target = descriptors.load(recipe.target)
    table = descriptors.class_table(recipe.classes) if recipe.classes else target.table()
    if len(table.names) < 2:
        raise SdaError(
            f"{recipe.classes or recipe.target}: its only class is {table.names[0]!r}, but a network needs at least two; add "
            "another, such as the background"
        )
    if recipe.classes:
        return Path(recipe.classes).stem, table
    return Path(target.classes if isinstance(target.classes, str) else recipe.target).stem, table


def source_maps(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Return the maps of source classes: the target's, if its own classes are trained, and the recipe's, for any source."""
    of_target = {} if recipe.classes else descriptors.load(recipe.target).source_maps
    return {**of_target, "": recipe.source_map}


def _check_source_map(recipe: Recipe, sources: list[descriptors.Descriptor]) -> None:
    """Raise SdaError if the recipe maps a class that no source has."""
    known = list(dict.fromkeys(name for source in sources for name in source.table().names))
    for name, other in recipe.source_map.items():
        if name not in known:
            raise SdaError(f"source_map: {name!r} = {other!r}: no source has a class {name!r}{shelf.hint(name, known)}")


def _check_classmix(recipe: Recipe) -> None:
    """Raise SdaError if ClassMix never gets two images, because each of the `accumulate` parts of a step has only one."""
    sizes = [recipe.batch_source] if recipe.source else []
    sizes += [recipe.batch_labelled] if recipe.labels or recipe.split else []
    if recipe.classmix_labelled and (min if recipe.alternate else sum)(sizes) == recipe.accumulate:
        raise SdaError(
            "ClassMix needs two labelled images at a time, but gets one: raise batch_labelled or set classmix_labelled = 0"
        )


def _add_sources(data: Data, recipe: Recipe, progress: Count) -> list[Split]:
    """Open the source stream and return the images of each source."""
    sources, size = recipe.sources, recipe.source_image_size
    described = [descriptors.load(source.dataset) for source in sources]
    _check_source_map(recipe, described)
    classes = data.classes_of_source
    together = [(descriptor, classes) for descriptor in described]
    if len(sources) > 1 and recipe.streams.labelled:
        together.append((descriptors.load(recipe.target), data.classes))
    flag = "--source-root" if len(sources) == 1 else f"--source-root {','.join(f'DIR/{source.name}' for source in sources)}"
    datasets, splits = [], []
    for source, descriptor in zip(sources, described, strict=True):
        root = find_root(descriptor, source.root, flag, progress)
        split = open_split(source.dataset, descriptor, root, "train", size, data.notes, recipe.fit)
        if recipe.doctor:
            split = without_bad(split, data.notes)
        datasets.append(open_labelled(split, size, classes, data.notes, together=together, fit=recipe.fit))
        data.lists[source.images] = datasets[-1].items
        splits.append(split.only(datasets[-1].items))
    data.source = datasets[0] if len(datasets) == 1 else Joint(datasets, [source.share for source in sources])
    data.missing["source"] = missing_classes([(descriptor, classes) for descriptor in described])
    return splits


def _open_target(data: Data, recipe: Recipe, progress: Count) -> Split:
    """Open the validation set, and return all training images of the target.

    A target without any labels has a validation set without labels, for the criteria that need none.
    """
    descriptor = descriptors.load(recipe.target)
    root = find_root(descriptor, recipe.target_root, "--target-root", progress)

    def held_out(items: list[Item]) -> list[str]:
        keys = hold_out_labelled(items, recipe.labels, recipe.split, recipe.val_share)
        labelled = sum(item.label is not None for item in items)
        data.notes.append(
            f"{descriptor.title} has no labelled val split: {len(keys)} of its {labelled} labelled images are held out for "
            f"validation (val_share = {recipe.val_share}); splits/val.txt in the run folder lists them"
        )
        return keys

    def in_list(items: list[Item]) -> list[str]:
        return read_keys(Path(recipe.val_list), items, "training images")

    size, fit = recipe.scoring.input, recipe.scoring.fit
    of_train = in_list if recipe.val_list else held_out if recipe.val_share else None
    try:
        data.val = open_validation(
            *(recipe.target, descriptor, root, "val", size, data.classes, data.notes),
            *(recipe.doctor, fit, of_train, bool(recipe.val_list)),
        )
    except NoLabels:
        if recipe.labels != 0 or recipe.split:
            raise
    target = open_split(recipe.target, descriptor, root, "train", recipe.image_size, data.notes, recipe.fit)
    if data.val is None:
        data.val = Dataset(hold_out_unlabelled(target.items, recipe.val_share), None, size, fit=fit)
        data.notes.append(
            f"{descriptor.title} has no labels to score on: this run has no mIoU, and best.pt is chosen by "
            f"{'infomax' if recipe.best_by == 'miou' else recipe.best_by}, on {len(data.val)} images that are held out"
        )
    data.lists["val"] = data.val.items
    data.missing["target"] = missing_classes([(descriptor, data.classes)])
    return target


def _check_palettes(data: Data, labelled: Split) -> None:
    """Raise SdaError if the palettes of the labels to train on contradict those of the labels to validate on."""
    assert data.val is not None
    if data.val.codec is not None and not labelled.root.is_file():  # a pack holds no palettes; they were compared as it was made
        listings = labelled.listing, replace(labelled.listing, items=data.val.items)
        check_palettes(labelled.descriptor, listings, labelled.root)


def _usable(data: Data, recipe: Recipe, target: Split) -> Split:
    """Return the target images to train on, without bad pairs and without those to validate on."""
    usable = without_bad(target, data.notes) if recipe.doctor else target
    validation = {item.key for item in data.lists["val"]}
    if recipe.val_list:
        validation |= set(read_keys(Path(recipe.val_list), target.items, "training images"))
    return usable.only([item for item in usable.items if item.key not in validation])


def _choose_labelled(data: Data, recipe: Recipe, target: Split, usable: Split) -> list[Item]:
    """Return the target images that training may see with labels. No rule chooses a copy of a validation image."""
    keys = {item.key for item in usable.items}
    copies = {item.key for _, item in find_shared(data.lists["val"], usable.items)}
    if copies and not recipe.split:
        data.notes.append(f"{len(copies)} target images are copies of validation images and get no labels, such as {min(copies)}")
    skipped = ({item.key for item in target.items} - keys) | copies
    try:
        chosen = choose(target.items, recipe.labels, recipe.split_seed, recipe.split, skipped)
    except SdaError as error:
        why = [note for note in target.listing.notes if " not read" in note]
        if bad := sum(item.label is not None and item.key not in keys for item in target.items if item.key not in copies):
            why.insert(0, f"{bad} more are skipped, because they are validated on or because sda doctor found them bad")
        raise SdaError("; ".join([str(error), *why])) from None
    _check_labelled(data, recipe, target, chosen)
    return _without_bad_of_list(data, recipe.split, chosen, keys) if recipe.split else chosen


def _check_labelled(data: Data, recipe: Recipe, target: Split, chosen: list[Item]) -> None:
    """Raise SdaError if a labelled image is a validation image; the message says how to make lists that share none."""
    shared = find_shared(data.lists["val"], chosen)
    if not shared:
        return
    if not (recipe.split and recipe.val_list):
        check_disjoint("validation", data.lists["val"], "labelled", chosen)
    taken = {item.key for item in data.lists["val"]}
    count = min(len(chosen), sum(item.label is not None and item.key not in taken for item in target.items))
    command = ["sda", "split", recipe.target, "--root", str(target.root), "--labels", str(count)]
    raise SdaError(
        f"{recipe.split} (labelled) and {recipe.val_list} (validation) share {len(shared)} images, such as {shared[0][1].key}; "
        f"make a list without them: {shlex.join([*command, '--exclude', recipe.val_list, '--out', 'labelled.txt'])}"
    )


def _without_bad_of_list(data: Data, file: str, listed: list[Item], usable: set[str]) -> list[Item]:
    """Return the images of a list without those that the doctor found bad."""
    bad = [item.key for item in listed if item.key not in usable]
    if len(bad) == len(listed):
        raise SdaError(
            f"{file}: sda doctor found all {len(bad)} images in this list bad, such as {bad[0]}; fix them, or list others"
        )
    if bad:
        data.notes.append(
            f"{file}: {len(bad)} of its {len(listed)} images are skipped, such as {bad[0]}: sda doctor found them bad"
        )
    return [item for item in listed if item.key in usable]


def _add_held_out(data: Data, recipe: Recipe, usable: Split, chosen: list[Item]) -> list[Item]:
    """Hold out the last `hold_out` labelled images, and return the others."""
    if usable.root.is_file():
        raise SdaError(f"{usable.root}: hold_out needs training labels at their own size, which a pack lacks: give the folder")
    if recipe.hold_out >= len(chosen):
        raise SdaError(f"hold_out = {recipe.hold_out} leaves none of the {len(chosen)} labelled images to train on; reduce it")
    chosen, held_out = chosen[: -recipe.hold_out], chosen[-recipe.hold_out :]
    codec = open_codec(usable, data.classes, data.notes)
    require_labelled_pixels(usable.only(held_out), codec, data.classes)
    data.held_out = Dataset(held_out, codec, recipe.scoring.input, True, recipe.scoring.fit)
    data.lists["held_out"] = held_out
    return chosen


def _add_unlabelled(data: Data, recipe: Recipe, usable: Split, chosen: list[Item]) -> None:
    """Open the unlabelled stream: a folder, or the target images that are neither labelled nor held out. Skip copies."""
    taken = chosen + data.lists.get("held_out", [])
    if recipe.unlabelled == "target":
        keys = {item.key for item in taken}
        rest = [item for item in usable.items if item.key not in keys]
    else:
        listing = list_folder(Path(recipe.unlabelled))
        rest = listing.items
        data.notes += listing.notes
    if copies := find_shared(taken + data.lists["val"], rest):
        twin, copy = copies[0]
        data.notes.append(
            f"{len(copies)} unlabelled images are copies of labelled or validation images and are skipped, "
            f"such as {copy.key} (= {twin.key})"
        )
        keys = {item.key for _, item in copies}
        rest = [item for item in rest if item.key not in keys]
    if not rest:
        raise SdaError(
            f"no unlabelled target images are left beside the {len(chosen)} labelled ones; reduce labels, or set unlabelled "
            "to a folder"
        )
    data.unlabelled = Dataset([replace(item, label=None) for item in rest], None, recipe.image_size, fit=recipe.fit)
    data.lists["unlabelled"] = rest


def _check_coverage(data: Data, recipe: Recipe, labelled: dict[str, list[Split]], progress: Count) -> None:
    """Count the classes in some labels of each stream.

    Raises:
        SdaError: most of a source's labelled pixels are of classes without a counterpart, or most classes cannot be scored, and
            the recipe does not allow that.
    """
    names = data.table.names
    for stream, splits in labelled.items():
        classes = data.classes_of_source if stream == "source" else data.classes
        data.coverage += [cover(split, classes, progress) for split in splits]
    if recipe.allow_missing_classes:
        return
    allow = "or train all the same with allow_missing_classes = true (--allow-missing-classes true)"
    for found in data.coverage[: len(recipe.sources)]:
        lost = sum(found.dropped.values())
        if lost > 0.5:
            words = ", ".join(
                f"{name} {share:.0%}" for name, share in sorted(found.dropped.items(), key=lambda each: -each[1])[:5]
            )
            raise SdaError(
                f"{found.name}: {lost:.0%} of its labelled pixels are of classes without a counterpart in {data.table_name}: "
                f"{words}; map them in the recipe: {map_stub([*found.dropped], names)}, {allow}"
            )
    if 2 * len(data.missing["target"]) > len(names):
        raise SdaError(
            f"the labels of {recipe.target} have only {len(names) - len(data.missing['target'])} of the {len(names)} classes of "
            f"{data.table_name}, so most cannot be scored (no {named(data.missing['target'])}): set classes to a table that the "
            f"target has, add [maps.{data.table_name}] to its descriptor, {allow}"
        )


def _check_streams(data: Data, recipe: Recipe) -> None:
    """Raise SdaError if two streams or sources share an image, or a stream shares one with validation or held-out images."""
    for one, other in itertools.combinations(recipe.sources, 2):
        if shared := find_shared(data.lists[one.images], data.lists[other.images]):
            raise SdaError(
                f"source: {one.dataset} and {other.dataset} share {len(shared)} images, such as {shared[0][1].image} (= "
                f"{shared[0][0].image}): name one of the two, or remove these images from it"
            )
    lists = {**data.lists, "source": data.source.items if data.source else []}
    for stream in ("source", "unlabelled"):
        check_disjoint("held-out", lists.get("held_out", []), stream, lists.get(stream, []))
        check_disjoint("validation", lists["val"], stream, lists.get(stream, []))
    for first, second in itertools.combinations(("source", "labelled", "unlabelled"), 2):
        check_disjoint(first, lists.get(first, []), second, lists.get(second, []))
