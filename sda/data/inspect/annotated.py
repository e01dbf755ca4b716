"""Find annotations and masks per class in a folder, and propose layouts and classes for them."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sda.data.annotations.forms import FORMS, Annotated, form_of, index_of, load, match_names
from sda.data.descriptor import SHARED
from sda.data.files import FileError
from sda.data.inspect.draft import Draft, propose_layouts
from sda.data.inspect.pairs import Files, count_label_values, spread
from sda.data.layouts.words import SPLITS, divide, split_in
from sda.data.listing import walk
from sda.errors import SdaError
from sda.reading import read_text

_SURE = 8  # number of files of a folder that tell the form of all
_MOST = 2000  # annotation files whose names are read
_CLASS = "CLASSNAME"  # stands for the name of a class in a path
_INSIDE = "_INSIDE"  # stands for the slash before it

Pairs = list[tuple[Path, Path]]


@dataclass(frozen=True)
class Found:
    """Annotations of one form, with paths relative to the root.

    Attributes:
        form: a key of FORMS, or "" for one mask per class.
        pairs: (image, file). lost: files that belong to no image.
        classes: of masks per class.
        empty: images whose annotations have no object.
    """

    form: str
    pairs: Pairs
    lost: list[Path]
    classes: tuple[str, ...] = ()
    empty: frozenset[Path] = frozenset()

    @property
    def drawn(self) -> int:
        """The number of images with objects."""
        return len(self.pairs) - len(self.empty)

    @property
    def what(self) -> str:
        return FORMS[self.form].title if self.form else "mask"


def find_annotations(root: Path, photos: Sequence[Path], notes: list[str]) -> list[Found]:
    """Return the annotations in a folder, by form, those with objects in most images first. Add notes on what cannot be read.

    Args:
        photos: the images, relative to the root.
    """
    files: dict[str, list[Path]] = defaultdict(list)
    for place, every in walk(root):
        for suffix in {form.suffix for form in FORMS.values()}:
            names = [name for name in every if Path(name).suffix.lower() == suffix]
            telling = [name for name in names if not _has_no_bytes(place / name)]  # YOLO's empty files tell no form
            sample = {name: form_of(place / name) for name in (telling if len(names) <= _SURE else spread(telling, _SURE))}
            common = Counter(filter(None, sample.values())).most_common(1)
            for name in names:
                if form := sample.get(name) if name in sample and len(names) <= _SURE else common and common[0][0]:
                    files[form].append((place / name).relative_to(root))
    found = []
    for form, paths in files.items():
        named: dict[Path, str] = {}
        pairs = _of_shared(root, form, paths, photos, notes, named) if form in SHARED else _of_single(paths, photos)
        empty = frozenset(image for image, path in pairs if Annotated(form, root / path, named.get(image, "")).is_empty())
        used = {path for _, path in pairs}
        lost = [path for path in paths if path not in used]
        lost = [path for path in lost[:_MOST] if form_of(root / path) == form] + lost[_MOST:]
        found.append(Found(form, pairs, lost, empty=empty))
    return sorted(found, key=lambda each: (each.drawn, each.form == "coco-panoptic"), reverse=True)


def _has_no_bytes(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _of_single(paths: list[Path], photos: Sequence[Path]) -> Pairs:
    """Pair files of one image with the images of their names, with or without suffix, in the folders most alike."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for photo in photos:
        for name in {photo.name, photo.stem, photo.stem.removesuffix("_leftImg8bit")}:
            by_name[name].append(photo)
    pairs: dict[Path, Path] = {}
    for path in paths:
        stem = re.sub(r"_gt(Fine|Coarse)_polygons$", "", path.stem)
        if near := by_name.get(stem):
            pairs.setdefault(max(near, key=lambda photo: _alike(photo, path)), path)
    return list(pairs.items())


def _alike(one: Path, other: Path) -> tuple[bool, int]:
    """Return whether two paths are of the same split, and how many of their folders agree."""
    return _split(one) == _split(other), len(set(one.parts[:-1]) & set(other.parts[:-1]))


def _split(path: Path) -> str:
    """Return the last word of a split in a path; "" without one."""
    return next((found[1] for part in [path.stem, *path.parts[-2::-1]] if (found := split_in(part))), "")


