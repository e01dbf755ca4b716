"""Propose the layouts of a descriptor: patterns for the pairs of image and label that were found."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sda.data.inspect.pairs import endings
from sda.data.layouts.pattern import Pattern, composed
from sda.data.layouts.words import SPLITS, divide, split_in

_SPECIAL = re.compile("[{}*\ud800-\udfff]")  # what a pattern cannot hold: braces are words, and TOML is UTF-8
_MOST = 8  # layouts

Pair = tuple[Path, Path | None]


@dataclass(frozen=True)
class Draft:
    """Proposed layouts.

    Attributes:
        layouts: the keys of each [[layout]], the largest first.
        renamed: split → its name in the paths, for splits with another name.
    """

    layouts: list[dict[str, str]]
    renamed: dict[str, str]


def propose_layouts(pairs: Sequence[Pair], photos: Iterable[Path] = ()) -> Draft:
    """Return layouts that cover pairs of image and label, or images without labels. Paths are relative to the root.

    Args:
        photos: all photos, to find the names of splits without labels.
    """
    in_names = any(SPLITS.get(_split_of_name(image).lower()) == "train" for image, _ in pairs)
    groups: dict[tuple, list[Pair]] = defaultdict(list)
    for stored, of_it in pairs:
        image, label = Path(composed(str(stored))), of_it and Path(composed(str(of_it)))
        found = (split_in(part) for part in image.parts[:-1])
        shape = tuple(each and (each[0], each[2]) for each in found)  # other folders beside those of splits are apart
        names: tuple[str, str | None] = endings(image.stem, label.stem) if label else ("{frame}", None)
        if in_names and not any(shape) and (split := _split_of_name(image)):
            names = _with_split(names[0], image, split), _with_split(names[1], label, split) if names[1] and label else None
        groups[(shape, label and len(label.parts), names)].append((image, label))
    layouts: list[dict[str, str]] = []
    splits: Counter[str] = Counter()
    ordered = sorted(groups.items(), key=lambda entry: (len(entry[1]), any(entry[0][0])), reverse=True)
    for (_, _, names), group in ordered[:_MOST]:
        if layout := _layout(group, names, splits):
            layouts.append(layout)
            continue
        parts = defaultdict(list)  # no pattern gives the folders of these labels from those of their images
        for image, label in group:
            parts[label and label.parent, tuple(map(split_in, image.parts[:-1]))].append((image, label))
        layouts += [layout for part in parts.values() if (layout := _layout(part, names, splits, literal=True))]
    shapes = {tuple(part.split("{split}")) for layout in layouts for part in layout["images"].split("/")[:-1]}
    for part in sorted({part for folder in {photo.parent for photo in photos} for part in folder.parts}):
        if (word := split_in(part)) and (word[0], word[2]) in shapes and word[1] not in splits:
            splits[word[1]] = 0
    renamed = {SPLITS[word.lower()]: word for word, _ in reversed(splits.most_common())}
    return Draft(layouts[:_MOST], {split: renamed[split] for split in SPLITS.values() if renamed.get(split, split) != split})


def _layout(
    group: list[Pair], names: tuple[str, str | None], splits: Counter[str], literal: bool = False
) -> dict[str, str] | None:
    """Return the layout of pairs whose names have these patterns; None if a folder of labels does not follow from the image's.

    Args:
        splits: names of splits → images; updated.
        literal: all images are of one split: keep its name in the patterns.
    """
    images, labels = [image for image, _ in group], [label for _, label in group if label]
    image_name, label_name = names
    parts, words = _generalise([image.parts[:-1] for image in images], literal)
    if "{split}" in image_name:
        words["split"] = [_split_of_name(image) for image in images]
    if len(stems := {image.stem for image in images}) == 1 and label_name and "{" not in label_name:
        image_name = stems.pop()
    layout = {"images": "/".join([*parts, image_name + _suffix(images)])}
    if label_name is not None:
        folders = [_in_words(column, words) for column in zip(*(label.parts[:-1] for label in labels), strict=True)]
        if None in folders:
            return None
        layout["labels"] = "/".join([*filter(None, folders), label_name + _suffix(labels)])
    splits.update(words.get("split", []))
    if literal and (split := next((found[1] for part in images[0].parts[:-1] if (found := split_in(part))), "")):
        return {"split": SPLITS[split.lower()], **layout}
    return layout


def _split_of_name(path: Path) -> str:
    """Return the word of a split that the name of a file begins with, apart from words such as img; "" without one."""
    found = split_in(path.stem)
    return found[1] if found and found[2] and len(divide(found[0])) == 1 else ""


def _with_split(pattern: str, path: Path, split: str) -> str:
    """Return a pattern of a name with {split} at the beginning of its first word, if this fits the name, else unchanged."""
    between = re.sub(r"[^_.-].*", "", path.stem.partition(split)[2])
    for word in re.findall("{frame1?}", pattern):
        for new in ("{split}", f"{{split}}{between}{word}"):
            if Pattern(changed := pattern.replace(word, new), {"split": split}).match(path.stem):
                return changed
    return pattern


def _generalise(folders: list[tuple[str, ...]], literal: bool) -> tuple[list[str], dict[str, list[str]]]:
    """Return the parts of a pattern for folders, and word → its value in each of them.

    Parts that are equal everywhere stay, others become words; the words of splits do, too, if not `literal`.
    """
    parts: list[str] = []
    words: dict[str, list[str]] = {}
    for column in zip(*folders, strict=True):
        found = [split_in(part) for part in column]
        shapes = {f"{each[0]}{{split}}{each[2]}" for each in found if each} if all(found) else set()
        if len(shapes) == 1 and "split" not in words and not literal:
            words["split"] = [each[1] for each in found if each]
            parts.append(shapes.pop())
        elif len(set(column)) > 1 or _SPECIAL.search(column[0]):
            before, after = _common(column)
            word = f"folder{len(words) + 1}"
            words[word] = [part[len(before) : len(part) - len(after)] for part in column]
            parts.append(f"{before}{{{word}}}{after}")
        else:
            parts.append(column[0])
    return parts, words


def _common(names: Sequence[str]) -> tuple[str, str]:
    """Return the telling words that all names begin and end with, such as images_, if the rest of each name is in one piece."""
    divided = [divide(name) for name in names]
    ends = {(parts[0], parts[-1]) for parts in divided if len(parts) == 3}
    return ends.pop() if len(ends) == 1 and all(len(parts) == 3 for parts in divided) else ("", "")


def _in_words(column: Sequence[str], words: dict[str, list[str]]) -> str | None:
    """Return a part of the label's pattern, such as {split}annot, written with one of the words of the image's pattern.

    Args:
        column: the values of this part. If they are equal and contain no word, they stay; None if they differ.
    """
    for word, values in words.items():
        shapes = [
            {part[: at.start()] + f"{{{word}}}" + part[at.end() :] for at in re.finditer(re.escape(value), part)}
            for part, value in zip(column, values, strict=True)
        ]
        if common := set.intersection(*shapes):
            return max(common)
    return column[0] if len(set(column)) == 1 else None


def _suffix(paths: Sequence[Path]) -> str:
    """Return the suffix of all paths, or {ext} if they have several."""
    suffixes = {path.suffix for path in paths}
    return ".{ext}" if len(suffixes) > 1 else suffixes.pop()
