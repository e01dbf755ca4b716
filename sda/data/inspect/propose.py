"""`sda init-dataset`: propose a descriptor for a folder, as TOML for the user to edit."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from sda import shelf
from sda.data import descriptor as descriptors
from sda.data.inspect.classes import count_label_values, propose_classes
from sda.data.inspect.scan import Finding, look_at
from sda.data.item import Item
from sda.data.layouts.maps import beginnings
from sda.data.layouts.pattern import IMAGE_SUFFIXES, Pattern, Tree, composed, is_image
from sda.data.listing import NoImages, list_items, walk
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
SPECIAL = re.compile("[{}*\ud800-\udfff]")  # what a pattern cannot hold: braces are words, and TOML is UTF-8
SAMPLES = 24  # number of label files whose values are read
MOST_LAYOUTS = 8
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
        if labels:
            folder, endings = next(iter(labels.items()))
            label = next(name for name in folders[folder] if name.endswith(endings[0]))
            notes.append(f"{folder / label} looks like a label, but no image has its name; upper and lower case must agree, too")
        if unread := _namesakes(root, folders):
            notes.append(
                f"{unread[0]} has the name of an image but is not read ({len(unread)} such files): convert labels to PNG"
            )
    layouts = _layouts(images, pairs)
    photos = [folder / name for folder, names in images.items() for name in names if not name.endswith(_endings(labels, folder))]
    notes += _left_out(root, layouts, photos, pairs)
    items = [Item(str(image), root / image, root / label) for image, label in _spread(pairs, SAMPLES)]
    return _toml(root, layouts, [look_at(item) for item in items], notes), notes


def _namesakes(root: Path, images: dict[Path, list[str]]) -> list[Path]:
    """Return the files that have the name of an image and another suffix, or none, which is not that of an image."""
    stems = {Path(name).stem for names in images.values() for name in names}
    files = (folder / name for folder, names in walk(root) for name in names if not is_image(name))
    return [path.relative_to(root) for path in files if path.stem in stems]


def _folders(root: Path) -> dict[Path, list[str]]:
    """Map folders, relative to the root, to the sorted names of their images. Skip hidden files and folders."""
    folders = {}
    for folder, names in walk(root):
        if files := list(filter(is_image, names)):
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
    """Group names by what follows their last digit: `a_0001_gtFine_labelIds.png` → `_gtFine_labelIds.png`.

    Without a digit, it is what follows the longest beginning that a name shares with another one, if several names end so.
    """
    shared = Counter(beginning for name in names for beginning in beginnings(Path(name).stem))
    words = {}
    for name in names:
        stem = Path(name).stem
        beginning = next((shorter for shorter in beginnings(stem)[1:] if shared[shorter] > 1), stem)
        words[name] = re.split("[0-9]", stem)[-1] if re.search(r"\d", stem) else stem[len(beginning) :]
    counts = Counter(words.values())
    groups = defaultdict(list)
    for name, word in words.items():
        groups[(word if counts[word] > 1 or re.search(r"\d", name) else "") + Path(name).suffix].append(name)
    return groups


def _endings(labels: dict[Path, list[str]], folder: Path) -> tuple[str, ...]:
    """Return the endings of the labels in a folder."""
    return tuple(labels.get(folder, ()))


def _holds_photos(names: list[str], label_endings: list[str]) -> bool:
    """Return whether a folder with labels also contains photos."""
    return any(not name.endswith(tuple(label_endings)) for name in names)


def _pair(
    images: dict[Path, list[str]], folders: dict[Path, list[str]], labels: dict[Path, list[str]]
) -> list[tuple[Path, Path]]:
    """Pair each image with the label whose name begins in the same way, in the label folder most similar to the image's."""
    pairs = []
    for folder, names in images.items():
        photos = [name for name in names if not name.endswith(_endings(labels, folder))]
        best = []
        for other, endings in labels.items():
            words: dict[str, list[str]] = defaultdict(list)  # the same ending may have several suffixes
            for ending in endings:
                words[ending.removesuffix(Path("x" + ending).suffix)].append(ending)
            for rank, kind in enumerate(words.values()):
                stems = {composed(name[: -len(end)]): name for end in kind[::-1] for name in folders[other] if name.endswith(end)}
                found = {name: _beginning(composed(Path(name).stem), stems) for name in photos}
                matched = _without_doubles({name: stem for name, stem in found.items() if stem is not None})
                if matched:
                    fit = (2 * len(matched) >= len(photos), _likeness(folder, other), len(matched), -rank)
                    best.append((fit, other, stems, matched))
        if best:
            _, other, stems, matched = max(best, key=lambda entry: entry[0])
            pairs += [(folder / name, other / stems[stem]) for name, stem in matched.items()]
    return pairs


