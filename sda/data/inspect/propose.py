"""`sda init-dataset`: propose a descriptor for a folder, as TOML for the user to edit."""

import contextlib
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

from sda import shelf
from sda.data import descriptor as descriptors
from sda.data.annotations.forms import FORMS
from sda.data.inspect.annotated import Found, find_annotations, find_masks, names_in, propose_annotated
from sda.data.inspect.classes import Proposal, propose_classes, propose_names
from sda.data.inspect.draft import Draft, propose_layouts
from sda.data.inspect.pairs import Files, find_files, find_others, pair_files, spread
from sda.data.inspect.scan import Finding, look_at
from sda.data.item import Item
from sda.data.layouts.legends import read_legend
from sda.data.layouts.pattern import IMAGE_SUFFIXES, is_image
from sda.data.layouts.words import SPLITS
from sda.data.listing import NoImages, list_items, walk
from sda.data.splits.lists import read_keys
from sda.errors import SdaError

LICENCE = 'licence = "?"'
SAMPLES = 24  # number of label files whose values are read


class Proposed(NamedTuple):
    """A proposed descriptor.

    Attributes:
        text: TOML. notes: on the guesses.
        unread: what seems to be labels but is not understood, although no labels were found; else empty.
    """

    text: str
    notes: list[str]
    unread: list[str]


