"""Read small text files that a crash, a full disk or a stranger may have damaged: regular files of a limited size, in UTF-8."""

import json
import os
import stat
from pathlib import Path

from sda.errors import SdaError

TEXT = 2**22  # most bytes of a file that people write, such as a recipe (4 MiB)
DATA = 2**30  # most bytes of a file that programs write, such as scores or a log (1 GiB)


def read_text(path: Path, most: int = TEXT) -> str:
    """Return the text of a file, without a byte-order mark.

    Args:
        most: the largest size that is read, in bytes.

    Raises:
        FileNotFoundError: no such file.
        SdaError: anything else than a regular file (a folder, device or pipe), a file that is too large or not UTF-8, or one that
            cannot be read.
    """
    data = read_bytes(path, most)
    try:
        text = data.decode("utf-8-sig")  # Windows editors write a byte-order mark
        found = "UTF-16" if "\0" in text else ""
    except UnicodeDecodeError as error:
        found = "UTF-16" if b"\0" in data else f"not UTF-8 (byte {error.start} is {data[error.start]:#04x})"
    if found:
        raise SdaError(f"{path}: cannot be read: it is {found}, but must be UTF-8; save it again as UTF-8")
    return text


def read_bytes(path: Path, most: int = DATA) -> bytes:
    """Return the content of a file; see `read_text`."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer must not block the program
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise SdaError(f"{path}: cannot be read: a folder, device or pipe, not a regular file")
            with open(number, "rb", closefd=False) as file:
                data = file.read(most + 1)
        finally:
            os.close(number)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise SdaError(f"{path}: cannot be read: {getattr(error, 'strerror', '') or error}") from None
    if len(data) > most:
        raise SdaError(f"{path}: cannot be read: larger than {most / 2**20:.0f} MiB; is this the right file?")
    return data


def read_object(path: Path) -> dict:
    """Return the JSON object in a file.

    Raises:
        FileNotFoundError: no such file.
        SdaError: as `read_text`; or the file is not JSON, such as an empty or cut one, or holds something else than an object.
    """
    try:
        value = json.loads(read_text(path, DATA))
    except (ValueError, RecursionError) as error:
        raise SdaError(f"{path}: not valid JSON ({error}); it may have been cut off") from None
    if not isinstance(value, dict):
        raise SdaError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_log(path: Path) -> list[dict]:
    """Return the records of a metrics.jsonl, each with its `step`; [] if there is no file.

    Damaged lines are skipped: a killed process leaves half a line, and a crashed machine may leave null bytes.

    Raises:
        SdaError: not a regular file, too large, or unreadable.
    """
    records = []
    try:
        text = read_bytes(path, DATA).decode(errors="replace")
    except FileNotFoundError:
        return []
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and type(record.get("step")) is int and 0 <= record["step"] <= 10**9:
            records.append(record)
    return records
