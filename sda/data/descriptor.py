"""Dataset descriptors and class tables, read from TOML: class names, colours, label ids and file patterns."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field, PrivateAttr, field_validator, model_validator

from sda import shelf
from sda.data.layouts.words import counterparts, plain
from sda.errors import SdaError
from sda.labels import IGNORE

Byte = Annotated[int, Field(ge=0, le=255)]
Color = Annotated[list[Byte], Field(min_length=3, max_length=3)]
MOST_CLASSES = 250  # so that 250 and 255 stay free for void
CLASS = "class"  # the word of a pattern of labels that is the name of a class: one mask per class

# The forms of labels that are not images: `sda/data/annotations/forms.py` reads them.
Form = Literal[
    "labelme", "labelme-xml", "supervisely", "cityscapes", "darwin", "yolo", "coco", "coco-panoptic", "label-studio", "cvat",
    "datumaro", "via", "labelbox", "kaggle-rle",
]  # fmt: skip
# Fields of a descriptor that change no label. Its classes are compared by their colours.
_NO_MEANING = {"title", "home", "licence", "download", "root", "generated", "splits", "classes"}
# Those of which one file has the labels of many images.
SHARED: tuple[Form, ...] = ("coco", "coco-panoptic", "label-studio", "cvat", "datumaro", "via", "labelbox", "kaggle-rle")


def _check_classes(colors: dict[str, list[int]]) -> None:
    """Raise ValueError if there are too few or many classes, or if two have the same colour or names that match each other."""
    if not 1 <= len(colors) <= MOST_CLASSES:
        raise ValueError(f"expected 1 to {MOST_CLASSES} classes, found {len(colors)}")
    by_color: dict[tuple[int, ...], str] = {}
    by_name: dict[str, str] = {}
    for name, color in colors.items():
        if (twin := by_color.setdefault(tuple(color), name)) != name:
            raise ValueError(f"{twin!r} and {name!r} have the same colour {color}; give each class a colour of its own")
        if (twin := by_name.setdefault(plain(name), name)) != name:
            raise ValueError(f"{twin!r} and {name!r} are the same name in two spellings; rename one, or merge them with [ids]")


class ClassTable(shelf.Strict):
    """The classes of a benchmark: the order of `colors` is the order of the train ids, 0 first."""

    title: str = ""
    colors: dict[str, Color]

    @field_validator("colors")
    @classmethod
    def _classes_differ(cls, colors):
        _check_classes(colors)
        return colors

    @property
    def names(self) -> list[str]:
        return list(self.colors)


class Layout(shelf.Strict):
    """Where images and their labels are below the root.

    `{split}` becomes the split's folder; any other `{word}` matches a part of a path without `/`. A label's path has the same
    words as its image's. `.{ext}` at the end matches the suffix of any image, which may differ between an image and its label.
    """

    images: str
    labels: str | None = None
    encoding: Literal["ids", "train_ids", "ids_in_red"] = "ids"
    format: Form | None = Field(None, description="the form of labels that are not images, such as labelme")
    split: str | None = Field(None, description="the only split in this layout")
    list: str | None = Field(None, description="text file that lists the split's images, one per line, with or without folders")

    @field_validator("images", "labels", "list")
    @classmethod
    def _is_pattern(cls, pattern):
        if pattern is None:
            return pattern
        if not pattern or pattern.startswith("/") or "*" in pattern:
            raise ValueError("expected a path relative to the root, with {words} and without *")
        if re.search(r"[{}]", re.sub(r"{[A-Za-z_]\w*}", "", pattern)):
            raise ValueError("each pair of braces must contain one plain word, such as {frame}")
        if "{ext}" in pattern.removesuffix(".{ext}"):
            raise ValueError("{ext} is the suffix of a file: write .{ext} at the end, and another word elsewhere")
        return pattern

    @property
    def by_split(self) -> bool:
        """Whether the paths contain the name of the split."""
        return "{split}" in self.images or "{split}" in (self.list or "") or (self.lists_images and self.split is None)

    @property
    def lists_images(self) -> bool:
        """Whether the images of a split are those that its annotations name: only they tell the split."""
        told = "{split}" in (self.labels or "") or self.split is not None
        return self.format in SHARED and told and "{split}" not in self.images

    @property
    def by_name(self) -> bool:
        """Whether labels give their classes by name: annotations, and one mask per class."""
        return self.format is not None or CLASS in _words(self.labels or "")

    @model_validator(mode="after")
    def _words_agree(self):
        if self.list is not None and set(_words(self.list)) - {"split"}:
            raise ValueError("list may contain {split} and no other word")
        if self.labels is not None:
            unknown = set(_words(self.labels)) - set(_words(self.images)) - {"split", "ext", CLASS}
            if unknown:
                raise ValueError(f"labels uses {{{unknown.pop()}}}, which images does not")
            if self.labels == self.images:
                raise ValueError("labels and images are the same files; write two patterns")
        if CLASS in _words(self.labels or "") and (CLASS in _words(self.images) or self.format is not None):
            raise ValueError("{class} is for one mask per class: use it in labels only, and without format")
        if self.format is not None and self.labels is None:
            raise ValueError(f"format = {self.format!r} needs labels: the pattern of the files to read")
        if self.format in SHARED and set(_words(self.labels or "")) - {"split"}:
            raise ValueError(f"with format = {self.format!r}, labels may contain {{split}} and no other word")
        return self

    @model_validator(mode="after")
    def _words_are_clear(self):
        """A name can be divided among its words in one way only, so that matching is fast and never a guess."""
        known = {"split"}
        for part in self.images.split("/"):
            words = [word for word in _words(part) if word not in known]
            repeated = next((word for word in words if len(words) > 1 and _words(self.images).count(word) > 1), None)
            if repeated:
                raise ValueError(f"images uses {{{repeated}}} twice, first in {part!r} beside other words: rename one of the two")
            known |= set(words)
        return self


class Descriptor(shelf.Strict):
    """One dataset, described by `datasets/NAME.toml` or by a TOML file of the user."""

    title: str
    home: str = ""
    licence: str = ""
    download: str = Field("", description="what to download and where to put it")
    classes: str | dict[str, Color] = Field(description="a table in datasets/classes/, or name = [r, g, b] per class")
    ids: dict[str, str] = Field({}, description="value in the label file = class; default: the position in the class table")
    void: list[Byte] = Field([], description="values to ignore; without [ids] also 255")
    void_colors: list[Color] = Field([], description="colours to ignore, for labels stored as RGB")
    other_colors: dict[str, list[Color]] = Field({}, description="class = further colours of it in the label files")
    color_tolerance: int = Field(0, ge=0, le=255, description="largest difference of a channel from the colour of a class")
    names: dict[str, str] = Field({}, description="name in annotations = class; equal names need no line")
    void_names: list[str] = Field([], description="names in annotations to ignore")
    background: str = Field("", description="the class of pixels that no annotation covers; default: ignored")
    empty_images: Literal["unlabelled", "background"] | None = Field(
        None,
        description="what images are that annotations list without an object; default: unlabelled, except in YOLO and Kaggle",
    )
    layout: list[Layout] = Field(min_length=1, description="tried in order; the first that finds labelled images is used")
    splits: dict[str, str] = Field({}, description="split = its folder name, if they differ")
    maps: dict[str, dict[str, str]] = Field({}, description="per target class table: class here = class there")
    source_maps: dict[str, dict[str, str]] = Field(
        {}, description="of a target, per source dataset or class table: class there = class here"
    )
    root: str = Field("", description="the default folder")
    generated: bool = Field(False, description="drawn by sda on first use")
    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        """The name of the dataset: that of its file without the suffix."""
        return self._name

    @property
    def table_name(self) -> str:
        """The name of its class table: that of the table's file, or its own name."""
        return Path(self.classes).stem if isinstance(self.classes, str) else self._name

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes):
        if isinstance(classes, dict):
            _check_classes(classes)
        return classes

    @field_validator("ids")
    @classmethod
    def _ids_are_bytes(cls, ids):
        for key in ids:
            if not key.isdecimal() or int(key) > 255:
                raise ValueError(f"key {key!r} must be a whole number from 0 to 255")
        return ids

    @model_validator(mode="after")
    def _values_have_one_meaning(self):
        seen = dict.fromkeys(self.void, "void")
        for key, name in self.ids.items():
            if twin := seen.get(int(key)):
                raise ValueError(f"the value {int(key)} occurs twice in ids and void: as {twin!r} and as {name!r}; remove one")
            seen[int(key)] = name
        return self

    @model_validator(mode="after")
    def _ids_name_classes(self):
        if isinstance(self.classes, dict):
            unknown = set(self.ids.values()) - set(self.classes)
            if unknown:
                raise ValueError(f"ids names the class {unknown.pop()!r}, which is not in classes")
        return self

    @model_validator(mode="after")
    def _empty_images_have_a_class(self):
        if self.empty_images == "background" and not self.background:
            raise ValueError('empty_images = "background" needs background = CLASS: the class of pixels that no object covers')
        return self

    def table(self) -> ClassTable:
        """Return the class table that the labels are decoded to."""
        if isinstance(self.classes, dict):
            return ClassTable(title=self.title, colors=self.classes)
        return class_table(self.classes)

    def meaning(self) -> list:
        """Return all that decides how images and labels are found and decoded below a root, for comparison, as JSON values."""
        values = self.model_dump(mode="json", exclude=_NO_MEANING, exclude_defaults=True)
        return [values, [[name, *color] for name, color in self.table().colors.items()]]


