"""Copy images to label, with a network's predictions as pre-labels, for an annotation program (`sda select --export`)."""

import csv
import io
import itertools
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from sda import recipe as recipes
from sda.analysis.cache import FeatureCache
from sda.analysis.make_cache import check_made_by
from sda.data import descriptor as descriptors
from sda.data.annotations import forms as annotations
from sda.data.descriptor import SHARED
from sda.data.item import Item
from sda.data.splits.lists import list_text
from sda.errors import SdaError, naming
from sda.labels import IGNORE
from sda.pictures import colorize
from sda.runs import copies, trained
from sda.runs.trained import Run
from sda.system.atomic import rename, write_json, write_text, written_whole
from sda.system.console import Count
from sda.system.owned import LOCK, owned

FORMS = {"cvat": "JPEGImages", "labelme": "images"}  # form → folder of the images
Point = tuple[float, float]  # x, y; (0, 0) is the upper left corner of the image, (1, 1) that of the pixel beside and below
_UNFINISHED = "unfinished"  # a file that marks a folder as an export that was interrupted, so that it may be removed


def unlabelled(cache: FeatureCache, domain: str, keys: Sequence[str]) -> list[str]:
    """Return those of a domain's images that had no label when the cache was made; one that is all void counts as none."""
    index_of = {cache.paths[index]: index for index in cache.images_of(domain)}
    labelled: set[int] = set()
    for block in cache.blocks("label", "image"):
        labelled |= set(block["image"][block["label"] != IGNORE].tolist())
    return [key for key in keys if index_of[key] not in labelled]


FROM_CVAT = ("coco", "cvat", "datumaro", "yolo", "cityscapes", "labelme-xml")  # forms of labels that CVAT exports


def form_of(run: Path) -> tuple[str, str]:
    """Return the form of an export that fits the labels of the target of a run, a key of FORMS, and why."""
    try:
        layout = _layout(run)
    except SdaError as error:
        return "cvat", f"the form of the target's labels is unknown ({error})"
    form = layout.format if layout else None
    if form == "labelme":
        return "labelme", "the target's labels are labelme files"
    if form is None:
        return "cvat", "the target's labels are masks"
    title = annotations.FORMS[form].title
    why = f"the target's labels are {title} files"
    if form in FROM_CVAT:
        return "cvat", f"{why}: export the corrected labels from CVAT in that form"
    return (
        "cvat",
        f"{why}, which CVAT does not write: bring all labels into one form, such as masks from CVAT, and run sda init again",
    )


def names_of_labels(run: Path) -> str:
    """Return where the labels of a run's target are and how they are named, as patterns; "" if that is unknown."""
    try:
        layout = _layout(run)
    except SdaError:
        return ""
    return f"{layout.labels} for the image {layout.images}" if layout and layout.format not in SHARED else ""


def _layout(run: Path) -> descriptors.Layout | None:
    """Return the layout of a run's target that has labels."""
    target = copies.find(run, recipes.load(str(run / "recipe.toml")).target)
    return next((layout for layout in descriptors.load(target).layout if layout.labels), None)


def check_export(out: Path, cache: FeatureCache, form: str) -> None:
    """Raise SdaError if `export` could not write the folder `out`, as far as that is known in advance."""
    if os.path.lexists(out):
        raise SdaError(f"{out}: it exists and is not overwritten; choose another --export, or remove it")
    for name in cache.classes:
        if form == "cvat" and (":" in name or name.startswith("#")):
            raise SdaError(
                f"the class {name!r} cannot be written for CVAT, whose labelmap.txt separates by colons: use --form labelme"
            )


def export(out: Path, form: str, cache: FeatureCache, items: Sequence[Item], device: torch.device, progress: Count) -> None:
    """Write the folder `out`: copies of images, and the predictions of the network that made the cache as labels.

    =========  ======================================================================================================
    cvat       JPEGImages/, and the files of CVAT's Segmentation mask 1.1: labelmap.txt, SegmentationClass/ with masks
               in the colours of the classes, ImageSets/Segmentation/default.txt; labels.json: the labels of the task
    labelme    images/, with a JSON file of polygons beside each image; labels.txt: the classes
    both       images.txt: the images as a list for --split; exported.csv: which image each file is a copy of
    =========  ======================================================================================================

    The folder is named OUT.parts until it is complete. What an interrupted call left there is removed.

    Args:
        items: the images, at least one.

    Raises:
        SdaError: see `check_export`; the network has changed since the cache was made; an image cannot be read, or a file
            cannot be written.
    """
    check_export(out, cache, form)
    run = trained.load(Path(cache.about["run"]), cache.about["checkpoint"], cache.about["weights"], device)
    check_made_by(cache, run)
    parts = out.with_name(f"{out.name}.parts")
    names = dict(zip(file_names([item.key for item in items]), items, strict=True))
    try:
        with owned(parts, shown=out):
            _clear(parts)
            _write_lists(parts, form, run, names)
            for done, (name, item) in enumerate(names.items()):
                progress("pre-labels", done, len(names))
                _write_image(parts, form, run, name, item)
            progress("pre-labels", len(names), len(names))
            (parts / _UNFINISHED).unlink()
        rename(parts, out)
    except OSError as error:
        reason = f"{error.filename or parts}: {error.strerror or error}"
        raise SdaError(f"{out}: cannot be written ({reason}); fix the cause, then run the same command again") from None


