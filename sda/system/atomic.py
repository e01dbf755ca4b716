"""Write files that appear under their name only when they are complete."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sda.errors import SdaError, naming
from sda.system.owned import locked_file


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that is renamed to `path` once it is on the disk; on an error it is removed.

    Raises:
        SdaError: another process is writing the same file. OSError: the file cannot be written; the error names it.
    """
    temporary = path.with_name(f"{path.name}.partial")
    with naming(path), locked_file(temporary) as descriptor:
        try:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                yield file
                file.flush()
                os.fsync(descriptor)
            rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def written_picture(path: Path) -> Iterator[BinaryIO]:
    """Create the folder of a picture, and yield a file as `written_whole` does.

    Raises:
        SdaError: the picture cannot be written, for example because the disk is full or its suffix is of no picture format.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            yield file
    except (OSError, ValueError) as error:
        raise SdaError(f"{path}: this picture cannot be written ({getattr(error, 'strerror', None) or error})") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Names of files that are not UTF-8 keep their bytes."""
    with written_whole(path) as file:
        file.write(text.encode(errors="surrogateescape"))


def write_json(path: Path, value: object) -> None:
    """Write plain values as an indented JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def rename(temporary: Path, path: Path) -> None:
    """Rename a file, replacing `path` if it exists, so that the new name survives a power cut."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
