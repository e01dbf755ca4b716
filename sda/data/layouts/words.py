"""The words in the names of folders and files that tell a split, a photo or a map, also in CamelCase and glued to others."""

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import cache

SPLITS = {
    "train": "train",
    "training": "train",
    "tr": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
    "testing": "test",
    "ts": "test",
}
_PHOTOS = "images?|imgs?|rgb|photos?|pictures?|pics?|frames?|inputs?|raw"
_MAPS = (
    "masks?|labels?|ids?|annotations?|annots?|ann|segmentations?|segments?|segs?|semantics?|gts?|gtfine|gtcoarse|ground|truths?"
    "|instances?|panoptic|depths?|colou?rs?|disparity|disp|targets?"
)
_LONG = "|".join(sorted((word for word in SPLITS if len(word) > 2), key=len, reverse=True))  # Tr and Ts count only so
_KNOWN = f"{_LONG}|{_PHOTOS}|{_MAPS}"
_WORD = re.compile(
    rf"((?i:{_KNOWN})|Tr|Ts)(?:(?![A-Za-z])|(?<=[a-z])(?=[A-Z])|(?=(?i:{_KNOWN})))|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_]"
)
_ROLE = re.compile(rf"(?i){_PHOTOS}|{_MAPS}")
_PHOTO = re.compile(rf"(?i){_PHOTOS}")


@cache
def split_in(name: str) -> tuple[str, str, str] | None:
    """Return what is before the word of a split in a name, the word, and what follows it; None if there is none, or several."""
    found = [match for match in _WORD.finditer(name) if match[1] and match[1].lower() in SPLITS]
    return (name[: found[0].start()], found[0][1], name[found[0].end() :]) if len(found) == 1 else None


def own_words(name: str) -> set[str]:
    """Return the words of a name that tell neither a split nor a photo nor a map, in lower case."""
    return {match[0].lower() for match in _WORD.finditer(name) if not match[1]}


def is_photo_word(name: str) -> bool:
    """Return whether a name is one word that tells a photo."""
    return _PHOTO.fullmatch(name) is not None


def tells_photo(name: str) -> bool:
    """Return whether a word of a name tells a photo."""
    return any(match[1] and is_photo_word(match[1]) for match in _WORD.finditer(name))


def divide(stem: str) -> list[str]:
    """Divide a name into words that tell a photo or a map, and the rest: text, rest, text, …, text.

    `img_1_left` → `img_`, `1_left`, ``. Neighbouring separators belong to the telling words.
    """
    parts, place = [""], 0
    for start, end in _roles(stem):
        if start > place:
            parts += [stem[place:start], ""]
        parts[-1] += stem[max(start, place) : end]
        place = end
    return [*parts, stem[place:], ""] if place < len(stem) else parts


def rest(stem: str) -> tuple[str, ...]:
    """Return the parts of a name that remain without words that tell a photo or a map: names of an image and its label agree."""
    return tuple(divide(stem)[1::2])


def role_ending(stem: str) -> str:
    """Return the telling word that is first in a name, but not at its beginning, and all that follows it; "" without one."""
    return next((stem[start:] for start, _ in _roles(stem) if start), "")


def _roles(stem: str) -> Iterator[tuple[int, int]]:
    """Yield where the telling words of a name begin and end, with the separators around them."""
    for match in _WORD.finditer(stem):
        if match[1] and _ROLE.fullmatch(match[1]):
            start, end = match.span()
            while start and stem[start - 1] in "_.- ":
                start -= 1
            while end < len(stem) and stem[end] in "_.- ":
                end += 1
            yield start, end


# Names of classes

# Words of the field for the same thing.
_SYNONYMS = [
    {"road", "street", "asphalt", "tarmac", "drivable", "carriageway", "lane"},
    {"sidewalk", "pavement", "footpath", "footway", "walkway", "kerb", "curb"},
    {"building", "buildings", "house", "houses", "construction"},
    {"vegetation", "tree", "trees", "bush", "bushes", "plant", "plants", "foliage"},
    {"terrain", "grass", "lawn", "ground", "soil", "meadow"},
    {"person", "people", "pedestrian", "pedestrians", "human", "humans", "walker", "man"},
    {"rider", "cyclist", "bicyclist", "motorcyclist"},
    {"car", "cars", "auto", "automobile", "vehicle", "vehicles"},
    {"truck", "lorry", "van"},
    {"bus", "coach"},
    {"motorcycle", "motorbike", "scooter"},
    {"bicycle", "bike", "cycle"},
    {"pole", "poles", "post", "column"},
    {"traffic sign", "sign", "signs", "signboard"},
    {"traffic light", "signal", "lights"},
    {"sky", "clouds", "heaven"},
    {"water", "river", "lake", "sea"},
    {"background", "void", "unlabelled", "unlabeled", "other", "others"},
]


def plain(name: str) -> str:
    """Return the name of a class in lower case, with single spaces instead of underscores and hyphens."""
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


def counterparts(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Suggest a class among `known` for each of `names`: one with a synonym or a similar spelling, if there is one."""
    by_name = {plain(name): name for name in known}
    found = {}
    for name in names:
        word = plain(name)
        same = {other for group in _SYNONYMS if word in group for other in group} | {word}
        match = next((other for other in by_name if other in same), None)
        near = difflib.get_close_matches(word, by_name, 1, 0.75) or [
            other for other in by_name if set(word.split()) & set(other.split()) - {"class", "other"}
        ]
        if match or near:
            found[name] = by_name[match or near[0]]
    return found
