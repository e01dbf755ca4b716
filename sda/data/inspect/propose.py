"""`sda init-dataset`: propose a descriptor for a folder, as TOML for the user to edit."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from sda.data.inspect.classes import count_label_values, propose_classes
from sda.data.inspect.scan import Finding, look_at
from sda.data.item import Item
from sda.data.listing import IMAGE_SUFFIXES, walk
from sda.errors import SdaError

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
SAMPLES = 24  # number of label files whose values are read
FEW = 4  # number of files that decide what a folder contains


def propose(root: Path) -> tuple[str, list[str]]:
    """Propose a descriptor for the images and labels in `root`.

    Returns:
        The TOML text, and notes on the guesses.

    Raises:
        SdaError: `root` is not a folder, cannot be read, or contains no images.
    """
    if not root.is_dir():
        raise SdaError(f"{root}: {'a file, not a folder' if root.exists() else 'no such folder'}")
    folders = _folders(root)
    if not folders:
        raise SdaError(f"{root}: contains no images ({', '.join(sorted(IMAGE_SUFFIXES))}); give the folder of the dataset")
    labels = {folder: endings for folder, files in folders.items() if (endings := _label_endings(root / folder, files))}
    images = {folder: files for folder, files in folders.items() if folder not in labels or _holds_photos(files, labels[folder])}
    pairs = _pair(images, folders, labels)
    notes = []
    if not pairs:
        notes.append("no label files match the images: this describes images without labels")
    layouts = _layouts(images, pairs)
    items = [Item(str(image), root / image, root / label) for image, label in _spread(pairs, SAMPLES)]
    return _toml(root, layouts, [look_at(item) for item in items], notes), notes


def _folders(root: Path) -> dict[Path, list[str]]:
    """Map folders, relative to the root, to the sorted names of their images. Skip hidden files and folders."""
    folders = {}
    for folder, names in walk(root):
        files = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        if files:
            folders[folder.relative_to(root)] = files
    return folders


def _label_endings(folder: Path, names: list[str]) -> list[str]:
    """Return the endings of the names of label files in a folder, best first; empty if it contains none.

    A label has few values in large areas. If a folder holds several kinds (ids, colours, instances), each
    kind has its own ending.
    """
    found = []
    for ending, group in _by_ending(names).items():
        read = (count_label_values(folder / name) for name in _spread(group, FEW))
        values = [count for count in read if count is not None]
        if values and all(values):
            words = ending.lower()
            preferred = ("labelids" in words, "trainid" in words, "label" in words or "mask" in words)
            unwanted = "instance" in words or "color" in words or "colour" in words
            found.append(((not unwanted, *preferred, -max(values)), ending))
    return [ending for _, ending in sorted(found, reverse=True)]


def _by_ending(names: list[str]) -> dict[str, list[str]]:
    """Group names by what follows their last digit: `a_0001_gtFine_labelIds.png` → `_gtFine_labelIds.png`."""
    groups = defaultdict(list)
    for name in names:
        stem, suffix = Path(name).stem, Path(name).suffix
        groups[re.split("[0-9]", stem)[-1] + suffix if re.search(r"\d", stem) else suffix].append(name)
    return groups


def _holds_photos(names: list[str], label_endings: list[str]) -> bool:
    """Return whether a folder with labels also contains photos."""
    return any(not name.endswith(tuple(label_endings)) for name in names)


def _pair(
    images: dict[Path, list[str]], folders: dict[Path, list[str]], labels: dict[Path, list[str]]
) -> list[tuple[Path, Path]]:
    """Pair each image with the label whose name begins in the same way, in the label folder most similar to the image's."""
    pairs = []
    for folder, names in images.items():
        photos = [name for name in names if not name.endswith(tuple(labels.get(folder, ["\0"])))]
        best = []
        for other, endings in labels.items():
            for rank, ending in enumerate(endings):
                stems = {name[: -len(ending)]: name for name in folders[other] if name.endswith(ending)}
                matched = [(name, stem) for name in photos if (stem := _beginning(Path(name).stem, stems)) is not None]
                if matched:
                    fit = (2 * len(matched) >= len(photos), _likeness(folder, other), len(matched), -rank)
                    best.append((fit, other, stems, matched))
        if best:
            _, other, stems, matched = max(best, key=lambda entry: entry[0])
            pairs += [(folder / name, other / stems[stem]) for name, stem in matched]
    return pairs


def _beginning(stem: str, stems: dict[str, str]) -> str | None:
    """Return the longest of `stems` that `stem` begins with; whole words such as _leftImg8bit may follow."""
    numbered = bool(re.search(r"\d", stem))  # then the beginning must contain a digit, too
    beginnings = (shorter for shorter in _beginnings(stem) if shorter == stem or not numbered or re.search(r"\d", shorter))
    return next((shorter for shorter in beginnings if shorter in stems), None)


def _likeness(first: Path, second: Path) -> int:
    """Return how many parts two folders share; names of splits weigh most."""
    shared = set(first.parts) & set(second.parts)
    return len(shared) + 10 * len({part for part in shared if part.lower() in SPLITS})


