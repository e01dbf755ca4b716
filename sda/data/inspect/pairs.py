"""Find the label files in a folder by their content, and pair each image with its label by their names."""

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from sda.data.files import ARRAY_SUFFIXES, FileError, open_file, read_label
from sda.data.layouts.maps import beginnings
from sda.data.layouts.pattern import composed, is_image
from sda.data.layouts.words import SPLITS, divide, is_photo_word, own_words, rest, role_ending, split_in, tells_photo
from sda.data.listing import walk

_UNWANTED = re.compile("(?i)instance|colou?r|object|panoptic")  # if there are others, they are the ids of the classes
# Folders of photos with labels painted over them, as many programs write them.
_PAINTED = re.compile(r"(?i)visuali[sz]ation|overlay|blend|(^|[^a-z])vi[sz]([^a-z]|$)")
_FEW = 4  # number of files that decide whether files with the same kind of name are labels
_RARE = 50  # with more folders of labels, a folder is compared only with those that share a word which few folders have
_ALIKE = 8  # the same for files that are alone in their folders

_FLAT = 0.75  # share of the pixels of a label that equal their neighbour, 0 to 1
_FLAT_JPEG = 0.5  # the same for JPEG, which blurs borders; photos stay below it
_TELLING = re.compile(r"(?i)(^|[^a-z])(masks?|labels?|annot|seg|gt|truth|ground|semantic)")


@dataclass(frozen=True)
class Files:
    """The images in a dataset's folder, by folder, relative to it.

    Attributes:
        photos: folder → names of the images that are no labels.
        labels: folder → the kinds of labels in it (ids, colours, instances), the best to train on first; each maps the name of
            a label to its stem without the ending that is common to the kind.
    """

    photos: dict[Path, list[str]]
    labels: dict[Path, list[dict[str, str]]]


def find_files(root: Path) -> Files:
    """Find the photos and the labels in a folder. Skip hidden files and folders."""
    photos: dict[Path, list[str]] = {}
    labels: dict[Path, list[dict[str, str]]] = {}
    alike: dict[tuple[Path, str], list[int]] = defaultdict(list)
    for place, every in walk(root):
        folder, names = place.relative_to(root), [name for name in every if is_image(name) or _is_array(name)]
        if kinds := _label_kinds(root, folder, names, alike):
            labels[folder] = kinds
        if others := [name for name in names if is_image(name) and not any(name in kind for kind in kinds)]:
            photos[folder] = others
    painted = [folder for folder in photos if _PAINTED.search(folder.name)]
    if len(painted) < len(photos):
        for folder in painted:
            del photos[folder]
    return Files(photos, labels)


def _is_array(name: str) -> bool:
    return Path(name).suffix.lower() in ARRAY_SUFFIXES


def pair_files(files: Files, notes: list[str]) -> list[tuple[Path, Path]]:
    """Pair each image with the label that has the same name, apart from telling words and what follows the image's name.

    The labels of a folder are those in the folder most similar to it: of the same split, with names that share words. Labels
    belong to one folder of images.

    Returns:
        (image, label), relative to the root. Adds notes on pairs that may be wrong.
    """
    where: dict[str, list[Path]] = defaultdict(list)
    for folder in files.labels:
        for trait in {"", *(trait for traits in _traits(folder) for trait in traits)}:
            where[trait].append(folder)
    claims: dict[Path, dict[Path, tuple]] = defaultdict(dict)  # label → folder of images that match it → how well
    pairs: list[tuple[Path, Path]] = []
    for folder, photos in files.photos.items():
        best: list[tuple] = []
        near = {other: likeness for other in _candidates(folder, where) if (likeness := _likeness(folder, other)) is not None}
        for other in sorted(near, key=lambda other: -near[other]):
            if best and best[0][0][0] and near[other] < best[0][0][1]:
                break  # a folder that is more similar has labels of most images
            for rank, kind in enumerate(files.labels[other]):
                if matched := _match(photos, kind, folder == other):
                    most, wanted = 2 * len(matched) >= len(photos), not _UNWANTED.search(other.as_posix())
                    best.append(((most, near[other], len(matched), wanted), -rank, other, matched))
            best.sort(key=lambda entry: entry[:2], reverse=True)
        if not best:
            continue
        fit, _, other, matched = best[0]
        for name, label in matched.items():
            pairs.append((folder / name, other / label))
            claims[other / label][folder] = fit[1], tells_photo(folder.name)
        if twins := [each for same, _, each, _ in best if same == fit and each != other]:
            notes.append(f"{folder} could have the labels in {other} or in {twins[0]}: the first is proposed; check that")
    owners = {label: max(folders, key=lambda folder: folders[folder]) for label, folders in claims.items()}
    kept = [(image, label) for image, label in pairs if owners[label] == image.parent]
    for folder, place in {image.parent: label for image, label in pairs if owners[label] != image.parent}.items():
        notes.append(
            f"{folder} and {owners[place]} have the same labels, such as {place}: it is proposed for the latter; check that"
        )
    return kept