def _clear(parts: Path) -> None:
    """Remove what an interrupted export left in its folder, and mark the folder as that of an export.

    Raises:
        SdaError: the folder has other files, and no such mark.
    """
    left = [path for path in parts.iterdir() if path.name != LOCK]
    if left and not (parts / _UNFINISHED).exists():
        raise SdaError(f"{parts}: it exists and is no unfinished export; choose another --export, or remove it")
    (parts / _UNFINISHED).touch()
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _UNFINISHED:
            path.unlink()


def file_names(keys: Sequence[str]) -> list[str]:
    """Return a file name for each image: its own, with the names of its folders before it if another image has the same.

    No two names are equal without their suffix, whatever the case, because the labels have the same names. White space, quotes
    and #, which have a meaning in lists of images, become _.
    """
    plain = [PurePosixPath(re.sub(r"[\s\"'#\\]", "_", key)) for key in keys]
    uses = Counter(path.stem.casefold() for path in plain)
    names, taken = [""] * len(keys), set()
    for place in sorted(range(len(keys)), key=lambda place: uses[plain[place].stem.casefold()] > 1):
        path = plain[place]
        long = "_".join(path.with_suffix("").parts)
        stem = path.stem if uses[path.stem.casefold()] == 1 else long
        numbers = itertools.count(2)
        while stem.casefold() in taken:
            stem = f"{long}-{next(numbers)}"
        taken.add(stem.casefold())
        names[place] = stem + path.suffix
    return names


