"""Find the images of a split in a dataset's folder, by the layouts of its descriptor."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sda.data.annotations.forms import FORMS, Annotated, form_of, index_of, match_names
from sda.data.annotations.masks import Masks
from sda.data.descriptor import CLASS, SHARED, Descriptor, Layout
from sda.data.item import Drawn, Item
from sda.data.layouts.maps import find_maps, is_flat
from sda.data.layouts.pattern import IMAGE_SUFFIXES, Pattern, Tree, composed, entries_of, is_image, no_access
from sda.data.splits.lists import read_keys
from sda.errors import SdaError

_FEW = 4  # files that tell the form of all of a folder
MOST_TOPS = 50  # folders at the top that are searched for other labels
_SUFFIXES = {form.suffix for form in FORMS.values() if form.parts is None}  # of files with the label of one image


class NoImages(SdaError):
    """Raised if a split has no images."""


@dataclass(frozen=True)
class Listing:
    """The images of one split, sorted by key, and the label encoding of the layout that found them.

    Attributes:
        maps: key → key of a photo, for files that match the layout but are maps of a photo and not used as images.
        missing: label files and names in them that belong to no image, relative to the root, if annotations name the images.
        empty: key → annotation file, for images that it lists without an object.
        unread: what the layout leaves out although it seems to belong to the split, for the user to mend.
        notes: on maps, on images without an object, and on what is unread, for the user.
    """

    items: list[Item]
    encoding: str
    layout: Layout | None = None
    maps: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    empty: dict[str, Path] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def label_pattern(self) -> str | None:
        """The layout's pattern of label files; None without a layout, or if the layout has no labels."""
        return self.layout.labels if self.layout else None


def list_items(descriptor: Descriptor, root: Path, split: str) -> Listing:
    """Find the images of `split` below `root` and their labels, by the first layout that finds any labels.

    If no layout finds labels, the first that finds images is used: the split is unlabelled. A file that is a label of any
    layout, or a map of another image, is not an image.

    Raises:
        SdaError: the root is missing, a folder cannot be read, or an image and a label cannot be paired without a guess.
        NoImages: no layout finds an image; the message names the patterns.
    """
    get = f"; {descriptor.download}" if descriptor.download else ""
    if not _is_dir(root):
        what = "is a file: give the folder itself" if root.is_file() else f"does not exist{get}"
        raise SdaError(f"{descriptor.title}: the folder {root} {what}")
    tree, words = Tree(root), {"split": descriptor.splits.get(split, split)}
    labels = [Pattern(layout.labels, words) for layout in descriptor.layout if layout.labels]
    tried, found = [], []
    for layout in descriptor.layout:
        if layout.split not in (None, split) or (layout.split is None and not layout.by_split and split != "train"):
            continue
        pattern = Pattern(layout.images, words)
        listed = root / layout.list.format(**words) if layout.list else None
        tried.append(f"{pattern.shown} of {listed.relative_to(root)}" if listed else pattern.shown)
        if listed and not _is_file(listed):
            continue
        items, missing = _pair(tree, pattern, layout, words, labels)
        if listed and items:
            named = set(read_keys(listed, items, f"images of {pattern.shown}"))
            items = [item for item in items if item.key in named]
        if layout.lists_images:
            items = [item for item in items if item.label]
        empty = {
            item.key: item.label for item in items if item.label and isinstance(item.drawn, Annotated) and item.drawn.is_empty()
        }
        if empty and not _is_background(descriptor, layout):
            items = [replace(item, label=None, drawn=None) if item.key in empty else item for item in items]
        if items:
            encoding = "names" if layout.by_name else layout.encoding
            found.append(Listing(items, encoding, layout, missing=missing, empty=empty))
    if not found:
        raise NoImages(_nothing(descriptor, root, split, tried, get))
    chosen = next((listing for listing in found if any(item.label for item in listing.items)), found[0])
    unread = tuple(
        f"{descriptor.title}: {note}" for note in [*_unread(tree, words, chosen, found, labels), *_other_forms(tree, chosen)]
    )
    listing = _without_maps(replace(chosen, unread=unread), descriptor.title)
    return replace(listing, notes=listing.notes + _on_empty(descriptor, chosen) + unread)


def _is_background(descriptor: Descriptor, layout: Layout) -> bool:
    """Return whether images that annotations list without an object are labelled: all background."""
    if descriptor.empty_images is None and layout.format:
        return bool(descriptor.background) and FORMS[layout.format].tells_empty
    return descriptor.empty_images == "background"