def class_table(name: str) -> ClassTable:
    """Return the class table `datasets/classes/NAME.toml`, or the one in a TOML file given by its path."""
    return shelf.read(shelf.find("datasets/classes", name), ClassTable)


def load(name: str) -> Descriptor:
    """Return the descriptor `datasets/NAME.toml`, or the one in a TOML file given by its path.

    Raises:
        SdaError: the file is missing or invalid, `ids` or `maps` name classes that are not in its table, or a class is also
            void.
    """
    path = shelf.find("datasets", name)
    descriptor = shelf.read(path, Descriptor)
    if isinstance(descriptor.classes, str) and descriptor.classes.endswith(".toml"):
        descriptor = descriptor.model_copy(update={"classes": str(path.parent / descriptor.classes)})
    descriptor._name = path.stem
    table = descriptor.table()
    for value, label in descriptor.ids.items():
        if label not in table.colors:
            raise SdaError(f"{path}: ids: {value} = {label!r}: the class table has no such class{shelf.hint(label, table.names)}")
    for name, mapped in descriptor.maps.items():
        for label in mapped:
            if label not in table.colors:
                raise SdaError(f"{path}: maps.{name}: the class table has no class {label!r}{shelf.hint(label, table.names)}")
    used = [("names", label) for label in descriptor.names.values()]
    used += [("other_colors", label) for label in descriptor.other_colors]
    used += [("background", label) for label in [descriptor.background] if label]
    for key, label in used:
        if label not in table.colors:
            raise SdaError(f"{path}: {key}: the class table has no class {label!r}{shelf.hint(label, table.names)}")
    _check_void(descriptor, table, path)
    return descriptor