def propose(root: Path) -> Proposed:
    """Propose a descriptor for the images and labels in `root`.

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
    annotated: list[str] = []
    drawn = find_annotations(root, photos, annotated)
    masks = find_masks(root, files)
    pairs = [] if masks else pair_files(files, notes)
    best = next((found for found in [*([masks] if masks else []), *drawn] if found.drawn), None)
    if best and best.form != "coco-panoptic" and 2 * len(pairs) >= best.drawn:
        best = None
    for found in drawn:
        if found is not best and found.drawn:
            other = FORMS[best.form].title if best and best.form else "masks"
            notes.append(f"{found.drawn} images have {found.what} annotations, too, which are not read: {other} are proposed")
        elif found.empty and not found.drawn:
            notes.append(f"{len(found.empty)} images have {found.what} annotations without an object: none is annotated yet")
        if found.lost and (best or pairs):
            notes.append(f"{len(found.lost)} {found.what} files belong to no image, or are not needed, such as {found.lost[0]}")
    if best:
        notes += annotated
        draft = _with_list(root, propose_annotated(best, photos), notes)
        findings = _look_at(root, draft)
        if findings and all(finding.label_fault for finding in findings):
            fault = findings[0].label_fault
            return Proposed("", notes, [f"{len(best.pairs)} images have {best.what} annotations that cannot be used: {fault}"])
        classes = propose_names(*names_in(root, best, notes), findings, notes)
        text = _toml(root, draft, classes, notes)
        described = shelf.check(descriptors.Descriptor, tomllib.loads(text), str(root))
        pairs = [(image, path) for image, path in best.pairs if image not in best.empty] if best.form else []
        return Proposed(text, [*notes, *_left_out(root, described, photos, pairs)], [])
    unread = [] if pairs else [*_not_understood(root, photos, drawn, files), *annotated]
    if not pairs:
        notes.append("no label files match the images: this describes images without labels")
        if not photos:
            notes.append("every file looks like a label: give the folder that holds the photos, too")
    images = photos or [folder / name for folder, kinds in files.labels.items() for kind in kinds for name in kind]
    draft = _with_list(root, propose_layouts(pairs or [(image, None) for image in images], photos), notes)
    notes += _left_out(root, _described(root, draft), photos, pairs)
    if others := find_others(files, pairs):
        read = {item.image for item in _labelled(root, draft)}
        others = [(image, label) for image, label in others if root / image not in read]
    if others:
        (image, label), (_, alike) = others[0], pairs[0]
        notes.append(
            f"{len(others)} images have labels with other names, which are not read, such as {image}: {label}; give them names "
            f"like {alike}"
        )
    findings = [look_at(Item(str(image), root / image, root / label)) for image, label in spread(pairs, SAMPLES)]
    legends = [
        place / name for place, names in walk(root) for name in names if Path(name).suffix.lower() in (".txt", ".csv", ".json")
    ]
    classes = propose_classes(findings, notes, read_legend(sorted(legends), notes) if pairs else {})
    return Proposed(_toml(root, draft, classes, notes), notes, unread)


def _look_at(root: Path, draft: Draft) -> list[Finding]:
    """Read some of the labels that the layouts find."""
    return [look_at(item) for item in spread(_labelled(root, draft), SAMPLES)]


def _labelled(root: Path, draft: Draft) -> list[Item]:
    """Return the images of all splits to which the layouts give a label."""
    labelled = []
    for split in dict.fromkeys(SPLITS.values()):
        with contextlib.suppress(SdaError):  # another function tells
            labelled += [item for item in list_items(_described(root, draft), root, split).items if item.label]
    return labelled


def _not_understood(root: Path, photos: list[Path], drawn: list[Found], files: Files) -> list[str]:
    """Return lines on the files that seem to be labels of the images: how many of each kind, and what to do."""
    lines = []
    for found in drawn:
        if found.lost:
            lines.append(
                f"{len(found.lost)} {found.what} files name no image in this folder, such as {found.lost[0]}: give the folder "
                "that holds the images, too, with the names that the files give them"
            )
    if files.labels and photos:
        count = sum(len(kind) for kinds in files.labels.values() for kind in kinds)
        folder, kinds = next(iter(files.labels.items()))
        lines.append(
            f"{count} files look like labels, such as {folder / next(iter(kinds[0]))}, but no image has their names; upper and "
            "lower case must agree, too"
        )
    told = {path for found in drawn for path in [*found.lost, *(file for _, file in found.pairs)]} | {
        folder / name for folder, kinds in files.labels.items() for kind in kinds for name in kind
    }
    stems = {name for photo in photos for name in (photo.stem, photo.name)}
    others: dict[str, list[Path]] = {}
    for place, names in walk(root):
        for path in (Path(name) for name in names if not is_image(name)):
            relative = place.relative_to(root) / path
            if relative not in told and (path.stem in stems or path.name in stems or path.suffix.lower() in _COMPANIONS):
                others.setdefault(path.suffix.lower(), []).append(relative)
    for suffix, paths in others.items():
        kind = f"{suffix} files" if suffix else "files without a suffix"
        lines.append(
            f"{len(paths)} {kind}, such as {paths[0]}, are not understood: if they are labels, convert them to PNG or to one of "
            f"the forms that are read ({', '.join(form.title for form in FORMS.values())}, .npy, .mat)"
        )
    return lines


# Suffixes of files that may hold labels.
_COMPANIONS = {
    *(".json", ".ndjson", ".jsonl", ".xml", ".csv", ".mat", ".npy", ".npz", ".gif"),
    *(".parquet", ".pkl", ".h5", ".hdf5", ".tfrecord"),
}


def _with_list(root: Path, draft: Draft, notes: list[str]) -> Draft:
    """Return layouts with the lists of a split, such as train.txt, if the folder has some and paths do not tell the split."""
    if any("{split}" in path or key == "split" for layout in draft.layouts for key, path in layout.items()):
        return draft
    found: dict[Path, dict[str, str]] = {}  # folder → name of the list → split
    for place, names in walk(root):
        for name in names:
            stem = Path(name).stem
            if Path(name).suffix.lower() == ".txt" and (split := SPLITS.get(stem.lower(), "train" if stem == "default" else "")):
                found.setdefault(place, {})[stem] = split
    with contextlib.suppress(SdaError):
        items = list_items(_described(root, draft), root, "train").items
        for place in sorted(found, key=lambda place: (-len(found[place]), "segmentation" not in place.name.lower(), place)):
            try:
                for stem in found[place]:
                    read_keys(place / f"{stem}.txt", items)
            except SdaError as error:
                notes.append(f"this looks like a list of images, but is not used: {error}")
                continue
            pattern = f"{place.relative_to(root).as_posix()}/{{split}}.txt".removeprefix("./")
            renamed = {split: stem for stem, split in found[place].items() if stem != split}
            return Draft([{**layout, "list": pattern} for layout in draft.layouts], {**draft.renamed, **renamed})
    return draft


def _left_out(root: Path, described: descriptors.Descriptor, photos: list[Path], pairs: list[tuple[Path, Path]]) -> list[str]:
    """Return notes on the images and pairs in `root` that the proposed layouts do not read."""
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
            notes.append(
                f"{where}: if they have no labels, give their folder to --unlabelled, else move them to folders like those of "
                "the others"
            )
    if wrong:
        notes.append(f"the layouts give {len(wrong)} images no label or a wrong one, such as {wrong[0]}: edit their labels =")
    return notes


def _described(root: Path, draft: Draft) -> descriptors.Descriptor:
    """Return a descriptor with the proposed layouts, without its classes."""
    known = {"title": _title(root), "classes": {"any": [0, 0, 0]}, "splits": draft.renamed, "layout": draft.layouts}
    return shelf.check(descriptors.Descriptor, known, str(root))


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


def _toml(root: Path, draft: Draft, proposal: Proposal, notes: list[str]) -> str:
    title = _title(root)
    head = [
        "# Proposed by sda init-dataset: edit the lines marked with ?, then check the files against it:",
        "# sda doctor THIS.toml --root DIR",
        f"title = {_text(title)}",
        LICENCE,
    ]
    classes, tables, encoding = proposal
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
    return shelf.toml_value(value)