def _on_empty(descriptor: Descriptor, listing: Listing) -> tuple[str, ...]:
    """Return a note on the images that annotations list without an object, if there are any."""
    if not listing.empty or not listing.layout:
        return ()
    key, file = next(iter(listing.empty.items()))
    found = f"{descriptor.title}: {len(listing.empty)} images have annotations without an object, such as {key} in {file.name}"
    if _is_background(descriptor, listing.layout):
        return (
            f"{found}: they are labelled as {descriptor.background!r}; if they are not annotated yet, write "
            'empty_images = "unlabelled" into the descriptor',
        )
    background = "" if descriptor.background else ", and background = CLASS,"
    return (
        f'{found}: they count as unlabelled; if they show nothing but background, write empty_images = "background"'
        f"{background} into the descriptor",
    )


def _pair(
    tree: Tree, images: Pattern, layout: Layout | None, known: dict[str, str], all_labels: list[Pattern]
) -> tuple[list[Item], tuple[str, ...]]:
    """Return the images that a pattern finds, sorted by key, with their labels by a layout. Leave out the labels of any layout.

    Returns:
        The items, and what annotations name although it is not there.
    """
    words = dict(images.find(tree))
    labels = Pattern(layout.labels, known) if layout and layout.labels else None
    drawn: dict[Path, Drawn] = {}
    missing: tuple[str, ...] = ()
    label_of: dict[Path, Path] = {}
    if layout and labels and layout.format in SHARED:
        drawn, missing = _shared(tree, layout.format, labels, words)
    elif layout and labels and layout.format is None and layout.by_name:
        drawn = _masks(tree, labels, words)
    elif layout and labels:
        label_of = {path: label for path, found in words.items() if (label := _label(tree, labels, path, found))}
        drawn = {path: Annotated(layout.format, label) for path, label in label_of.items()} if layout.format else {}
    label_of |= {path: label.files[0] for path, label in drawn.items() if path not in label_of}
    used = {file for label in drawn.values() for file in label.files} | set(label_of.values())
    specific = [pattern for pattern in all_labels if pattern.literal > images.literal]
    items = []
    for key, path in _keyed(tree.root, words.keys() - used):
        if path in label_of or not any(pattern.match(key) for pattern in specific):
            items.append(Item(key, path, label_of.get(path), drawn=drawn.get(path)))
    first: dict[tuple, Path] = {}
    for item in items:
        name = item.drawn.name if item.drawn else ""
        twin = first.setdefault((item.label, name, *words[item.image].values()), item.image)
        if item.label and twin != item.image:  # their names differ only in the suffix or in how accents are stored
            raise SdaError(
                f"{item.image} and {twin} are two images for one label, {item.label}: remove one of the two images, or name "
                "their suffix in the layout"
            )
    return items, missing


def _shared(tree: Tree, form: str, labels: Pattern, images: Iterable[Path]) -> tuple[dict[Path, Drawn], tuple[str, ...]]:
    """Return the annotations of the images in the one file of a split, and what that names although it is not there."""
    files = labels.fill(tree, {})
    if len(files) != 1 or not _is_file(files[0]):
        return {}, ()
    keys = {path.relative_to(tree.root).as_posix(): path for path in images}
    names = index_of(form, files[0])
    found = match_names(files[0], names, keys)
    place = files[0].relative_to(tree.root).as_posix()
    missing = sorted(f"{place}: {name}" for name in names.keys() - set(found.values()))
    return {keys[key]: Annotated(form, files[0], name) for key, name in found.items()}, tuple(missing)


def _masks(tree: Tree, labels: Pattern, images: Mapping[Path, dict[str, str]]) -> dict[Path, Drawn]:
    """Return the masks of the images. A mask that could be of two images is of the one with the longer name."""
    owner: dict[Path, tuple[int, Path]] = {}
    found = {image: labels.fill_but(tree, words, CLASS) for image, words in images.items()}
    for image, masks in found.items():
        for path, name in masks:
            owner[path] = min(owner.get(path, (len(name), image)), (len(name), image))
    own = {image: [each for each in masks if owner[each[0]][1] == image] for image, masks in found.items()}
    return {image: Masks(*map(tuple, zip(*masks, strict=True))) for image, masks in own.items() if masks}