def _write_lists(parts: Path, form: str, run: Run, names: dict[str, Item]) -> None:
    """Write everything that is not of one image."""
    for folder in (FORMS[form], *(("SegmentationClass", "ImageSets/Segmentation") if form == "cvat" else ())):
        (parts / folder).mkdir(parents=True)
    write_text(parts / "images.txt", list_text(list(names.values())))
    table = io.StringIO()
    csv.writer(table).writerows([("file", "image"), *((f"{FORMS[form]}/{name}", item.key) for name, item in names.items())])
    write_text(parts / "exported.csv", table.getvalue())
    colors = run.table.colors
    if form == "labelme":
        write_text(parts / "labels.txt", "".join(f"{name}\n" for name in colors))
        return
    rows = dict(colors) if [0, 0, 0] in colors.values() else {"background": [0, 0, 0], **colors}
    lines = [f"{name}:{','.join(map(str, color))}::\n" for name, color in rows.items()]
    write_text(parts / "labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(lines))
    write_text(parts / "ImageSets/Segmentation/default.txt", "".join(f"{PurePosixPath(name).stem}\n" for name in names))
    labels = [{"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color), "attributes": []} for name, color in colors.items()]
    write_json(parts / "labels.json", labels)


def _write_image(parts: Path, form: str, run: Run, name: str, item: Item) -> None:
    """Copy an image as it is, and write the network's prediction for it."""
    labels, path = run.predict(item.image).labels, parts / FORMS[form] / name
    with naming(item.image), item.image.open("rb") as source, written_whole(path) as copy:
        shutil.copyfileobj(source, copy)
    if form == "labelme":
        write_json(path.with_suffix(".json"), labelme(labels, run.table.names, name))
        return
    with written_whole(parts / "SegmentationClass" / f"{path.stem}.png") as file:
        Image.fromarray(colorize(labels, list(run.table.colors.values()))).save(file, "PNG")


def labelme(labels: np.ndarray, names: Sequence[str], image: str) -> dict:
    """Return the content of labelme's JSON file for an image.

    Args:
        labels: (H, W) uint8, indices into `names`. image: name of the image file, in the same folder.
    """
    height, width = labels.shape
    shapes: list[dict] = [
        {"label": names[value], "points": ring, "group_id": None, "description": "", "shape_type": "polygon", "flags": {}}
        for value, ring in polygons(labels, tolerance=max(1.0, max(height, width) / 1000))
    ]
    size = {"imageHeight": height, "imageWidth": width}
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None, **size}


# Polygons


def polygons(labels: np.ndarray, tolerance: float = 0.0) -> list[tuple[int, list[Point]]]:
    """Return the regions of a label map as polygons without holes, to be painted in this order: large ones first.

    A hole of a region is other regions, which are smaller and painted later. A pixel belongs to a polygon if its centre is
    inside. With tolerance 0, painting all polygons gives the label map, exactly. Neighbours share the points of their border.

    Args:
        labels: (H, W) uint8, every pixel has a class. tolerance: maximum distance, in pixels, by which borders may be simplified
            (Ramer-Douglas-Peucker); a region that would vanish keeps its exact border.

    Returns:
        (class, points) of each region of pixels of a class that are connected by their sides.
    """
    regions, count = np.zeros(labels.shape, np.int32), 0
    for value in np.unique(labels):
        found, number = ndimage.label(labels == value)
        regions[found > 0] = found[found > 0] + count
        count += number
    framed = np.pad(regions, 1)
    _, first = np.unique(framed, return_index=True)
    starts, flat, stride = first[1:].tolist(), memoryview(framed.tobytes()).cast("i"), framed.shape[1]
    outlines = []
    for start in starts:
        value = int(labels[start // stride - 1, start % stride - 1])
        exact = _outline(flat, stride, start)
        outlines.append((value, exact, abs(_area([point for point, _ in exact]))))
    outlines.sort(key=lambda outline: -outline[2])
    return [(value, _simplified(exact, tolerance, area)) for value, exact, area in outlines]


def _outline(flat: memoryview, stride: int, start: int) -> list[tuple[Point, bool]]:
    """Follow the outer border of a region clockwise, with the region on the right-hand side.

    Args:
        flat: numbers of the regions, row by row, in a frame of zeros. stride: their number per row. start: the first pixel of the
            region in this order. A corner of pixels has the index of the pixel below and to the right.

    Returns:
        The corners at which the border turns or another pair of regions meets; and whether the latter is the case.
    """
    region, corner, heading = flat[start], start, 0
    points: list[tuple[Point, bool]] = []
    move, right, left = (1, stride, -1, -stride), (0, -1, -stride - 1, -stride), (-stride, 0, -1, -stride - 1)
    while True:
        corner += move[heading]
        before = heading
        if flat[corner + right[heading]] != region:
            heading = (heading + 1) % 4
        elif flat[corner + left[heading]] == region:
            heading = (heading - 1) % 4
        a, b, c, d = flat[corner - stride - 1], flat[corner - stride], flat[corner - 1], flat[corner]
        meeting = len({a, b, c, d}) > 2 or (a == d and b == c and a != b)
        if meeting or heading != before:
            points.append(((corner % stride - 1, corner // stride - 1), meeting))
        if corner == start and heading == 0:
            return points


def _area(ring: Sequence[Point]) -> float:
    """Return the area of a polygon; negative if it runs anticlockwise on the screen."""
    x, y = np.array(ring, np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _simplified(outline: list[tuple[Point, bool]], tolerance: float, area: float) -> list[Point]:
    """Simplify the parts of an outline between the points where regions meet, in the same way for both neighbours."""
    first = next((place for place, (_, meeting) in enumerate(outline) if meeting), 0)
    turned = outline[first:] + outline[: first + 1]
    ends = [place for place, (_, meeting) in enumerate(turned) if meeting or place in (0, len(turned) - 1)]
    points = [point for point, _ in turned]
    ring: list[Point] = []
    for begin, end in itertools.pairwise(ends):
        arc = points[begin : end + 1]
        turn = arc[::-1] < arc
        kept = _reduced(arc[::-1] if turn else arc, tolerance)
        ring += (kept[::-1] if turn else kept)[:-1]
    if len(ring) < 3 or abs(_area(ring)) < area / 2:
        return points[:-1]
    return ring


def _reduced(arc: list[Point], tolerance: float) -> list[Point]:
    """Return the points of a line that the algorithm of Ramer, Douglas and Peucker keeps."""
    points, keep, waiting = np.array(arc, np.float64), {0, len(arc) - 1}, [(0, len(arc) - 1)]
    while waiting:
        begin, end = waiting.pop()
        if end - begin < 2:
            continue
        between, along = points[begin + 1 : end] - points[begin], points[end] - points[begin]
        length = math.hypot(*along)
        away = abs(between @ np.array([-along[1], along[0]])) / length if length else np.hypot(*between.T)
        place = int(away.argmax())
        if away[place] > tolerance:
            keep.add(begin + 1 + place)
            waiting += [(begin, begin + 1 + place), (begin + 1 + place, end)]
    return [arc[place] for place in sorted(keep)]