def _without_doubles(matched: dict[str, str]) -> dict[str, str]:
    """Drop images such as `1_depth.png` that have the same label as `1.png`: they were made from it."""
    labelled = {(composed(Path(name).stem), stem) for name, stem in matched.items()}
    return {
        name: stem
        for name, stem in matched.items()
        if not any((shorter, stem) in labelled for shorter in beginnings(composed(Path(name).stem))[1:])
    }


def _beginning(stem: str, stems: dict[str, str]) -> str | None:
    """Return the longest of `stems` that `stem` begins with; whole words such as _leftImg8bit may follow."""
    numbered = bool(re.search(r"\d", stem))  # then the beginning must contain a digit, too
    fitting = (shorter for shorter in beginnings(stem) if shorter == stem or not numbered or re.search(r"\d", shorter))
    return next((shorter for shorter in fitting if shorter in stems), None)


def _likeness(first: Path, second: Path) -> int:
    """Return how many parts two folders share; names of splits weigh most."""
    shared = set(first.parts) & set(second.parts)
    return len(shared) + 10 * len({part for part in shared if part.lower() in SPLITS})


def _layouts(images: dict, pairs: list[tuple[Path, Path]]) -> list[tuple[str, str | None]]:
    """Return (images, labels) patterns that cover the pairs, or the images alone if there are no pairs; the largest first."""
    found: Sequence[tuple[Path, Path | None]] = pairs
    if not pairs:
        found = [(folder / name, None) for folder, names in images.items() for name in names]
    groups = defaultdict(list)
    for image, label in found:
        splits = [part.lower() in SPLITS for part in image.parts[:-1]]  # other folders beside those of splits are apart
        groups[(*splits, label and (len(label.parts), _ending(image.name, label.name)))].append((image, label))
    layouts: list[tuple[str, str | None]] = []
    for group in sorted(groups.values(), key=len, reverse=True)[:MOST_LAYOUTS]:
        labels = [label for _, label in group if label]
        image_parts, words = _generalise([image.parts[:-1] for image, _ in group])
        image_ending, label_ending = _ending(group[0][0].name, labels[0].name) if labels else ("", "")
        pattern = "/".join([*image_parts, "{frame}" + image_ending + _suffix([image for image, _ in group])])
        if not labels:
            layouts.append((pattern, None))
            continue
        label_parts = _in_words([label.parts[:-1] for label in labels], [image.parts[:-1] for image, _ in group], words)
        layouts.append((pattern, "/".join([*label_parts, "{frame}" + label_ending + _suffix(labels)])))
    return layouts