def _check_void(descriptor: Descriptor, table: ClassTable, path: Path) -> None:
    """Raise SdaError if a colour or a value is void although it means a class."""
    for name, color in table.colors.items():
        if color in descriptor.void_colors:
            raise SdaError(f"{path}: void_colors: {color} is also the colour of the class {name!r}; remove it, or give another")
    meanings = {pack_color(color): name for name, color in table.colors.items()}
    meanings |= {pack_color(color): "void" for color in descriptor.void_colors}
    for name, colors in descriptor.other_colors.items():
        for color in colors:
            if (other := meanings.setdefault(pack_color(color), name)) != name:
                raise SdaError(f"{path}: other_colors: {color} of {name!r} is also the colour of {other!r}; remove one")
    for name in descriptor.void_names:
        if name in descriptor.names or name in table.colors:
            raise SdaError(f"{path}: void_names: {name!r} is also the name of a class; remove it from one of them")
    for value in [] if descriptor.ids else descriptor.void:
        if value < len(table.names):
            raise SdaError(
                f"{path}: void: without [ids], the value {value} means the class {table.names[value]!r}, because it is number "
                f"{value} of the class table; add [ids], or remove {value} from void"
            )


def label_values(descriptor: Descriptor, encoding: str) -> dict[int, int]:
    """Map the values in label files of one encoding to train ids (255 for void). Other values are unknown.

    With `[ids]`, 255 is known only if `void` lists it: label ids do not use it, but files converted to train ids do.
    """
    names = descriptor.table().names
    void = dict.fromkeys(descriptor.void, IGNORE)
    train_ids = {index: index for index in range(len(names))}
    if encoding == "train_ids":
        return {**void, 250: IGNORE, 255: IGNORE, **train_ids}
    if descriptor.ids:
        return {**void, **{int(value): names.index(name) for value, name in descriptor.ids.items()}}
    return {**train_ids, 255: IGNORE, **void}


