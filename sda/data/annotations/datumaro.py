"""Datumaro's JSON: polygons, boxes and run lengths of many images in one file."""

from pathlib import Path
from typing import Any

from sda.data.annotations.drawing import Drawing, Shape, Unusable, rectangle, runs


def tells(content: Any) -> bool:
    """Return whether this is the content of a file of Datumaro."""
    return isinstance(content, dict) and isinstance(content.get("items"), list) and "label" in content.get("categories", {})


def _labels(content: Any) -> list[str]:
    return [str(label["name"]) for label in content["categories"]["label"]["labels"]]


def index(content: Any) -> list[tuple[str, Any]]:
    """Return (name of the image, (item, names of all classes))."""
    labels = _labels(content)
    return [(str(item.get("image", {}).get("path") or item["id"]), (item, labels)) for item in content["items"]]


def names(content: Any) -> list[str]:
    """Return the names of the classes that are used."""
    used = {each.get("label_id") for item in content["items"] for each in item["annotations"] if each["type"] in _AREAS}
    return [name for number, name in enumerate(_labels(content)) if number in used]


_AREAS = ("polygon", "mask", "bbox")


def objects(part: Any) -> list:
    """Return the objects of an image, the topmost last. Labels and captions belong to the whole image."""
    areas = [each for each in part[0]["annotations"] if each["type"] not in ("label", "caption")]
    return sorted(areas, key=lambda each: each.get("z_order", 0))


def draw(part: Any, file: Path) -> Drawing:
    """Return the objects of an image, by their z-order and then in the order of the file."""
    item, labels = part
    size = item.get("image", {}).get("size")
    shapes = [_shape(each, labels) for each in objects(part)]
    return Drawing(shapes, (int(size[1]), int(size[0])) if size else None)


def _shape(each: Any, labels: list[str]) -> Shape:
    name, kind = labels[each["label_id"]], each["type"]
    if kind == "polygon":
        return Shape(name, (list(zip(each["points"][::2], each["points"][1::2], strict=True)),))
    if kind == "bbox":
        x, y, width, height = each["bbox"]
        return Shape(name, (rectangle(x, y, x + width, y + height),))
    if kind == "mask":
        height, width = each["rle"]["size"]
        return Shape(name, mask=runs(each["rle"]["counts"], (int(height), int(width))))
    raise Unusable(f"a {kind} of {name!r}, which covers no pixels; draw it as a polygon, or remove it")
