"""Label Studio's JSON export: polygons, rectangles, ellipses and brushes, in percent of the image."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from sda.data.annotations.drawing import Drawing, Ring, Shape, Unusable, check_area, ellipse

_LABELS = {"polygonlabels", "rectanglelabels", "ellipselabels", "brushlabels", "labels"}


def tells(content: Any) -> bool:
    """Return whether this is the content of an export, as JSON or JSON-MIN."""
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, dict):
        return False
    return (isinstance(first.get("annotations"), list) and "data" in first) or any(map(_short, content))


def _short(task: Any) -> list:
    """Return the areas of a task of JSON-MIN; [] if there are none."""
    lists = [value for value in task.values() if isinstance(value, list)]
    return [each for value in lists for each in value if isinstance(each, dict) and _LABELS & each.keys()]


def index(content: Any) -> list[tuple[str, Any]]:
    """Return (name of the image, results) of each annotation that was not cancelled; without one, there are no results."""
    found = []
    for task in content:
        if "annotations" not in task:
            found.append((_name({"data": task}), [{**each, "value": each} for each in _short(task)]))
            continue
        done = [each.get("result", []) for each in task["annotations"] if not each.get("was_cancelled")]
        found += [(_name(task), results) for results in done or [[]]]
    return found


def _name(task: Any) -> str:
    """Return the name of the image of a task, without the prefix that an upload gets: /data/upload/1/1b2c3d4e-road.jpg."""
    urls = [value for value in task["data"].values() if isinstance(value, str)]
    address = next((url for url in [task["data"].get("image"), *urls] if isinstance(url, str) and "." in url), "")
    name = unquote(address.partition("?d=")[2] or address.partition("?")[0])
    return re.sub(r"(^|/)[0-9a-f]{8}-(?=[^/]+$)", r"\1", name)


def names(content: Any) -> list[str]:
    """Return the names of the labels that are used."""
    results = [each for _, results in index(content) for each in results]
    return list(dict.fromkeys(name for each in results if (name := _label(each))))


def _label(result: Any) -> str:
    """Return the label of a result; "" for one that is not an area, such as a choice."""
    values = result.get("value", {})
    return next((str(values[key][0]) for key in values if key in _LABELS and values[key]), "")


def objects(results: Any) -> list:
    """Return the areas of an annotation, in its order."""
    return [each for each in results if _label(each)]


def draw(results: Any, file: Path) -> Drawing:
    """Return the areas of an annotation, in its order."""
    areas = objects(results)
    sizes = {(int(each["original_width"]), int(each["original_height"])) for each in areas}
    if len(sizes) > 1:
        raise Unusable(f"areas in images of different sizes, {sorted(sizes)}")
    size = next(iter(sizes), None)
    return Drawing([_shape(each, size or (0, 0)) for each in areas], size, unit=100)


def _shape(result: Any, size: tuple[int, int]) -> Shape:
    value, name = result["value"], _label(result)
    if "points" in value:
        return Shape(name, (value["points"],))
    if "rle" in value:
        return Shape(name, mask=_brush(value["rle"], size))
    if "radiusX" in value:
        turned = np.array(ellipse(0, 0, value["radiusX"] * size[0], value["radiusY"] * size[1], value.get("rotation", 0)))
        return Shape(name, ((turned / size + [value["x"], value["y"]]).tolist(),))
    if "width" in value:
        return Shape(name, (_turned(value, size),))
    raise Unusable(f"an area of {name!r} that is neither a polygon nor a rectangle, ellipse or brush")


def _turned(value: Any, size: tuple[int, int]) -> Ring:
    """Return a rectangle, turned around its upper left corner."""
    angle = np.radians(value.get("rotation", 0))
    across = np.array([np.cos(angle), np.sin(angle)]) * value["width"] * size[0]
    down = np.array([-np.sin(angle), np.cos(angle)]) * value["height"] * size[1]
    corners = np.array([0 * across, across, across + down, down]) / size + [value["x"], value["y"]]
    return corners.tolist()


def _brush(rle: Any, size: tuple[int, int]) -> np.ndarray:
    """Return a brush as (H, W) bool, from the run lengths of its RGBA values (https://github.com/thi-ng/umbrella, rle-pack)."""
    bits = np.unpackbits(np.array(rle, np.uint8))
    place = 0

    def take(count: int) -> int:
        nonlocal place
        if place + count > len(bits):
            raise Unusable("a brush that ends too early")
        place += count
        return int("".join(map(str, bits[place - count : place])), 2)

    check_area(*size)
    total, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise Unusable(f"a brush of {total // 4} pixels in an image of {size[0]}x{size[1]}")
    values = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        repeated = take(1)
        count = min(take(lengths[take(2)]) + 1, total - done)
        values[done : done + count] = take(word) if repeated else [take(word) for _ in range(count)]
        done += count
    return values.reshape(size[1], size[0], 4)[..., 3] > 0