def _label(tree: Tree, labels: Pattern | None, image: Path, words: dict[str, str]) -> Path | None:
    """Return the label file of an image. Raise SdaError if there are two."""
    files = [file for file in labels.fill(tree, words) if file != image and _is_file(file)] if labels else []
    if len(files) > 1:
        raise SdaError(f"{image} has two labels, {files[0]} and {files[1]}: remove one, or name their suffix in the layout")
    return files[0] if files else None


def _keyed(root: Path, paths: Iterable[Path]) -> list[tuple[str, Path]]:
    """Return (key, path), sorted. A key is the path relative to the root with composed accents: the same on every machine.

    If two stored names differ only in how their accents are stored, one of them keeps its name as stored.
    """
    keyed: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (composed(str(path)) != str(path), path)):
        stored = path.relative_to(root).as_posix()
        key = composed(stored)
        keyed[stored if key in keyed else key] = path
    return sorted(keyed.items())


def _without_maps(listing: Listing, title: str) -> Listing:
    """Return a listing with its maps apart from its images, and with a note on them."""
    maps = find_maps(listing.items)
    if not maps:
        return listing
    key, photo = next(iter(maps.items()))
    note = (
        f"{title}: {len(maps)} files are not used as images, such as {key}: it looks like a label or depth map of {photo}; move "
        "such files to a folder of their own if they are images"
    )
    return replace(listing, items=[item for item in listing.items if item.key not in maps], maps=maps, notes=(note,))


def _unread(tree: Tree, words: dict[str, str], chosen: Listing, found: list[Listing], labels: list[Pattern]) -> list[str]:
    """Return notes on images that are not read: only their suffix differs from the chosen layout, or only another one matches."""
    layout = chosen.layout
    assert layout is not None
    read = {os.path.splitext(item.key)[0] for item in chosen.items}
    files = {os.path.realpath(item.image) for item in chosen.items} if len(found) > 1 else set()
    stem, suffix = os.path.splitext(layout.images)
    others: list[tuple[list[Item], str]] = []
    if layout.list is None and not layout.lists_images and suffix.lower() in IMAGE_SUFFIXES:
        items, _ = _pair(tree, Pattern(stem + ".{ext}", words), None, words, labels)
        others.append((items, f"have another suffix than the layout: to read them, write images = {stem + '.{ext}'!r}"))
    for other in found:
        if other.layout and other.layout.images != layout.images:
            what = f"match only the layout with images = {other.layout.images!r}"
            why = f"only the first layout that finds labels is read, the one with images = {layout.images!r}"
            others.append((other.items, f"{what}: {why}, {len(chosen.items)} images; write one layout for both, or move files"))
    notes = []
    for items, why in others:
        left = [item for item in items if os.path.splitext(item.key)[0] not in read]
        left = [replace(item, label=None) for item in left if os.path.realpath(item.image) not in files]
        maps = find_maps([*chosen.items, *left])
        if left := [item for item in left if item.key not in maps]:
            notes.append(f"{len(left)} images, such as {left[0].key}, are not read, because they {why}")
            read |= {os.path.splitext(item.key)[0] for item in left}
    return notes


