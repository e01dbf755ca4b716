"""`sda init-dataset`: propose a descriptor for a folder, as TOML for the user to edit."""

import json
import re
from pathlib import Path

from sda import shelf
from sda.data import descriptor as descriptors
from sda.data.inspect.classes import propose_classes
from sda.data.inspect.draft import Draft, propose_layouts
from sda.data.inspect.pairs import find_files, pair_files, spread
from sda.data.inspect.scan import Finding, look_at
from sda.data.item import Item
from sda.data.layouts.pattern import IMAGE_SUFFIXES, is_image
from sda.data.layouts.words import SPLITS
from sda.data.listing import NoImages, list_items, walk
from sda.errors import SdaError

SAMPLES = 24  # number of label files whose values are read


def propose(root: Path) -> tuple[str, list[str]]:
    """Propose a descriptor for the images and labels in `root`.

    Returns:
        The TOML text, and notes on the guesses.

    Raises:
        SdaError: `root` is not a folder, cannot be read, or contains no images.
    """
    if not root.is_dir():
        raise SdaError(f"{root}: {'a file, not a folder' if root.exists() else 'no such folder'}")
    files = find_files(root)
    photos = [folder / name for folder, names in files.photos.items() for name in names]
    if not photos and not files.labels:
        raise SdaError(f"{root}: contains no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give the folder of the dataset")
    notes: list[str] = []
    pairs = pair_files(files, notes)
    if not pairs:
        notes.append("no label files match the images: this describes images without labels")
        if files.labels and photos:
            folder, kinds = next(iter(files.labels.items()))
            label = folder / next(iter(kinds[0]))
            notes.append(f"{label} looks like a label, but no image has its name; upper and lower case must agree, too")
        if unread := _namesakes(root, photos):
            notes.append(
                f"{unread[0]} has the name of an image but is not read ({len(unread)} such files): convert labels to PNG"
            )
        if not photos:
            notes.append("every file looks like a label: give the folder that holds the photos, too")
    images = photos or [folder / name for folder, kinds in files.labels.items() for kind in kinds for name in kind]
    draft = propose_layouts(pairs or [(image, None) for image in images], photos)
    notes += _left_out(root, draft, photos, pairs)
    items = [Item(str(image), root / image, root / label) for image, label in spread(pairs, SAMPLES)]
    return _toml(root, draft, [look_at(item) for item in items], notes), notes


def _namesakes(root: Path, images: list[Path]) -> list[Path]:
    """Return the files that have the name of an image and another suffix, or none, which is not that of an image."""
    stems = {image.stem for image in images}
    files = (folder / name for folder, names in walk(root) for name in names if not is_image(name))
    return [path.relative_to(root) for path in files if path.stem in stems]


def _left_out(root: Path, draft: Draft, photos: list[Path], pairs: list[tuple[Path, Path]]) -> list[str]:
    """Return notes on the images and pairs in `root` that the proposed layouts do not read."""
    known = {"title": _title(root), "classes": {"any": [0, 0, 0]}, "splits": draft.renamed, "layout": draft.layouts}
    described = shelf.check(descriptors.Descriptor, known, str(root))
    notes: list[str] = []
    read: dict[Path, Path | None] = {}
    maps: set[Path] = set()
    for split in dict.fromkeys(SPLITS.values()):
        try:
            listing = list_items(described, root, split)
        except NoImages:
            if split == "train":
                notes.append("no images of train were found: name the folder to train on in splits, as in splits = {train = ...}")
            continue
        except SdaError as error:
            return [str(error)]
        of_split = {item.image: item.label for item in listing.items}
        read |= of_split
        maps |= {root / key for key in listing.maps}
        notes += [*listing.notes, *(_on_labels(split, of_split, root) if pairs else [])]
    unread = [path for path in photos if root / path not in read and root / path not in maps]
    wrong = [image for image, label in pairs if read.get(root / image, root / label) != root / label]
    if unread:
        part = f"only {len(photos) - len(unread) - len(maps)} of {len(photos) - len(maps)} images are read"
        if any(" are not read, because " in note for note in notes):
            notes.append(part)
        else:
            where = f"{part}; the others, such as {unread[0]}, are in no layout"
            notes.append(f"{where}: if they have no labels, give their folder to --unlabelled, else add a [[layout]]")
    if wrong:
        notes.append(f"the layouts give {len(wrong)} images no label or a wrong one, such as {wrong[0]}: edit their labels =")
    return notes


def _on_labels(split: str, labels: dict[Path, Path | None], root: Path) -> list[str]:
    """Return notes on the images of a split that have no label although other images have one, and on labels of test."""
    without = [image.relative_to(root) for image, label in labels.items() if label is None]
    notes = []
    if without and (split == "val" or len(without) < len(labels)):
        notes.append(f"{len(without)} of {len(labels)} images of {split} have no label, such as {without[0]}")
    if split == "test" and len(without) < len(labels):
        notes.append(
            f"{len(labels) - len(without)} images of test have labels: training does not use them; sda doctor FILE.toml --split "
            "test checks them, and sda eval RUN --dataset FILE.toml --split test scores on them"
        )
    return notes


# The TOML text


def _toml(root: Path, draft: Draft, findings: list[Finding], notes: list[str]) -> str:
    title = _title(root)
    head = [
        "# Proposed by sda init-dataset: edit the lines marked with ?, then check the files against it:",
        "# sda doctor THIS.toml --root DIR",
        f"title = {_text(title)}",
        'licence = "?"',
    ]
    classes, tables, encoding = propose_classes(findings, notes)
    renamed = ", ".join(f"{split} = {_text(name)}" for split, name in draft.renamed.items())
    sections = [[*head, *classes, *([f"splits = {{{renamed}}}"] if renamed else [])], *tables]
    for layout in draft.layouts:
        lines = [f"{key} = {_text(value)}" for key, value in layout.items()]
        sections.append(["[[layout]]", *lines, *(encoding if "labels" in layout else [])])
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _title(root: Path) -> str:
    """Return the name of the folder; bytes that are not UTF-8 become ?."""
    return root.resolve().name.encode(errors="replace").decode()


def _text(value: str) -> str:
    """Return a text in TOML. Raise SdaError if it has bytes that are not UTF-8."""
    if re.search("[\ud800-\udfff]", value):
        raise SdaError(f"the names of the files, {value!r}, are not UTF-8, so no descriptor can hold them; rename the files")
    return json.dumps(value, ensure_ascii=False)
