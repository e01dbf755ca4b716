"""The forms of annotations: how to recognise the files of each, and how to read the label of an image from them."""

import csv
import functools
import io
import json
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from sda.data.annotations import coco, cvat, datumaro, label_studio, lines, polygons, via
from sda.data.annotations.drawing import Drawing, paint
from sda.data.files import SKIP, FileError, LabelFile
from sda.data.layouts.pattern import composed, is_image
from sda.errors import SdaError
from sda.reading import DATA, read_text

_MALFORMED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


class Form(NamedTuple):
    """One form.

    Attributes:
        title, suffix: of its files.
        tells: whether the content of a file is of this form.
        draw: (content, or part of it for one image; file) → the annotations of the image.
        objects: content, or part of it for one image → what is drawn, before it is understood: [] for an image without objects.
        parts: of a form with many images in one file: content → (name of an image, its part of the content), ….
        names: content → the names of the classes; by default, those that `draw` finds.
        files: further files that a part is in.
        tells_empty: whether a file without an object says that its image shows none; in other forms, such an image may also not
            be annotated yet.
    """

    title: str
    suffix: str
    tells: Callable[[Any], bool]
    draw: Callable[[Any, Path], Drawing]
    objects: Callable[[Any], list]
    parts: Callable[[Any], list[tuple[str, Any]]] | None = None
    names: Callable[[Any], list[str]] | None = None
    files: Callable[[Any, Path], tuple[Path, ...]] = lambda part, file: ()
    tells_empty: bool = False


FORMS: dict[str, Form] = {
    "labelme": Form("labelme", ".json", polygons.tells_labelme, polygons.draw_labelme, polygons.labelme_objects),
    "labelme-xml": Form("LabelMe XML", ".xml", polygons.tells_xml, polygons.draw_xml, polygons.xml_objects),
    "supervisely": Form(
        "Supervisely", ".json", polygons.tells_supervisely, polygons.draw_supervisely, polygons.supervisely_objects
    ),
    "cityscapes": Form(
        "Cityscapes polygon", ".json", polygons.tells_cityscapes, polygons.draw_cityscapes, polygons.cityscapes_objects
    ),
    "darwin": Form("V7 Darwin", ".json", polygons.tells_darwin, polygons.draw_darwin, polygons.darwin_objects),
    "yolo": Form("YOLO", ".txt", polygons.tells_yolo, polygons.draw_yolo, polygons.yolo_objects, tells_empty=True),
    "coco": Form("COCO", ".json", coco.tells, coco.draw, coco.objects, coco.index, coco.names),
    "coco-panoptic": Form(
        "COCO panoptic",
        ".json",
        coco.tells_panoptic,
        coco.draw_panoptic,
        coco.segments,
        coco.index,
        coco.names,
        coco.panoptic_files,
    ),
    "label-studio": Form(
        "Label Studio",
        ".json",
        label_studio.tells,
        label_studio.draw,
        label_studio.objects,
        label_studio.index,
        label_studio.names,
    ),
    "cvat": Form("CVAT XML", ".xml", cvat.tells, cvat.draw, cvat.objects, cvat.index, cvat.names),
    "datumaro": Form("Datumaro", ".json", datumaro.tells, datumaro.draw, datumaro.objects, datumaro.index, datumaro.names),
    "labelbox": Form(
        "Labelbox",
        ".ndjson",
        lines.tells_labelbox,
        lines.draw_labelbox,
        lines.labelbox_objects,
        lines.index_labelbox,
        lines.labelbox_names,
    ),
    "kaggle-rle": Form(
        "Kaggle run-length",
        ".csv",
        lines.tells_runs,
        lines.draw_runs,
        lines.run_objects,
        lines.index_runs,
        lines.run_names,
        tells_empty=True,
    ),
    "via": Form("VIA", ".json", via.tells, via.draw, via.objects, via.index, via.names),
}


def load(path: Path) -> Any:
    """Return the content of a file: of JSON, of XML (an element), of each line of NDJSON, the rows of CSV, or its text.

    Raises:
        SdaError: it cannot be read.
    """
    try:
        text = read_text(path, DATA)
        if path.suffix.lower() == ".json":
            return json.loads(text)
        if path.suffix.lower() == ".ndjson":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        if path.suffix.lower() == ".csv":
            csv.field_size_limit(DATA)
            return [row for row in csv.reader(io.StringIO(text)) if row]
        if path.suffix.lower() == ".xml":
            if "<!ENTITY" in text:
                raise SdaError(f"{path}: XML with entities is not read; export the annotations again")
            return ElementTree.fromstring(text)
        return text
    except FileNotFoundError:
        raise SdaError(f"{path}: no such file; restore it") from None
    except (ValueError, RecursionError, ElementTree.ParseError, csv.Error) as error:
        raise SdaError(f"{path}: not valid {path.suffix[1:].upper()} ({error}); it may have been cut off") from None


def form_of(path: Path) -> str | None:
    """Return the form of a file; None if it has none of them, or cannot be read."""
    try:
        content = load(path)
    except SdaError:
        return None
    return next((name for name, form in FORMS.items() if form.suffix == path.suffix.lower() and _tells(form, content)), None)


def _tells(form: Form, content: Any) -> bool:
    try:
        return form.tells(content)
    except _MALFORMED:
        return False