def label_colors(descriptor: Descriptor) -> dict[int, int]:
    """Map the colours in label files, as 0xrrggbb, to train ids (255 for void). Other colours are unknown."""
    meanings = {pack_color(color): IGNORE for color in descriptor.void_colors}
    for index, (name, color) in enumerate(descriptor.table().colors.items()):
        meanings |= {pack_color(each): index for each in [color, *descriptor.other_colors.get(name, [])]}
    return meanings


def label_names(descriptor: Descriptor) -> dict[str, int]:
    """Map the names in annotations to train ids (255 for void). Other names are unknown. "": pixels that nothing covers."""
    places = {name: index for index, name in enumerate(descriptor.table().names)}
    named = {name: places[label] for name, label in descriptor.names.items()}
    background = places[descriptor.background] if descriptor.background else IGNORE
    return {**dict.fromkeys(descriptor.void_names, IGNORE), **places, **named, "": background}


def pack_color(color: Sequence[int]) -> int:
    """Return [r, g, b], each 0 to 255, as the number 0xrrggbb."""
    return color[0] << 16 | color[1] << 8 | color[2]


class Classes(NamedTuple):
    """The classes that labels are mapped to.

    Attributes:
        name, table: a class table and its name.
        maps: source dataset or class table → class there → class here, or "" to ignore it; "": of any source that has the class.
    """

    name: str
    table: ClassTable
    maps: Mapping[str, Mapping[str, str]] = {}


def map_classes(source: Descriptor, classes: Classes) -> tuple[np.ndarray, list[str]]:
    """Map the train ids of `source` to those of `classes`, by their maps, by the source's own `maps`, or by equal names.

    Returns:
        A uint8 table of 256 entries (train id → train id, 255 where dropped) and the names of the dropped classes.

    Raises:
        SdaError: the map names a class that does not exist, or no class has a counterpart.
    """
    table, target = source.table(), classes.table
    explicit = _explicit(source, classes)
    places = {plain(name): index for index, name in enumerate(target.names)}
    lut = np.full(256, IGNORE, np.uint8)
    dropped: list[str] = []
    for index, name in enumerate(table.names):
        place = places.get(plain(explicit.get(name, name)))
        if place is not None:
            lut[index] = place
        elif explicit.get(name) != "":
            dropped.append(name)
    if (lut == IGNORE).all():
        raise SdaError(
            f"{source.title}: none of its classes is in the class table {classes.name}; add a map to the recipe, such as "
            f"{map_stub(table.names, target.names)} (classes of {classes.name}: {', '.join(target.names)})"
            + (f"; its descriptor has maps for {', '.join(source.maps)}" if source.maps else "")
        )
    return lut, dropped


def map_stub(names: Sequence[str], known: Sequence[str]) -> str:
    """Return a line of a recipe that maps classes of a source to classes to train, by similar names where there are any."""
    return f"source_map = {shelf.toml_value(counterparts(names, known) or {names[0]: known[0]})}"


def _explicit(source: Descriptor, classes: Classes) -> dict[str, str]:
    """Return class of the source → its class here, "" to ignore it, as far as maps say. The recipe's map counts most, then the
    target's, then the source's own."""
    known = source.table().names
    found = dict(_checked(source.maps.get(classes.name, {}), f"{source.title}: maps.{classes.name}", known, classes.table.names))
    for key in dict.fromkeys((source.table_name, source.name)):
        if mapped := classes.maps.get(key) if key else None:
            found |= _checked(mapped, f"source_maps.{key}", known, classes.table.names)
    anywhere = {name: other for name, other in classes.maps.get("", {}).items() if name in known}
    return found | dict(_checked(anywhere, "source_map", known, classes.table.names))


def _checked(mapped: Mapping[str, str], where: str, known: list[str], here: list[str]) -> Mapping[str, str]:
    """Return a map. Raise SdaError if it names a class that does not exist."""
    for name, other in mapped.items():
        for word, words in ((name, known), (other, here)):
            if word not in words and word != "":
                raise SdaError(f"{where}: {name!r} = {other!r}: no class {word!r}{shelf.hint(word, words)}; correct this map")
    return mapped


def _words(pattern: str) -> list[str]:
    return re.findall(r"{(\w+)}", pattern)
