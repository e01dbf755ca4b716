"""Find the files among images that are maps of a photo: label maps, colour maps, depth maps."""

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np

from sda.data.files import FileError, open_file
from sda.data.item import Item
from sda.data.layouts.pattern import composed

_TELLING = re.compile(
    r"(?i)mask|label|annot|segment|semantic|instance|panoptic|depth|disparity|truth"
    r"|(^|[^a-z])(seg|gt|gtfine|gtcoarse|colou?r|disp)([^a-z]|$)"
)
_FEW = 4  # number of files that decide for all files with the same ending
_FLAT = 0.25  # a map changes from one pixel to the next in fewer places than this, 0 to 1


def find_maps(items: list[Item]) -> dict[str, str]:
    """Return key → key of a photo for the unlabelled items that are maps and not photos.

    The name of a map begins like that of its photo, in the same folder (`1.png`, `1_mask.png`) or in a folder with a telling
    name (`images/1.jpg`, `masks/1.png`). It has a telling word of its own (`_mask`), or looks like a map: large areas of one
    value, or one channel where the photo has three. Only files whose names suggest it are read, at most four of each ending.
    """
    unlabelled = [item for item in items if item.label is None]
    photos = _by_beginning(items) if unlabelled else {}
    groups: dict[tuple[str, str, bool], list[tuple[Item, Item]]] = defaultdict(list)
    for item in unlabelled:
        if match := _photo_of(item, photos):
            photo, ending, told = match
            groups[_place(item)[0], ending, told].append((item, photo))
    look = cache(_look)
    maps: dict[str, str] = {}
    endings: dict[tuple[str, str], str] = {}
    for (folder, ending, told), pairs in groups.items():
        sample = pairs[:: -(-len(pairs) // _FEW)]
        differ = [_differ(look(item.image), look(photo.image)) for item, photo in sample] if not told else []
        if told or 2 * sum(differ) > len(differ):  # most, because some of them may be damaged or black
            maps |= {item.key: photo.key for item, photo in pairs}
            endings[folder, ending] = pairs[0][1].key
    for item in unlabelled:  # the maps of photos that are missing
        folder, stem = _place(item)
        for _, ending in _divided(stem, item):
            if (folder, ending) in endings and ending[0] in "_.-" and item.key not in maps:
                maps[item.key] = endings[folder, ending]
    return maps


def beginnings(stem: str) -> list[str]:
    """Return a name, followed by what remains of it as words are removed from its end one by one."""
    found = [stem]
    while (shorter := re.sub(r"[_.-]?[A-Za-z0-9]+$|[_.-]$", "", found[-1])) != found[-1] and shorter:
        found.append(shorter)
    return found


def _place(item: Item) -> tuple[str, str]:
    """Return the folder of an item, and its name without suffix."""
    path = PurePosixPath(composed(item.key))
    return str(path.parent), path.stem


def _divided(stem: str, item: Item) -> Iterator[tuple[str, str]]:
    """Yield (beginning, the rest with the suffix) of a name. If a name has a number, its beginnings have one, too."""
    numbered = re.search(r"\d", stem)
    for beginning in beginnings(stem):
        if not numbered or re.search(r"\d", beginning):
            yield beginning, stem[len(beginning) :] + PurePosixPath(item.key).suffix


def _first_word(stem: str) -> tuple[str, str]:
    """Return the first word of a name, if it is made of letters, and what follows it; else "" and the name."""
    match = re.fullmatch(r"([A-Za-z]+)[_.-](.+)", stem)
    return (match[1], match[2]) if match else ("", stem)


def _by_beginning(items: list[Item]) -> dict[tuple[str, str], list[Item]]:
    """Map (folder, beginning of a name) to at most two items, those with the shortest names; folder "" stands for all.

    A beginning "*REST" stands for the items whose name is REST after another first word, and "*" for an item of the folder.
    """
    found: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: (len(item.key), item.key)):
        folder, stem = _place(item)
        if not _TELLING.search(stem) and not found[folder, "*"]:
            found[folder, "*"].append(item)
        first, rest = _first_word(stem)
        if first and not _TELLING.search(first) and re.search(r"\d", rest):
            found[folder, f"*{rest}"].append(item)
        for beginning, ending in _divided(stem, item):
            for place in (folder,) if _TELLING.search(folder) else (folder, ""):
                if not _TELLING.search(ending) and len(found[place, beginning]) < 2:
                    found[place, beginning].append(item)
    return found


def _photo_of(item: Item, photos: dict[tuple[str, str], list[Item]]) -> tuple[Item, str, bool] | None:
    """Return the photo that an item may be a map of, the ending of its name, and whether a word in it tells that it is one."""
    folder, stem = _place(item)
    if _TELLING.fullmatch(stem):  # label beside image
        return next(((photo, f"{stem}*", True) for photo in photos.get((folder, "*"), [])), None)
    first, rest = _first_word(stem)
    if _TELLING.search(first):  # mask_1 beside 1 or img_1
        for photo in photos.get((folder, rest), []) + photos.get((folder, f"*{rest}"), []):
            if photo is not item and not _TELLING.search(_place(photo)[1]):
                return photo, f"{first}*", True
    for place in (folder, "") if _TELLING.search(folder) else (folder,):
        for beginning, ending in _divided(stem, item):
            word, told = ending.removesuffix(PurePosixPath(item.key).suffix), bool(_TELLING.search(ending))
            if word and not told and not re.search(r"^[_.-][A-Za-z]+$", word):
                continue  # 1_2 is another frame than 1
            for photo in photos.get((place, beginning), []):
                if photo is not item:
                    return photo, ending, told and place == folder
    return None


def _look(path: Path) -> tuple[bool, int] | None:
    """Return whether an image has large areas of one value, and its number of channels; None if it cannot be read."""
    try:
        values = np.asarray(open_file(path, "image"))
    except FileError:
        return None
    channels = 1 if values.ndim == 2 else values.shape[2]
    changes = values[:, 1:] != values[:, :-1]
    return bool((changes.any(axis=2) if channels > 1 else changes.reshape(changes.shape[:2])).mean() < _FLAT), channels


def is_flat(path: Path) -> bool:
    """Return whether an image has large areas of one value, as labels have."""
    looked = _look(path)
    return looked is not None and looked[0]


def _differ(item: tuple[bool, int] | None, photo: tuple[bool, int] | None) -> bool:
    """Return whether one image looks like a map and the other like a photo."""
    if item is None or photo is None:
        return False
    return (item[0] and not photo[0]) or (item[1] == 1 and photo[1] > 1)