def _layouts(images: dict, pairs: list[tuple[Path, Path]]) -> list[tuple[str, str | None]]:
    """Return (images, labels) patterns that cover the pairs, or the images alone if there are no pairs."""
    found: Sequence[tuple[Path, Path | None]] = pairs
    if not pairs:
        found = [(folder / name, None) for folder, names in images.items() for name in names]
    groups = defaultdict(list)
    for image, label in found:
        groups[len(image.parts), image.suffix, label and len(label.parts)].append((image, label))
    layouts: list[tuple[str, str | None]] = []
    for group in groups.values():
        labels = [label for _, label in group if label]
        image_parts, words = _generalise([image.parts[:-1] for image, _ in group])
        ending = _ending([image.name for image, _ in group], [label.name for label in labels])
        pattern = "/".join([*image_parts, "{frame}" + ending[0]])
        if not labels:
            layouts.append((pattern, None))
            continue
        label_parts = _in_words([label.parts[:-1] for label in labels], [image.parts[:-1] for image, _ in group], words)
        layouts.append((pattern, "/".join([*label_parts, "{frame}" + ending[1]])))
    return layouts


def _generalise(folders: list[tuple[str, ...]]) -> tuple[list[str], dict[int, str]]:
    """Return the parts of a pattern, and position → word: parts that are equal everywhere stay, others become words."""
    parts: list[str] = []
    words: dict[int, str] = {}
    for position in range(len(folders[0])):
        values = {folder[position] for folder in folders}
        if all(value.lower() in SPLITS for value in values) and "split" not in words.values():
            words[position] = "split"
        elif len(values) > 1 or re.search("[{}]", folders[0][position]):  # braces would be read as words
            words[position] = f"folder{len(words) + 1}"
        parts.append(f"{{{words[position]}}}" if position in words else folders[0][position])
    return parts, words


def _in_words(labels: list[tuple[str, ...]], images: list[tuple[str, ...]], words: dict[int, str]) -> list[str]:
    """Return the parts of the label's pattern, written with the words of the image's pattern."""
    parts = []
    for position in range(len(labels[0])):
        column = [label[position] for label in labels]
        word = next((word for place, word in words.items() if column == [image[place] for image in images]), None)
        parts.append(f"{{{word}}}" if word else _composed(column, images, words))
    return parts


def _composed(column: list[str], images: list[tuple[str, ...]], words: dict[int, str]) -> str:
    """Return a part that contains a word, such as {split}annot; else the part of the first label."""
    for place, word in words.items():
        shapes = {value.replace(image[place], f"{{{word}}}", 1) for value, image in zip(column, images, strict=True)}
        if len(shapes) == 1 and f"{{{word}}}" in (shape := shapes.pop()):
            return shape
    return column[0]


def _ending(images: list[str], labels: list[str]) -> tuple[str, str]:
    """Return the endings of image and label names, after the beginning that a pair shares."""
    if not labels:
        return Path(images[0]).suffix, ""
    endings: Counter[tuple[str, str]] = Counter()
    for image, label in zip(images, labels, strict=True):
        shared = _beginning(Path(image).stem, {stem: stem for stem in _beginnings(Path(label).stem)}) or Path(image).stem
        endings[image[len(shared) :], label[len(shared) :]] += 1
    return endings.most_common(1)[0][0]


def _beginnings(stem: str) -> list[str]:
    """Return a name, followed by what remains of it as words are removed from its end one by one."""
    beginnings = [stem]
    while (shorter := re.sub(r"[_.-]?[A-Za-z0-9]+$|[_.-]$", "", beginnings[-1])) != beginnings[-1] and shorter:
        beginnings.append(shorter)
    return beginnings


def _spread(things: list, count: int) -> list:
    """Return about `count` elements of a list, evenly spread."""
    return things[:: max(1, -(-len(things) // count))] if things else []


# The TOML text


def _toml(root: Path, layouts: list[tuple[str, str | None]], findings: list[Finding], notes: list[str]) -> str:
    title = root.resolve().name
    head = [
        "# Proposed by sda init-dataset: edit the lines marked with ?, then check the files against it:",
        "# sda doctor THIS.toml --root DIR",
        f"title = {_text(title)}",
        'licence = "?"',
    ]
    classes, tables, encoding = propose_classes(findings, notes)
    sections = [[*head, *classes, *_splits(root, layouts)], *tables]
    for images, labels in layouts:
        sections.append(["[[layout]]", f"images = {_text(images)}"])
        if labels:
            sections[-1] += [f"labels = {_text(labels)}", *encoding]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _splits(root: Path, layouts: list[tuple[str, str | None]]) -> list[str]:
    """Return the `splits` line if the folders of the splits are not called train and val."""
    names: dict[str, str] = {}
    for images, _ in layouts:
        before, split, _ = images.partition("{split}")
        if split:
            found = (path.name for path in root.glob(re.sub(r"{\w+}", "*", before) + "*") if path.is_dir())
            names |= {SPLITS[name.lower()]: name for name in sorted(found) if name.lower() in SPLITS}
    renamed = {split: name for split, name in names.items() if split != name}
    return [f"splits = {{{', '.join(f'{split} = {_text(name)}' for split, name in renamed.items())}}}"] if renamed else []
