"""COCO: instances (polygons and run lengths), and panoptic segments in PNGs."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from sda.data.annotations.drawing import Drawing, Shape, Unusable, runs
from sda.data.files import FileError, read_label


def tells(content: Any) -> bool:
    """Return whether this is the content of a file of instances."""
    return _lists(content) and not tells_panoptic(content)


def tells_panoptic(content: Any) -> bool:
    """Return whether this is the content of a file of panoptic segments."""
    return _lists(content) and any("segments_info" in each for each in content["annotations"][:1] if isinstance(each, dict))


def _lists(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(content.get(key), list) for key in ("images", "annotations", "categories")
    )


def index(content: Any) -> list[tuple[str, Any]]:
    """Return (name of an image, its part of the content) for every image."""
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    of_image: dict[Any, list] = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    return [(str(image["file_name"]), (image, of_image[image["id"]], names)) for image in content["images"]]


def names(content: Any) -> list[str]:
    """Return the names of the categories, the used ones only if some are not used."""
    used = {part.get("category_id") for each in content["annotations"] for part in each.get("segments_info", [each])}
    return [str(category["name"]) for category in content["categories"] if category["id"] in used]


def objects(part: Any) -> list:
    """Return the annotations of an image."""
    return part[1]


def segments(part: Any) -> list:
    """Return the panoptic segments of an image."""
    return [segment for annotation in part[1] for segment in annotation["segments_info"]]


def draw(part: Any, file: Path) -> Drawing:
    """Return the objects of an image, by descending area, as is customary: small ones are on large ones."""
    image, annotations, categories = part
    shapes = [_shape(each, categories, (int(image["height"]), int(image["width"]))) for each in annotations]
    areas = [_area(each) for each in annotations]
    order = sorted(range(len(shapes)), key=lambda place: -areas[place])
    return Drawing([shapes[place] for place in order], (int(image["width"]), int(image["height"])))


def _shape(annotation: Any, categories: dict, size: tuple[int, int]) -> Shape:
    name, segmentation = categories[annotation["category_id"]], annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        return Shape(name, tuple(np.array(ring, np.float64).reshape(-1, 2).tolist() for ring in segmentation))
    if isinstance(segmentation, dict):
        if [*segmentation["size"]] != [*size]:
            raise Unusable(f"run lengths of the size {segmentation['size']} in an image of {[*size]}")
        return Shape(name, mask=runs(segmentation["counts"], size))
    raise Unusable(f"an object {annotation.get('id')} of {name!r} with a box only, without a segmentation")


def _area(annotation: Any) -> float:
    box = annotation.get("bbox") or [0, 0, 0, 0]
    return float(annotation.get("area") or box[2] * box[3])


def panoptic_files(part: Any, file: Path) -> tuple[Path, ...]:
    """Return the PNG of the segments of an image, if it has any: in the folder with the name of the file, or beside the file."""
    _, annotations, _ = part
    if not annotations:
        return ()
    if len(annotations) != 1:
        raise Unusable(f"{len(annotations)} annotations of this image, expected one")
    name = str(annotations[0]["file_name"])
    places = [file.with_suffix(""), file.parent, file.parent.parent / file.stem, file.parent.parent]
    return (next((place / name for place in places if (place / name).is_file()), places[0] / name),)


def draw_panoptic(part: Any, file: Path) -> Drawing:
    """Return the segments of an image, each as a mask. The id of a segment is red + 256 green + 65536 blue of its pixels."""
    image, annotations, categories = part
    if not (found := panoptic_files(part, file)):
        return Drawing([], (int(image["width"]), int(image["height"])))
    (path,) = found
    if not path.is_file():
        raise Unusable(f"no file {path.name} in {path.parent}")
    label = read_label(path)
    if label.red is None:
        raise FileError(f"{path}: these panoptic segments are not RGB: is it the right file? Fix the folder of {file.name}")
    colours = label.values
    ids = (colours >> 16) | (colours & 0xFF00) | (colours & 0xFF) << 16
    shapes = [Shape(categories[each["category_id"]], mask=ids == each["id"]) for each in annotations[0]["segments_info"]]
    strange = set(np.unique(ids).tolist()) - {0, *(each["id"] for each in annotations[0]["segments_info"])}
    if strange:
        raise Unusable(f"segments {sorted(strange)[:8]} in {path.name} that the file does not list")
    if ids.shape != (image["height"], image["width"]):
        raise Unusable(f"a size of {image['width']}x{image['height']}, but {path.name} is {ids.shape[1]}x{ids.shape[0]}")
    return Drawing(shapes, (int(image["width"]), int(image["height"])))