@dataclass(frozen=True)
class Annotated:
    """The annotations of an image. Implements `Drawn`.

    Attributes:
        form: a key of FORMS.
        file, name: the file, and the name of the image in it if it has many.
    """

    form: str
    file: Path
    name: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        form = FORMS[self.form]
        try:
            return (self.file, *form.files(index_of(self.form, self.file)[self.name], self.file)) if form.parts else (self.file,)
        except (*_MALFORMED, SdaError):  # whoever reads the label says what is wrong
            return (self.file,)

    def is_empty(self) -> bool:
        """Return whether the annotations have no object. False if they cannot be read: whoever reads the label says why."""
        form = FORMS[self.form]
        try:
            if form.parts:
                return not form.objects(index_of(self.form, self.file)[self.name])
            stat = os.stat(self.file)
            return _is_empty(self.form, self.file, stat.st_size, stat.st_mtime_ns)
        except (*_MALFORMED, OSError, SdaError):
            return False

    def read(self, image: Path) -> LabelFile:
        """Paint the annotations, as the image is shown. Raise FileError if they cannot be used."""
        form = FORMS[self.form]
        try:
            part = index_of(self.form, self.file)[self.name] if form.parts else load(self.file)
            if not form.parts and not (form.tells(part) or (isinstance(part, str) and not part.strip())):
                raise FileError(f"{self.file}: this is not a {form.title} file; fix or remove it, {SKIP}")
            return paint(form.draw(part, self.file), image, self.file)
        except FileError:
            raise
        except SdaError as error:
            if "pip install" in str(error):
                raise
            raise FileError(f"{error}, {SKIP}") from None
        except _MALFORMED as error:
            raise FileError(
                f"{self.file}: the annotations of {image.name} cannot be used: {_why(error)}; fix them, {SKIP}"
            ) from None


def _why(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else " ".join(str(error).split())


_SMALL = 2**16  # bytes: larger files are read only if their beginning suggests that they have no object
_NO_OBJECT = re.compile(rb'"(shapes|objects|annotations)"\s*:\s*\[\s*\]')


@functools.lru_cache(maxsize=2**16)
def _is_empty(name: str, path: Path, size: int, mtime_ns: int) -> bool:
    """Return whether a file of one image has no object. A file that has not changed is read once per process."""
    if size > _SMALL:  # labelme can store the photo in its file, after the shapes
        with path.open("rb") as file:
            if not _NO_OBJECT.search(file.read(_SMALL)):
                return False
    return not FORMS[name].objects(load(path))


_lock = threading.Lock()


def index_of(form: str, path: Path) -> dict[str, Any]:
    """Return name of an image → its part of a file with many images. A file that has not changed is read once per process.

    Raises:
        SdaError: the file cannot be read, has another form, or has different annotations for one image.
    """
    try:
        stat = os.stat(path)
    except OSError as error:
        raise SdaError(f"{path}: cannot be read ({error.strerror}); restore it") from None
    with _lock:  # threads must not read it at the same time
        return _index(form, path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _index(name: str, path: Path, size: int, mtime_ns: int) -> dict[str, Any]:
    form, content, found = FORMS[name], load(path), dict[str, Any]()
    assert form.parts is not None
    if not _tells(form, content):
        other = next((other.title for other in FORMS.values() if _tells(other, content)), "")
        raise SdaError(
            f"{path}: this is not a {form.title} file{f' but a {other} file' if other else ''}; correct format in its layout"
        )
    try:
        entries = form.parts(content)
    except _MALFORMED as error:
        raise SdaError(f"{path}: not a {form.title} file that can be read: {_why(error)}; export it again") from None
    for image, part in entries:
        image = composed(image.replace("\\", "/"))
        if found.setdefault(image, part) is not part and not _same(form, found[image], part, path):
            raise SdaError(f"{path}: it lists {image} twice, with different annotations; remove one of them")
    return found


def _same(form: Form, one: Any, other: Any, path: Path) -> bool:
    try:
        return repr(form.draw(one, path)) == repr(form.draw(other, path))
    except (*_MALFORMED, SdaError):
        return False


def match_names(path: Path, names: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """Return key of an image → its name in an annotation file, for the images that it names.

    The file names must be equal, except for the suffix if the annotations have none; of several, the one counts whose folders
    agree best.

    Raises:
        SdaError: two images could have one name, or two names could mean one image.
    """
    by_file: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_file[name.rpartition("/")[2]].append(name)
    best: dict[str, tuple[int, str]] = {}  # name → how well its image fits, and the key of that
    for key in keys:
        file = composed(key).rpartition("/")[2]
        stem = os.path.splitext(file)[0]
        found = by_file.get(file) or [name for name in by_file.get(stem, []) if not is_image(name)]
        ranked = sorted(((_agreeing(key, name), name) for name in found), reverse=True)
        if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
            raise SdaError(f"{path}: {key} could be {ranked[0][1]} or {ranked[1][1]}: write the folders of the images into it")
        for fit, name in ranked[:1]:
            before, other = best.get(name, (-1, ""))
            if fit == before:
                raise SdaError(
                    f"{path}: {name} could be {other} or {key}: write the folders of the images into it, or rename one"
                )
            if fit > before:
                best[name] = fit, key
    return {key: name for name, (_, key) in best.items()}


def _agreeing(key: str, name: str) -> int:
    """Return how many of the last folders of two paths agree."""
    pairs = zip(composed(key).split("/")[-2::-1], name.split("/")[-2::-1], strict=False)
    agree = 0
    for one, other in pairs:
        if one != other:
            break
        agree += 1
    return agree
