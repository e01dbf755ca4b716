"""Files of one image with polygons and masks: labelme, LabelMe's old XML, Supervisely, Cityscapes, V7 Darwin, YOLO."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sda.data.annotations.drawing import Drawing, Ring, Shape, Unusable, bitmap, ellipse, rectangle


def tells_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def labelme_objects(content: Any) -> list:
    return content["shapes"]


def draw_labelme(content: Any, file: Path) -> Drawing:
    """Return the shapes of a labelme file, in its order."""
    width, height = content.get("imageWidth"), content.get("imageHeight")
    size = None if width is None or height is None else (int(width), int(height))
    return Drawing([_labelme(shape) for shape in labelme_objects(content)], size)


def _labelme(shape: Any) -> Shape:
    name, kind, points = str(shape["label"]), shape.get("shape_type") or "polygon", shape["points"]
    if kind == "polygon":
        return Shape(name, (points,))
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points
        return Shape(name, (rectangle(x1, y1, x2, y2),))
    if kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = ((edge_x - x) ** 2 + (edge_y - y) ** 2) ** 0.5
        return Shape(name, (ellipse(x, y, radius, radius),))
    if kind == "mask":
        (x, y), *_ = points
        return Shape(name, mask=bitmap(shape["mask"]), origin=(round(x), round(y)))
    raise Unusable(f"a {kind} of {name!r}, which covers no pixels; draw it as a polygon, or remove it")


def tells_xml(content: Any) -> bool:
    """Return whether this is LabelMe's old XML; files of VOC have boxes."""
    if not isinstance(content, ElementTree.Element) or content.tag != "annotation" or content.find("object/bndbox") is not None:
        return False
    return content.find("object/polygon") is not None or content.find("imagesize") is not None


def xml_objects(content: Any) -> list:
    return [each for each in content.iter("object") if (each.findtext("deleted") or "0").strip() != "1"]


def draw_xml(content: Any, file: Path) -> Drawing:
    """Return the polygons of a file of LabelMe's old XML, in its order."""
    size = [int(float(content.findtext(f"imagesize/{key}") or 0)) for key in ("ncols", "nrows")]
    return Drawing([_xml(each) for each in xml_objects(content)], (size[0], size[1]) if all(size) else None)


def _xml(each: ElementTree.Element) -> Shape:
    name, polygon = (each.findtext("name") or "").strip(), each.find("polygon")
    if polygon is None:
        raise Unusable(f"an object of {name!r} that is not a polygon; draw it as a polygon, or remove it")
    return Shape(name, ([(float(point.findtext("x") or ""), float(point.findtext("y") or "")) for point in polygon.iter("pt")],))


def tells_supervisely(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("objects"), list) and isinstance(content.get("size"), dict)


def supervisely_objects(content: Any) -> list:
    return content["objects"]


def draw_supervisely(content: Any, file: Path) -> Drawing:
    """Return the objects of a Supervisely file, in its order."""
    size = content["size"]
    return Drawing([_supervisely(each) for each in supervisely_objects(content)], (int(size["width"]), int(size["height"])))


def _supervisely(each: Any) -> Shape:
    name, kind = str(each["classTitle"]), each.get("geometryType", "polygon")
    if kind == "bitmap":
        x, y = each["bitmap"]["origin"]
        return Shape(name, mask=bitmap(each["bitmap"]["data"]), origin=(int(x), int(y)))
    if kind not in ("polygon", "rectangle"):
        raise Unusable(f"a {kind} of {name!r}; export it as a polygon or a bitmap")
    exterior = each["points"]["exterior"]
    if kind == "rectangle":
        (x1, y1), (x2, y2) = exterior
        return Shape(name, (rectangle(x1, y1, x2, y2),))
    return Shape(name, (exterior,), tuple(each["points"].get("interior") or ()))


def tells_cityscapes(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("objects"), list) and "imgWidth" in content


def cityscapes_objects(content: Any) -> list:
    return [each for each in content["objects"] if not each.get("deleted")]


def draw_cityscapes(content: Any, file: Path) -> Drawing:
    """Return the objects of a Cityscapes polygon file, in its order."""
    shapes = [Shape(str(each["label"]), (each["polygon"],)) for each in cityscapes_objects(content)]
    return Drawing(shapes, (int(content["imgWidth"]), int(content["imgHeight"])))


def tells_darwin(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("item"), dict) and isinstance(content.get("annotations"), list)


def darwin_objects(content: Any) -> list:
    return [each for each in content["annotations"] if "tag" not in each]


def draw_darwin(content: Any, file: Path) -> Drawing:
    """Return the objects of a file of V7 Darwin, in its order."""
    slot = (content["item"].get("slots") or [{}])[0]
    size = (int(slot["width"]), int(slot["height"])) if "width" in slot else None
    return Drawing([_darwin(each) for each in darwin_objects(content)], size)


def _darwin(each: Any) -> Shape:
    name = str(each["name"])
    if "polygon" in each:
        paths = each["polygon"].get("paths") or [each["polygon"]["path"]]
        return Shape(name, tuple([(point["x"], point["y"]) for point in path] for path in paths))
    if "bounding_box" in each:
        box = each["bounding_box"]
        return Shape(name, (rectangle(box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]),))
    raise Unusable(f"an object of {name!r} that is neither a polygon nor a box; export it as a polygon")


def tells_yolo(content: Any) -> bool:
    """Return whether a text has YOLO's lines: the number of a class, and shares of the width and height."""
    text = content if isinstance(content, str) else ""
    lines = [line.split() for line in text.split("\n") if line.strip()]
    return bool(lines) and all(len(words) >= 5 and len(words) % 2 == 1 and _is_yolo(words) for words in lines)


def _is_yolo(words: list[str]) -> bool:
    try:
        return words[0].isdecimal() and all(-0.5 <= float(word) <= 1.5 for word in words[1:])
    except ValueError:
        return False


def yolo_objects(content: Any) -> list:
    """Return the lines with words."""
    return [line for line in content.split("\n") if line.strip()]


def draw_yolo(content: Any, file: Path) -> Drawing:
    """Return the polygons of a YOLO file, in its order. Their names are the numbers of their classes."""
    shapes = []
    for number, line in enumerate(content.split("\n"), start=1):
        if words := line.split():
            if len(words) == 5:
                raise Unusable(f"line {number} is a box, not a polygon: export the labels for segmentation")
            if len(words) < 7 or len(words) % 2 == 0 or not _is_yolo(words):
                raise Unusable(f"line {number} is not the number of a class and x y of three or more corners, from 0 to 1")
            values = list(map(float, words[1:]))
            ring: Ring = list(zip(values[::2], values[1::2], strict=True))
            shapes.append(Shape(str(int(words[0])), (ring,)))
    return Drawing(shapes, unit=1)