def _of_shared(
    root: Path, form: str, paths: list[Path], photos: Sequence[Path], notes: list[str], names: dict[Path, str]
) -> Pairs:
    """Pair the images with the files that name them. Of several files for the same images, take the one for instances.

    Args:
        names: image → its name in its file; filled.
    """
    pairs: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda path: ("instances" not in path.name, str(path))):
        split = SPLITS.get(_split(path).lower(), "")
        best: dict[str, str] = {}
        fault = ""
        beside = [photo for photo in photos if photo.is_relative_to(path.parent)]
        for near in (beside, [photo for photo in photos if SPLITS.get(_split(photo).lower(), "") == split], photos):
            try:
                found = match_names(root / path, index_of(form, root / path), [photo.as_posix() for photo in near])
                best = max(best, found, key=len)
            except SdaError as error:
                fault = str(error)
        if fault and not best:
            notes.append(fault)
        for image in map(Path, best):
            if image not in pairs or Annotated(form, root / pairs[image], names[image]).is_empty():
                pairs[image], names[image] = path, best[image.as_posix()]
    return list(pairs.items())


def names_in(root: Path, annotations: Found, notes: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names of the classes, in the order of the file, or sorted if there are many files, and their titles in YOLO.

    Adds a note on files that cannot be read.
    """
    if not (form := annotations.form):
        return list(annotations.classes), {}
    names: dict[str, None] = {}
    faults: list[str] = []
    for path in spread(sorted({path for _, path in annotations.pairs}), _MOST):
        try:
            content: Any = load(root / path)
            of_file = FORMS[form].names
            found = of_file(content) if of_file else [shape.name for shape in FORMS[form].draw(content, root / path).shapes]
            names |= dict.fromkeys(found)
        except FileError as error:
            faults.append(error.fault)
        except (SdaError, KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            faults.append(str(error) if str(root / path) in str(error) else f"{path}: {error}")
    if faults:
        notes.append(f"{len(faults)} files cannot be read, such as {faults[0]}")
    if form == "yolo":
        return sorted(names, key=lambda name: (len(name), name)), {name: f"class_{name}" for name in names} | _yolo_titles(root)
    titles = {name: f"class_{name}" for name in names if name.isdecimal()} if form == "kaggle-rle" else {}
    return list(names) if FORMS[form].names else sorted(names), titles


def _yolo_titles(root: Path) -> dict[str, str]:
    """Return number → name of YOLO's classes, from its YAML file or from classes.txt; {} without one."""
    import yaml

    for place, names in walk(root):
        for name in names:
            try:
                if Path(name).suffix.lower() in (".yaml", ".yml"):
                    titles = yaml.safe_load(read_text(place / name)).get("names")
                    pairs = titles.items() if isinstance(titles, dict) else enumerate(titles)
                elif name.lower() in ("classes.txt", "obj.names", "labels.txt"):
                    pairs = enumerate(line.strip() for line in read_text(place / name).splitlines() if line.strip())
                else:
                    continue
                if found := {str(int(number)): str(title) for number, title in pairs}:
                    return found
            except (SdaError, FileNotFoundError, yaml.YAMLError, AttributeError, TypeError, ValueError):
                continue
    return {}


# One mask per class


def find_masks(root: Path, files: Files) -> Found | None:
    """Return the masks of a folder if each image has several, one per class, in the folder or at the end of the name of each."""
    stems: dict[str, list[Path]] = defaultdict(list)
    for folder, names in files.photos.items():
        for name in names:
            stems[Path(name).stem].append(folder / name)
    places = {part for folder in files.photos for part in folder.parts}
    ways: dict[str, dict[Path, dict[str, Path]]] = {
        "folder": defaultdict(dict),
        "name": defaultdict(dict),
        "file": defaultdict(dict),
    }
    for folder, kinds in files.labels.items():
        for name in [name for kind in kinds for name in kind]:
            stem, path = Path(name).stem, folder / name
            for way, image, label in _readings(stem, folder, stems, places):
                ways[way][image][label] = path
    for way, masks in ways.items():
        classes = Counter(label for found in masks.values() for label in found)
        several = [image for image, found in masks.items() if len(found) > 1]
        if len(classes) < 2 or not several or (len(masks) > 2 and max(classes.values()) < 2):
            continue
        if any(split_in(label) or not "".join(divide(label)[1::2]) for label in classes) or len(classes) > len(masks) * 4 + 8:
            continue  # these words tell a split, or a map such as color
        paths = [path for found in masks.values() for path in found.values()]
        counts = [count_label_values(root / path) for path in spread(paths, 24)]
        if all(count in (1, 2) for count in counts):
            pairs = [(image, _marked(next(iter(found.items())), way)) for image, found in masks.items()]
            return Found("", pairs, [], tuple(sorted(classes)))
    return None


def _readings(stem: str, folder: Path, stems: dict[str, list[Path]], places: set[str]) -> Iterable[tuple[str, Path, str]]:
    """Yield the ways to read the path of a mask: where the class is, the image, and the class."""

    def nearest(name: str) -> Path:
        return max(stems[name], key=lambda photo: _alike(photo, folder / "x"))

    if stem in stems and folder.name and folder.name not in places:
        yield "folder", nearest(stem), folder.name
    for at in range(len(stem) - 1, 0, -1):
        if stem[at] in "_.- " and stem[:at] in stems:
            yield "name", nearest(stem[:at]), stem[at + 1 :]
            break
    if folder.name in stems:
        yield "file", nearest(folder.name), stem


def _marked(mask: tuple[str, Path], way: str) -> Path:
    """Return the path of a mask with _CLASS in place of its class."""
    label, path = mask
    if way == "file":
        return path.parent.parent / f"{path.parent.name}{_INSIDE}{_CLASS}{path.suffix}"
    if way == "folder":
        return path.parent.parent / _CLASS / path.name
    return path.with_name(path.stem[: len(path.stem) - len(label)] + _CLASS + path.suffix)


# Layouts


def propose_annotated(found: Found, photos: Sequence[Path]) -> Draft:
    """Return layouts for annotations, or for masks per class."""
    if found.form in SHARED:
        return _shared_layouts(found, photos)
    draft = propose_layouts(found.pairs, photos)
    layouts: list[dict[str, str]] = []
    for layout in draft.layouts:
        if found.form:
            images, suffix = os.path.splitext(layout["images"])
            name, ending = os.path.splitext(layout["labels"])
            if suffix and name.endswith(suffix) and len(draft.layouts) > 1:  # 1.jpg.json, 2.png.json: the word has the suffix
                layout = {**layout, "images": images, "labels": name.removesuffix(suffix) + ending}
            if (layout := {**layout, "format": found.form}) not in layouts:
                layouts.append(layout)
        else:
            layouts.append({**layout, "labels": layout["labels"].replace(_INSIDE, "/").replace(_CLASS, "{class}")})
    return replace(draft, layouts=layouts)


def _shared_layouts(found: Found, photos: Sequence[Path]) -> Draft:
    """Return one layout for all files if their paths differ only in the split, as those of their images do; else one for each."""
    draft = propose_layouts([(image, None) for image, _ in found.pairs], photos)
    paths = list(dict.fromkeys(path for _, path in found.pairs))
    patterns = {_general(path) for path in paths}
    splits = {_split(path) for path in paths}
    if len(paths) == 1 and not splits - {""}:
        return replace(draft, layouts=[{**layout, "labels": str(paths[0]), "format": found.form} for layout in draft.layouts])
    if len(patterns) == 1 and len(draft.layouts) == 1 and "" not in splits and len(splits) == len(paths):
        layout = {**draft.layouts[0], "labels": patterns.pop(), "format": found.form}
        if "{split}" not in layout["images"] or all(_split(image) == _split(path) for image, path in found.pairs):
            renamed = {SPLITS[word.lower()]: word for word in splits if SPLITS[word.lower()] != word}
            return Draft([layout], {**draft.renamed, **renamed})
    layouts: list[dict[str, str]] = []
    renamed = {}
    for path in paths:
        of_file = propose_layouts([(image, None) for image, other in found.pairs if other == path], photos)
        split = SPLITS.get(_split(path).lower(), "train")
        for layout in of_file.layouts:
            layouts.append({"split": split, **layout, "labels": str(path), "format": found.form})
        renamed |= of_file.renamed
    return Draft(layouts, renamed)


def _general(path: Path) -> str:
    """Return a path with {split} in place of the last word of a split."""
    parts = [*path.parts[:-1], path.stem]
    for place in range(len(parts) - 1, -1, -1):
        if word := split_in(parts[place]):
            parts[place] = f"{word[0]}{{split}}{word[2]}"
            break
    return "/".join(parts) + path.suffix
