"""The shelves `datasets/` and `recipes/`: find a TOML file by name or by path and read it strictly.

In a checkout `sda/datasets` and `sda/recipes` are links to the folders beside the package; a wheel holds copies of these.
"""

import difflib
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sda.errors import SdaError

_PACKAGE = Path(__file__).resolve().parent


class Strict(BaseModel):
    """Base of all that is read from TOML: frozen, unknown keys refused, types never converted (1.5 is no int)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


Model = TypeVar("Model", bound=Strict)


def shelf(kind: str) -> Path:
    """The folder of one shelf: `datasets`, `datasets/classes` or `recipes`."""
    return _PACKAGE / kind


def names(kind: str) -> list[str]:
    """What stands on a shelf, sorted, without `.toml`."""
    return sorted(path.stem for path in shelf(kind).glob("*.toml"))


def find(kind: str, name: str) -> Path:
    """The file of `name` on a shelf, or `name` itself when it is a path to a TOML file.

    Raises:
        SdaError: there is no such file; the message suggests the nearest name.
    """
    if name.endswith(".toml"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise SdaError(f"{name}: no such file")
        return path
    path = shelf(kind) / f"{name}.toml"
    if "/" in name or not path.is_file():
        raise SdaError(f"{name!r} is not on the shelf {kind}/{hint(name, names(kind))}; a path ending in .toml works too")
    return path


def hint(word: str, known: list[str]) -> str:
    """ " (did you mean 'x'?)" when something near `word` is known, else the list of what is known."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(known)})"


def read(path: Path, model: type[Model]) -> Model:
    """Read a TOML file into `model`.

    Raises:
        SdaError: unreadable file, TOML syntax, unknown key or a value of the wrong type; names file and key.
    """
    return check(model, parse(path), str(path))


def parse(path: Path) -> dict:
    """The plain dictionary in a TOML file, unchecked; SdaError when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SdaError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SdaError(f"{path}: not valid TOML: {error}") from None


def check(model: type[Model], values: dict, where: str) -> Model:
    """Validate `values`; every fault becomes part of one SdaError line that opens with `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_fault(fault, model) for fault in error.errors())
        raise SdaError(f"{where}: {faults}") from None


def _fault(fault: dict, model: type[Model]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}{hint(key, list(model.model_fields)) if len(fault['loc']) == 1 else ''}"
    if fault["type"] == "missing":
        return f"key {key!r} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key} = {fault['input']!r}: {message[0].lower()}{message[1:]}"
