"""VGG Image Annotator (VIA 2): polygons, rectangles, circles and ellipses of many images in one JSON file."""

from pathlib import Path
from typing import Any

from sda.data.annotations.drawing import Drawing, Shape, Unusable, ellipse, rectangle


def _images(content: Any) -> list:
    """Return the images of a project or of an export; [] for other files."""
    found = content.get("_via_img_metadata", content) if isinstance(content, dict) else {}
    images = list(found.values()) if isinstance(found, dict) else []
    return images if all(isinstance(each, dict) and "filename" in each and "regions" in each for each in images) else []


def tells(content: Any) -> bool:
    """Return whether this is the content of a file of VIA."""
    return bool(_images(content))


def index(content: Any) -> list[tuple[str, Any]]:
    """Return (name of the image, its regions)."""
    regions = ((each["filename"], each["regions"]) for each in _images(content))
    return [(str(name), list(found.values()) if isinstance(found, dict) else found) for name, found in regions]


def names(content: Any) -> list[str]:
    """Return the names of the classes that are used."""
    return list(dict.fromkeys(_name(region) for _, regions in index(content) for region in regions))


def _name(region: Any) -> str:
    """Return the class of a region: its only attribute that is a text, or the one named like a class."""
    values = {key: value for key, value in region["region_attributes"].items() if isinstance(value, str) and value}
    told = [value for key, value in values.items() if key.lower() in ("class", "label", "name", "type", "category", "object")]
    if not (found := told or list(values.values())):
        raise Unusable("a region without a class: give it one")
    return found[0]


def objects(regions: Any) -> list:
    """Return the regions of an image."""
    return regions


def draw(regions: Any, file: Path) -> Drawing:
    """Return the regions of an image, in their order."""
    return Drawing(list(map(_shape, regions)))


def _shape(region: Any) -> Shape:
    form, name = region["shape_attributes"], _name(region)
    kind = form["name"]
    if kind == "polygon":
        return Shape(name, (list(zip(form["all_points_x"], form["all_points_y"], strict=True)),))
    if kind == "rect":
        return Shape(name, (rectangle(form["x"], form["y"], form["x"] + form["width"], form["y"] + form["height"]),))
    if kind == "circle":
        return Shape(name, (ellipse(form["cx"], form["cy"], form["r"], form["r"]),))
    if kind == "ellipse":
        return Shape(name, (ellipse(form["cx"], form["cy"], form["rx"], form["ry"]),))
    raise Unusable(f"a {kind} of {name!r}, which covers no pixels; draw it as a polygon, or remove it")
