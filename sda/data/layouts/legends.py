"""Files beside labels that give the classes by name: CVAT's labelmap.txt, Roboflow's _classes.csv, COCO's categories, others."""

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path

from sda.data.files import show_color, voc_color
from sda.errors import SdaError
from sda.reading import read_text

# Names that mean that a pixel has no label.
VOID = re.compile(r"(?i)[_ -]*(background|bg|void|un-?labell?ed|unknown|ignored?|none)[_ -]*")

Legend = dict[str, str]  # value in the label files, in decimal or as "#rrggbb" → name


def own_color(index: int) -> str:
    """Return the colour "#rrggbb" that sda gives to class number `index`, 0 to 255, if nothing gives it one.

    It is bright or dark like VOC's, but no colour of a known class table and no grey: whoever finds it in a mask knows the class.
    """
    return show_color(voc_color(index) + 0x081018)


def read_legend(paths: Iterable[Path], notes: list[str]) -> Legend:
    """Return what the files of classes among `paths` say. Add notes on files that contradict others."""
    found: Legend = {}
    for path in paths:
        try:
            own = _read(path)
        except (SdaError, FileNotFoundError):
            continue
        if own and found and any(found.get(value, name) != name for value, name in own.items()):
            notes.append(f"{path} gives the classes other names than another file of classes: it is not read")
            continue
        found |= own
    return found


def _read(path: Path) -> Legend:
    """Return the classes in a file; {} if it is of another kind."""
    if path.name.lower() == "labelmap.txt":
        return _labelmap(read_text(path))
    if path.suffix.lower() == ".json":
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {str(int(each["id"])): str(each["name"]) for each in json.loads(read_text(path)).get("categories", [])}
    if path.suffix.lower() != ".csv":
        return {}
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(read_text(path))) if row]
    head = [cell.lower() for cell in rows[0]] if rows else []
    if head[:2] == ["pixel value", "class"]:
        return {str(int(row[0])): row[1] for row in rows[1:] if len(row) > 1 and row[0].isdecimal()}
    if head[:4] in (["name", "r", "g", "b"], ["class", "r", "g", "b"]):
        return {_color(row[1:4]): row[0] for row in rows[1:] if _is_color(row[1:4])}
    return {}


def _labelmap(text: str) -> Legend:
    """Return the classes of CVAT's labelmap.txt: a line `name:r,g,b:parts:actions` each."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        color = rest.partition(":")[0].split(",")
        if name and not name.startswith("#") and _is_color(color):
            found[_color(color)] = name.strip()
    return found


def _is_color(values: list[str]) -> bool:
    return len(values) == 3 and all(value.strip().isdecimal() and int(value) < 256 for value in values)


def _color(values: list[str]) -> str:
    return "#" + "".join(f"{int(value):02x}" for value in values)
