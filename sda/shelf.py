"""The shelves `datasets/` and `recipes/`: find a TOML file by name or by path, and validate it strictly.

In a checkout, `sda/datasets` and `sda/recipes` are links to the folders beside the package; a wheel contains copies of them.
"""

import difflib
import json
import os
import re
import reprlib
import tomllib
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from sda.errors import SdaError
from sda.reading import read_text

LONGEST = 100  # characters of a value in an error message
LONGEST_TEXT = 10_000  # characters of a text
MOST_FAULTS = 5  # of one file in a message
_PACKAGE = Path(__file__).resolve().parent
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxdict, _SHORT.maxlist = LONGEST, LONGEST, 8, 8


class Strict(BaseModel):
    """Base class of everything read from TOML: frozen; rejects unknown keys; never converts types (1.5 is not an int).

    Texts have a limited length, no null characters, which no path may contain, and can be written as UTF-8.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, str_max_length=LONGEST_TEXT)
    advice: ClassVar[dict[str, str]] = {}  # key that is no field → what to write instead

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, values: object) -> object:
        for key, value in values.items() if isinstance(values, dict) else ():
            inside = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
            texts = [part for part in inside if isinstance(part, str)]
            text = "".join([str(key), *texts])
            if "\0" in text:
                raise ValueError(f"{str(key)[:LONGEST]}: contains a null character; remove it")
            if any("\ud800" <= character <= "\udfff" for character in text):  # how Python holds bytes that are no text
                raise ValueError(f"{str(key)[:LONGEST]} = {_shown(value)}: not UTF-8; rename the file or folder")
        return values


Model = TypeVar("Model", bound=Strict)


def shelf(kind: str) -> Path:
    """Return the folder of a shelf: `datasets`, `datasets/classes` or `recipes`."""
    return _PACKAGE / kind


def names(kind: str) -> list[str]:
    """Return the names on a shelf, sorted, without `.toml`."""
    return sorted(path.stem for path in shelf(kind).glob("*.toml"))


def find(kind: str, name: str) -> Path:
    """Return the path of `name` on a shelf, or `name` itself if it is the path of a TOML file.

    Raises:
        SdaError: no such file; the message suggests the closest name.
    """
    if name.endswith(".toml"):
        path = Path(os.path.expanduser(name))
        if not os.path.exists(path):  # unlike Path.exists, also false for a name that is too long
            raise SdaError(f"{name}: no such file")
        return path
    path = shelf(kind) / f"{name}.toml"
    if "/" in name or not os.path.isfile(path):
        raise SdaError(f"{name!r} is not in {kind}/{hint(name, names(kind))}; you can also give the path of a .toml file")
    return path


MANY = 30  # known words that a message lists


def nearest(word: str, known: list[str], count: int = 3) -> list[str]:
    """Return up to `count` known words that are close to `word`, the closest first."""
    return difflib.get_close_matches(word[:LONGEST], list(dict.fromkeys(known)), n=count)


def hint(word: str, known: list[str]) -> str:
    """Return " (did you mean 'x'?)" if a known word is close to `word`, else the known words, or the three nearest of many."""
    if near := nearest(word, known, 1):
        return f" (did you mean {near[0]!r}?)"
    if len(known) <= MANY:
        return f" (known: {', '.join(known)})"
    return f" (the nearest of {len(known)}: {', '.join(difflib.get_close_matches(word[:LONGEST], known, n=3, cutoff=0.0))})"


def read(path: Path, model: type[Model]) -> Model:
    """Read a TOML file and validate it as `model`.

    Raises:
        SdaError: the file is unreadable or not TOML, a key is unknown or a value invalid; the message names file and key.
    """
    return check(model, parse(path), str(path))


def parse(path: Path) -> dict:
    """Return the contents of a TOML file as a dict, without validation.

    Raises:
        SdaError: the file cannot be read, is not UTF-8 (with or without a byte-order mark), or is not valid TOML.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise SdaError(f"{path}: no such file") from None
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: Python refuses numbers of thousands of digits
        raise SdaError(f"{path}: not valid TOML: {error}{_toml_advice(text, str(error))}") from None


def _toml_advice(text: str, error: str) -> str:
    """Return a clause that says how to write the line that is not valid TOML; "" if that is unknown."""
    place = re.search(r"at line (\d+)", error)
    line = (text.split("\n")[int(place[1]) - 1] if place else "").strip()
    if found := re.fullmatch(r"([\w.-]+)\s*:\s*([^\s=][^=]*)", line):
        return f"; write {_shown(line)[1:-1]} as {found[1]} = VALUE"
    if not (found := re.fullmatch(r"([\w.-]+)\s*=\s*(.+?)(\s+#.*)?", line)):
        return ""
    key, value = found[1], found[2]
    if size := re.fullmatch(r"[(\[]?\s*(\d+)\s*[x×X, ]\s*(\d+)\s*[)\]]?", value):
        return f'; write {key} = "{size[1]}x{size[2]}", in quotes, or {key} = [{size[1]}, {size[2]}]'
    if value.startswith('"') and "\\" in value:
        return f"; in {key}, write the text between single quotes, in which a backslash stands for itself"
    if value.lower() in ("true", "false"):
        return f"; write {key} = {value.lower()}"
    if value.lower() in ("none", "null", "nil"):
        return f"; leave {key} out: that means its default"
    if re.fullmatch(r"[-+]?\.\d+", value):
        return f"; write {key} = {float(value)}"
    quoted = "" if re.search(r"[\"'\[\]{}]", value) else f'{key} = "{value}"'
    return f"; write {_shown(quoted)[1:-1]}, in quotes" if quoted else ""


def toml_value(value: object) -> str:
    """Return a number, text, list or table in TOML, on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml_value(key)} = {toml_value(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # allowed in JSON, not in TOML


def check(model: type[Model], values: dict, where: str) -> Model:
    """Validate `values` as `model`.

    Raises:
        SdaError: one line that starts with `where` and lists the invalid values.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [_fault(fault, model) for fault in error.errors(include_url=False)[:MOST_FAULTS]]
        more = error.error_count() - len(faults)
        raise SdaError(f"{where}: {'; '.join(faults)}{f'; and {more} more' if more else ''}") from None


def _fault(fault: ErrorDetails, model: type[Strict]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return unknown(model, key) if len(fault["loc"]) == 1 else f"unknown key {_shown(key)}"
    if fault["type"] == "missing":
        return f"key {key!r} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key} = {_shown(fault['input'])}: {message[0].lower()}{message[1:]}"


def unknown(model: type[Strict], key: str) -> str:
    """Return a message about a key that is no field of a model, with the key to write instead."""
    advice = f" ({model.advice[key]})" if key in model.advice else hint(key, list(model.model_fields))
    return f"unknown key {_shown(key)}{advice}"


def _shown(value: object) -> str:
    """Return a value as in Python, shortened: a long one would hide the message."""
    try:
        return " ".join(_SHORT.repr(value).split())
    except (ValueError, RecursionError):  # a number of thousands of digits, or thousands of tables in each other
        return "a value too long to show"