def _left_out(root: Path, layouts: list[tuple[str, str | None]], photos: list[Path], pairs: list[tuple[Path, Path]]) -> list[str]:
    """Return notes on the images and pairs in `root` that the proposed layouts do not read."""
    values = [{"images": images, "labels": labels} for images, labels in layouts]
    known = {"title": _title(root), "classes": {"any": [0, 0, 0]}, "splits": _renamed(root, layouts), "layout": values}
    described = shelf.check(descriptors.Descriptor, known, str(root))
    notes: list[str] = []
    read: dict[Path, Path | None] = {}
    for split in dict.fromkeys(SPLITS.values()):
        try:
            listing = list_items(described, root, split)
        except NoImages:
            continue
        except SdaError as error:
            return [str(error)]
        read |= {item.image: item.label for item in listing.items}
        read |= dict.fromkeys(root / key for key in listing.maps)
        notes += listing.notes
    unread = [path for path in photos if root / path not in read]
    wrong = [image for image, label in pairs if read.get(root / image, root / label) != root / label]
    if unread and not any(" are not read, because " in note for note in notes):
        where = f"{len(unread)} of {len(photos)} images are in no layout, such as {unread[0]}"
        notes.append(f"{where}: if they have no labels, give their folder to --unlabelled, else add a [[layout]]")
    if wrong:
        notes.append(f"{len(wrong)} labels are not found by the layouts, such as the one of {wrong[0]}: edit their labels =")
    return notes


def _generalise(folders: list[tuple[str, ...]]) -> tuple[list[str], dict[int, str]]:
    """Return the parts of a pattern, and position → word: parts that are equal everywhere stay, others become words."""
    parts: list[str] = []
    words: dict[int, str] = {}
    for position in range(len(folders[0])):
        values = {folder[position] for folder in folders}
        if all(value.lower() in SPLITS for value in values) and "split" not in words.values():
            words[position] = "split"
        elif len(values) > 1 or SPECIAL.search(folders[0][position]):
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


def _ending(image: str, label: str) -> tuple[str, str]:
    """Return how the names of an image and its label end after the beginning that they share, without suffixes."""
    first, second = composed(Path(image).stem), composed(Path(label).stem)
    shared = _beginning(first, {stem: stem for stem in beginnings(second)}) or first
    return first[len(shared) :], second[len(shared) :]


def _suffix(paths: Sequence[Path]) -> str:
    """Return the suffix of all paths, or {ext} if they have several."""
    suffixes = {path.suffix for path in paths}
    return ".{ext}" if len(suffixes) > 1 else suffixes.pop()


def _spread(things: list, count: int) -> list:
    """Return about `count` elements of a list, evenly spread."""
    return things[:: max(1, -(-len(things) // count))] if things else []


# The TOML text


def _toml(root: Path, layouts: list[tuple[str, str | None]], findings: list[Finding], notes: list[str]) -> str:
    title = _title(root)
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


def _title(root: Path) -> str:
    """Return the name of the folder; bytes that are not UTF-8 become ?."""
    return root.resolve().name.encode(errors="replace").decode()


def _text(value: str) -> str:
    """Return a text in TOML. Raise SdaError if it has bytes that are not UTF-8."""
    if re.search("[\ud800-\udfff]", value):
        raise SdaError(f"the names of the files, {value!r}, are not UTF-8, so no descriptor can hold them; rename the files")
    return json.dumps(value, ensure_ascii=False)


def _splits(root: Path, layouts: list[tuple[str, str | None]]) -> list[str]:
    """Return the `splits` line if the folders of the splits are not called train and val."""
    renamed = _renamed(root, layouts)
    return [f"splits = {{{', '.join(f'{split} = {_text(name)}' for split, name in renamed.items())}}}"] if renamed else []


def _renamed(root: Path, layouts: list[tuple[str, str | None]]) -> dict[str, str]:
    """Map splits to their folders if those have other names."""
    names: dict[str, str] = {}
    for images, _ in layouts:
        before, split, _ = images.partition("{split}")
        if split:
            found = Pattern(before + split, {}).find(Tree(root))
            folders = sorted(words["split"] for path, words in found if path.is_dir())
            names |= {SPLITS[name.lower()]: name for name in folders if name.lower() in SPLITS}
    return {split: name for split, name in names.items() if split != name}
