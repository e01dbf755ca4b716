"""The shelves `datasets/` and `recipes/`: find a TOML file by name or by path, and validate it strictly.

In a checkout, `sda/datasets` and `sda/recipes` are links to the folders beside the package; a wheel contains copies of them.
"""

import difflib
import reprlib
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from sda.errors import SdaError

_PACKAGE = Path(__file__).resolve().parent
_FAULTS = 5  # most faults of one file in a message
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxdict, _SHORT.maxlist = 200, 200, 8, 8


class Strict(BaseModel):
    """Base class of everything read from TOML: frozen; rejects unknown keys; never converts types (1.5 is not an int)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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
        path = Path(name).expanduser()
        if not path.is_file():
            raise SdaError(f"{name}: no such file")
        return path
    path = shelf(kind) / f"{name}.toml"
    if "/" in name or not path.is_file():
        raise SdaError(f"{name!r} is not in {kind}/{hint(name, names(kind))}; you can also give the path of a .toml file")
    return path


def hint(word: str, known: list[str]) -> str:
    """Return " (did you mean 'x'?)" if a known word is close to `word`, else the list of known words."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(known)})"


def read(path: Path, model: type[Model]) -> Model:
    """Read a TOML file and validate it as `model`.

    Raises:
        SdaError: the file is unreadable or not TOML, a key is unknown or a value invalid; the message names file and key.
    """
    return check(model, parse(path), str(path))


def parse(path: Path) -> dict:
    """Return the contents of a TOML file as a dict, without validation.

    Raises:
        SdaError: the file cannot be read or is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SdaError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SdaError(f"{path}: not valid TOML: {error}") from None


def check(model: type[Model], values: dict, where: str) -> Model:
    """Validate `values` as `model`.

    Raises:
        SdaError: one line that starts with `where` and lists every invalid value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = [_fault(fault, model) for fault in error.errors(include_url=False)[:_FAULTS]]
        more = error.error_count() - len(faults)
        raise SdaError(f"{where}: {'; '.join(faults)}{f'; and {more} more' if more else ''}") from None


def _fault(fault: ErrorDetails, model: type[Strict]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}{hint(key, list(model.model_fields)) if len(fault['loc']) == 1 else ''}"
    if fault["type"] == "missing":
        return f"key {key!r} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if not key:
        return message
    return f"{key} = {' '.join(_SHORT.repr(fault['input']).split())}: {message[0].lower()}{message[1:]}"