def _other_forms(tree: Tree, chosen: Listing) -> list[str]:
    """Return notes on files that seem to be labels of images without a label, in another form or folder than the layout reads.

    They lie beside the images or the labels, or in a folder whose name tells labels, at the top or in a folder at the top.
    """
    lone: dict[str, set[Path]] = {}  # name of an image without a label → its folders
    for image in [item.image for item in chosen.items if not item.label]:
        for name in (image.stem, image.name):
            lone.setdefault(name, set()).add(image.parent)
    if not lone or not chosen.layout or not chosen.layout.labels:
        return []
    known = {path for item in chosen.items for path in (item.image, *item.label_files)} | {*chosen.empty.values()}
    photos = {item.image.parent for item in chosen.items}
    folders = {item.label.parent for item in chosen.items if item.label} - photos
    tops = [tree.root / stored for every in tree.folders(tree.root).values() for stored in every]
    for place in [tree.root, *tops[:MOST_TOPS]]:
        for name, every in tree.folders(place).items():
            if re.search("(?i)mask|label|annot|segmentation", name) and not re.search("(?i)instance|object|colou?r|depth", name):
                folders |= {place / stored for stored in every}
    found: dict[tuple[Path, str], list[Path]] = {}
    for folder in sorted(folders | photos):
        for name, stored in tree.files(folder).items():
            (stem, suffix), path = os.path.splitext(name), folder / stored[0]
            near = stem in lone and (folder in lone[stem] or folder not in photos)
            if near and path not in known and (suffix.lower() in _SUFFIXES or (is_image(name) and folder not in photos)):
                found.setdefault((folder, suffix.lower()), []).append(path)
    notes = []
    for paths in found.values():
        sample = paths[:: -(-len(paths) // _FEW)]
        forms = [FORMS[form].title for path in sample if (form := form_of(path))]
        what = forms[0] if forms else "mask" if all(map(is_flat, sample)) else ""
        if what:
            notes.append(
                f"{len(paths)} {what} files, such as {paths[0].relative_to(tree.root)}, have the names of images without a "
                f"label but are not read: the layout reads {chosen.layout.labels!r}; bring all labels into one form and one "
                "folder, for example by exporting them again from the annotation program"
            )
    return notes


def _nothing(descriptor: Descriptor, root: Path, split: str, tried: list[str], get: str) -> str:
    """Return the message for a split without images."""
    if not tried:
        return (
            f"{descriptor.title}: no layout of its descriptor has a split {split!r}; choose another split, or add a [[layout]] "
            f'with split = "{split}"'
        )
    looked = " and ".join(dict.fromkeys(tried))
    return f"{descriptor.title}: no images of split {split!r} in {root}: looked for {looked}{'' if descriptor.generated else get}"


def list_splits(descriptor: Descriptor, root: Path, splits: Sequence[str] = ("train", "val")) -> dict[str, Listing]:
    """List the given splits that have images below `root`.

    Raises:
        SdaError: as `list_items`.
        NoImages: none of the splits has images.
    """
    listings, errors = {}, []
    for split in splits:
        try:
            listings[split] = list_items(descriptor, root, split)
        except NoImages as error:
            errors.append(error)
    if not listings:
        raise errors[0]
    return listings


def find_orphans(descriptor: Descriptor, root: Path, split: str, listing: Listing) -> list[str]:
    """Return the label files of the listing's layout that belong to none of its images, relative to the root."""
    layout = listing.layout
    if layout is None or layout.labels is None or layout.list is not None:
        return []  # the list may name only some of the labelled images
    if layout.format in SHARED:
        return list(listing.missing)
    words = {"split": descriptor.splits.get(split, split)}
    images, pattern = Pattern(layout.images, words), Pattern(layout.labels, words)
    used = {path for item in listing.items for path in (item.image, *item.label_files)} | {*listing.empty.values()}
    paths = [path.relative_to(root).as_posix() for path, _ in pattern.find(Tree(root)) if path not in used]
    return sorted(path for path in paths if pattern.literal > images.literal or images.match(path) is None)


def list_folder(folder: Path) -> Listing:
    """List every image in a folder and the folders below it, without labels and without maps of other images."""
    if not folder.is_dir():
        raise SdaError(f"{folder}: no such folder of unlabelled images; give an existing one")
    found = _keyed(folder, (place / name for place, names in walk(folder) for name in names if is_image(name)))
    if not found:
        raise SdaError(f"{folder}: contains no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give another folder")
    return _without_maps(Listing([Item(key, path, None) for key, path in found], "ids"), str(folder))


def walk(folder: Path, left_out: Callable[[Path, str], object] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and all folders below it, each with the names of its files. Skip hidden ones, pipes, sockets and devices.

    Links to folders are followed once, except to a folder that contains `folder`.

    Args:
        left_out: called with the path of a folder or file that is left out although it is not hidden, and the reason. By default,
            a folder that cannot be read raises SdaError.
    """

    def leave_out(path: Path, reason: str) -> None:
        if left_out and path.name[0] != ".":
            left_out(path, reason)

    def unreadable(error: OSError) -> None:
        leave_out(Path(error.filename), f"this folder cannot be read ({error.strerror})") if left_out else no_access(error)

    top, seen, waiting = Path(os.path.realpath(folder)), set(), [folder]
    while waiting:
        place = waiting.pop()
        if (real := os.path.realpath(place)) in seen:
            continue
        if real != str(top) and top.is_relative_to(real):
            leave_out(place, f"a link to {real}, a folder that contains it")
            continue
        seen.add(real)
        folders, names = entries_of(place, unreadable, lambda path: leave_out(path, "a pipe, socket or device"))
        yield place, [name for name in names if name[0] != "."]
        waiting += [place / name for name in reversed(folders) if name[0] != "."]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        return no_access(error)


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        return no_access(error)
