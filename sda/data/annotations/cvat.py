"""CVAT for images (XML): polygons, boxes, ellipses and masks of many images in one file."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sda.data.annotations.drawing import Drawing, Ring, Shape, Unusable, ellipse, rectangle, unroll


def tells(content: Any) -> bool:
    """Return whether this is the content of a file of CVAT."""
    return isinstance(content, ElementTree.Element) and content.tag == "annotations" and content.find("image") is not None


def index(content: Any) -> list[tuple[str, Any]]:
    """Return (name of the image, its element)."""
    return [(element.attrib["name"], element) for element in content.iter("image")]


def names(content: Any) -> list[str]:
    """Return the names of the labels that are used."""
    return list(dict.fromkeys(shape.attrib["label"] for image in content.iter("image") for shape in objects(image)))


def objects(image: ElementTree.Element) -> list[ElementTree.Element]:
    """Return the objects of an image, the topmost last. Tags belong to the whole image."""
    return sorted((each for each in image if each.tag != "tag"), key=lambda each: int(each.get("z_order", 0)))


def draw(image: Any, file: Path) -> Drawing:
    """Return the objects of an image, by their z-order and then in the order of the file."""
    return Drawing(list(map(_shape, objects(image))), (int(image.attrib["width"]), int(image.attrib["height"])))


def _shape(area: ElementTree.Element) -> Shape:
    name, values = area.attrib["label"], area.attrib
    if area.tag == "polygon":
        return Shape(name, (_points(values["points"]),))
    if area.tag == "box":
        return Shape(name, (rectangle(*(float(values[key]) for key in ("xtl", "ytl", "xbr", "ybr"))),))
    if area.tag == "ellipse":
        return Shape(name, (ellipse(*(float(values[key]) for key in ("cx", "cy", "rx", "ry"))),))
    if area.tag == "mask":
        left, top, width, height = (int(values[key]) for key in ("left", "top", "width", "height"))
        lengths = [int(each) for each in values["rle"].split(",")]
        return Shape(name, mask=unroll(lengths, (height, width)), origin=(left, top))
    raise Unusable(f"a {area.tag} of {name!r}, which covers no pixels; draw it as a polygon, or remove it")


def _points(text: str) -> Ring:
    return [[float(value) for value in point.split(",")] for point in text.split(";")]
