"""Files with a line for each image or object: Labelbox's NDJSON with polygons, and Kaggle's CSV of run lengths."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from sda.data.annotations.drawing import Drawing, Shape, Unusable, rectangle

# Labelbox


def tells_labelbox(content: Any) -> bool:
    """Return whether these are the lines of an export of Labelbox."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and isinstance(first.get("data_row"), dict) and isinstance(first.get("projects"), dict)


def index_labelbox(content: Any) -> list[tuple[str, Any]]:
    """Return (name of the image, (its attributes, its objects)) for every label, or without objects if an image has none."""
    found = []
    for line in content:
        row, attributes = line["data_row"], line.get("media_attributes") or {}
        name = row.get("external_id") or row.get("global_key") or unquote(urlsplit(row["row_data"]).path)
        labels = [label["annotations"]["objects"] for project in line["projects"].values() for label in project["labels"]]
        found += [(str(name), (attributes, objects)) for objects in labels or [[]]]
    return found


def labelbox_objects(part: Any) -> list:
    """Return the objects of an image."""
    return part[1]


def labelbox_names(content: Any) -> list[str]:
    """Return the names of the classes that are used."""
    return list(dict.fromkeys(str(each["name"]) for _, (_, objects) in index_labelbox(content) for each in objects))


def draw_labelbox(part: Any, file: Path) -> Drawing:
    """Return the objects of an image, in their order."""
    attributes, objects = part
    size = (int(attributes["width"]), int(attributes["height"])) if "width" in attributes else None
    return Drawing([_labelbox(each) for each in objects], size)


def _labelbox(each: Any) -> Shape:
    name = str(each["name"])
    if "polygon" in each:
        return Shape(name, ([(point["x"], point["y"]) for point in each["polygon"]],))
    if "bounding_box" in each:
        box = each["bounding_box"]
        return Shape(name, (rectangle(box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"]),))
    if "mask" in each or "composite_mask" in each:
        raise Unusable(
            f"a mask of {name!r}, of which the file has only the address at Labelbox: draw polygons, or download the masks as "
            "masks/CLASS/IMAGE.png and move this file away"
        )
    raise Unusable(f"an object of {name!r} that is neither a polygon nor a box; draw it as a polygon, or remove it")


# Kaggle

_IMAGE = {"imageid", "image", "img", "id", "filename", "imagename", "imageidclassid", "imagelabel"}
_WITH_CLASS = {"imageidclassid", "imagelabel"}  # 0002cc93b.jpg_1
_RUNS = {"encodedpixels", "rle", "rlemask", "rleencoding", "segmentation", "annotation", "mask"}
_CLASS = {"class", "classid", "classname", "label", "labelname", "category", "categoryid", "categoryname"}
_NOTHING = {"", "-1", "nan"}


def _columns(content: Any) -> tuple[int, int, int | None]:
    """Return the columns of the image, of its run lengths, and of the class, if there is one. Raise StopIteration otherwise."""
    head = [re.sub("[^a-z]", "", str(name).lower()) for name in content[0]]

    def find(names: set[str]) -> int:
        return next(place for place, name in enumerate(head) if name in names)

    return find(_IMAGE), find(_RUNS), find(_CLASS) if _CLASS & {*head} else None


def tells_runs(content: Any) -> bool:
    """Return whether these are the rows of a table of run lengths, and not those of a sample submission, which are all equal."""
    try:
        _, place, _ = _columns(content)
    except (StopIteration, IndexError, TypeError):
        return False
    runs = [row[place].strip() for row in content[1:]]
    drawn = [each for each in runs if each not in _NOTHING]
    pairs = all(re.fullmatch(r"\d+ \d+( \d+ \d+)*", each) for each in drawn[:8])
    return bool(drawn) and pairs and (len(runs) == 1 or len({*runs}) > 1)


def index_runs(content: Any) -> list[tuple[str, Any]]:
    """Return (name of the image, [(name of the class, run lengths as text)]); without a class, its name is object."""
    image, place, kind = _columns(content)
    both = re.sub("[^a-z]", "", content[0][image].lower()) in _WITH_CLASS
    found: dict[str, list[tuple[str, str]]] = {}
    for row in content[1:]:
        name, _, label = row[image].rpartition("_") if both else (row[image], "", "object")
        label = row[kind].strip() if kind is not None else label
        objects = found.setdefault(name, [])
        if (runs := row[place].strip()) not in _NOTHING:
            objects.append((label, runs))
    return list(found.items())


def run_objects(part: Any) -> list:
    """Return the objects of an image."""
    return part


def run_names(content: Any) -> list[str]:
    """Return the names of the classes that are used, numbers in their order."""
    used = {label for _, objects in index_runs(content) for label, _ in objects}
    return sorted(used, key=lambda name: (len(name) if name.isdecimal() else 0, name))


def draw_runs(part: Any, file: Path) -> Drawing:
    """Return the objects of an image, in the order of the rows."""
    return Drawing([Shape(label, runs=np.array(runs.split(), np.int64).reshape(-1, 2)) for label, runs in part])