def find_others(files: Files, pairs: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Return images without a label that would match one of another kind than that of the others, each with it."""
    paired, used = {image for image, _ in pairs}, {label for _, label in pairs}
    folders = {label.parent for label in used}
    found: list[tuple[Path, Path]] = []
    for folder, names in files.photos.items():
        lone = [name for name in names if folder / name not in paired]
        for place in sorted(folders & files.labels.keys()):
            for kind in files.labels[place]:
                left = {name: stem for name, stem in kind.items() if place / name not in used}
                if lone and left and (matched := _match(lone, left, folder == place)):
                    found += [(folder / image, place / label) for image, label in matched.items()]
                    lone = [name for name in lone if name not in matched]
    return found


def endings(image: str, label: str) -> tuple[str, str]:
    """Return the names of an image and its label, without suffixes, as patterns with {frame} and further words."""
    first, second = composed(image), composed(label)
    shared = _beginning(first, beginnings(second))
    if shared and (first == second or not rest(second[len(shared) :]) or rest(first) != rest(second)):
        return "{frame}" + first[len(shared) :], "{frame}" + second[len(shared) :]
    for shorter in _beginnings(first):
        for other in _beginnings(second):
            if (values := rest(shorter)) and values == rest(other):
                words = ["{frame}"] if len(values) == 1 else [f"{{frame{at}}}" for at in range(1, len(values) + 1)]
                return _filled(shorter, words) + first[len(shorter) :], _filled(other, words) + second[len(other) :]
    return first if is_photo_word(first) else "{frame}", second


def _filled(stem: str, words: list[str]) -> str:
    parts = divide(stem)
    parts[1::2] = words
    return "".join(parts)


def _label_kinds(root: Path, folder: Path, names: list[str], alike: dict[tuple[Path, str], list[int]]) -> list[dict[str, str]]:
    """Return the kinds of label files in a folder, best first. A label has few values in large areas.

    Args:
        alike: (parent folder, kind) → numbers of values of the only files of a kind in the folders of one parent, such as
            label.png of each scene: if the first ones agree, they decide for all. Updated.
    """
    found = []
    for kind, group in _by_kind(names).items():
        known = alike[folder.parent, kind] if len(group) == 1 else []
        counts = known
        if len(known) < _ALIKE or len(set(map(bool, known))) > 1:
            sample = (count_label_values(root / folder / name) for name in spread(list(group), _FEW))
            known += (counts := [count for count in sample if count is not None])
        if counts and all(counts):
            words = kind.lower()
            preferred = ("labelids" in words, "trainid" in words, "label" in words or "mask" in words)
            found.append(((not _UNWANTED.search(kind), *preferred, -max(counts)), kind, group))
    merged: dict[str, dict[str, str]] = defaultdict(dict)  # labels of one kind may have several suffixes
    for _, kind, group in sorted(found, key=lambda entry: entry[:2], reverse=True):
        merged[kind.removesuffix(Path("x" + kind).suffix)] |= group
    return list(merged.values())


def _by_kind(names: list[str]) -> dict[str, dict[str, str]]:
    """Group names by their telling words, what follows their last digit, and their suffix: `img_01_GT.png` → `img_{}_GT.png`.

    Without a digit and a telling word, what follows the longest beginning that a name shares with another one counts, if
    several names end so.

    Returns:
        Kind → name → the stem without its ending.
    """
    shared = Counter(beginning for name in names for beginning in beginnings(Path(name).stem))
    tails = {}
    for name in names:
        stem = Path(name).stem
        tail = re.split("[0-9]", stem)[-1] if re.search(r"\d", stem) else role_ending(stem)
        if tail[:1].isalpha() and len(parts := divide(stem)) > 1 and parts[-1]:  # 0a1b_mask: the letters belong to the number
            tail = parts[-1]
        tail = Path(stem).suffix if is_image(stem) else tail  # 1.jpg.png
        tail = tail if re.search("[^\\W_]", tail) else ""
        if not tail and stem[-1].isalpha() and len(divide(stem)) == 3 and not divide(stem)[0]:
            tail = stem[len(next((shorter for shorter in beginnings(stem)[1:] if shared[shorter] > 1), stem)) :]
        tails[name] = tail
    counts = Counter(tails.values())
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name, tail in tails.items():
        stem, suffix = Path(name).stem, Path(name).suffix
        if counts[tail] == 1 and not re.search(r"\d", stem) and (tail != role_ending(stem) or rest(tail)):
            tail = ""
        beginning = stem[: len(stem) - len(tail)]
        groups["{}".join(divide(beginning)[::2]) + tail + suffix][name] = composed(beginning)
    if max(map(len, groups.values()), default=0) > _FEW:  # then a word that occurs once is part of a name
        for kind in [kind for kind, group in groups.items() if len(group) == 1]:
            name = next(iter(groups.pop(kind)))
            groups["{}" + Path(name).suffix][name] = composed(Path(name).stem)
    return groups


def _match(photos: list[str], labels: dict[str, str], together: bool) -> dict[str, str]:
    """Return image → label. `labels`: see `Files`; `together`: they are in one folder."""
    stems = {name: composed(Path(name).stem) for name in photos}
    begins = {beginning: name for name, beginning in reversed(labels.items())}
    begins |= {composed(Path(name).stem): name for name in reversed(labels)}
    rests = {words: name for name, beginning in reversed(labels.items()) if (words := rest(beginning))}
    by_beginning = {name: begins.get(_beginning(stem, begins) or "") for name, stem in stems.items()}
    found = _without_doubles(by_beginning, stems)
    if len(found) < len(photos):
        by_rest = {
            name: next((rests[words] for shorter in _beginnings(stem) if (words := rest(shorter)) in rests), None)
            for name, stem in stems.items()
        }
        found = max(found, _without_doubles(by_rest, stems), key=len)
    if len(labels) == 1 and not any(map(rest, labels.values())):  # label.png beside image.png, or beside any only photo
        named = [name for name in photos if is_photo_word(stems[name])] or (photos if together else [])
        return dict.fromkeys(named, next(iter(labels))) if len(named) == 1 else found
    return found


def _without_doubles(matched: dict[str, str | None], stems: dict[str, str]) -> dict[str, str]:
    """Drop images without a label, and those such as `1_depth.png` with the label of `1.png`: they were made from it.

    Of other images with one label, only those are kept whose names end like those of others: `1_left.png`, `2_left.png`.
    """
    labelled = {(stems[name], label) for name, label in matched.items()}
    found = {
        name: label
        for name, label in matched.items()
        if label and not any((shorter, label) in labelled for shorter in beginnings(stems[name])[1:])
    }
    sharing = Counter(found.values())
    if len(sharing) == len(found):
        return found
    tails = {name: re.split(r"[_.\- ]", stems[name])[-1] for name in found}
    common = Counter(tails.values())
    return {name: label for name, label in found.items() if sharing[label] == 1 or common[tails[name]] > 1}


def _beginnings(stem: str) -> list[str]:
    """Return a name and what remains of it without its last words. If it has a digit, all of them have one."""
    numbered = re.search(r"\d", stem)
    return [shorter for shorter in beginnings(stem) if shorter == stem or not numbered or re.search(r"\d", shorter)]


def _beginning(stem: str, stems: Collection[str]) -> str | None:
    """Return the longest of `stems` that `stem` begins with; whole words such as _leftImg8bit may follow."""
    return next((shorter for shorter in _beginnings(stem) if shorter in stems), None)


def _candidates(folder: Path, where: dict[str, list[Path]]) -> list[Path]:
    """Return the label folders that may be most similar to a folder. `where`: trait → label folders; "" → all of them."""
    traits = (trait for traits in _traits(folder) for trait in traits)
    found = {other for trait in traits if len(where[trait]) <= _RARE for other in where[trait]}
    return sorted(found) if found and len(where[""]) > _RARE else where[""]


def _likeness(first: Path, second: Path) -> int | None:
    """Return how much two folders have in common; names of splits weigh most. None if they belong to different splits."""
    (splits, words, parts), (others, known, places) = _traits(first), _traits(second)
    if splits and others and splits.isdisjoint(others):
        return None
    return 20 * len(splits & others) + len(parts & places) + 2 * len(words & known) - len(words)


@cache
def _traits(folder: Path) -> tuple[set[str], set[str], set[str]]:
    """Return the splits, the words that tell nothing, and the parts of a folder's path."""
    splits = {SPLITS[found[1].lower()] for part in folder.parts if (found := split_in(part))}
    return splits, {word for part in folder.parts for word in own_words(part)}, set(folder.parts)


def count_label_values(path: Path) -> int | None:
    """Return the number of different values in a label file: few, in large areas; 0 if it is a photo, None if it cannot be read.

    Labels that cannot be decoded (stored with loss, or as floating-point numbers) count as 256 values, so that they are not
    taken for photos. Their folder or name must tell that they are labels, because photos can have large areas, too.
    """
    try:
        pixels = read_label(path).values if path.suffix.lower() in ARRAY_SUFFIXES else np.asarray(open_file(path, "label"))
    except FileError:
        return None
    different = pixels[:, 1:] != pixels[:, :-1]
    flat = 1 - (different.any(axis=2) if different.ndim == 3 else different).mean() if different.size else 1.0
    with contextlib.suppress(FileError):
        found = len(np.unique(read_label(path).values))
        if found <= 256:
            return found if flat > _FLAT else 0
    told = _TELLING.search("/".join([*path.parts[-6:-1], path.stem]))
    return 256 if told and flat > _FLAT_JPEG else 0


def spread(things: list, count: int) -> list:
    """Return about `count` elements of a list, evenly spread."""
    return things[:: max(1, -(-len(things) // count))] if things else []
