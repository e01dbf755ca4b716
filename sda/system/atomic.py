"""Files that stand under their name whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def written_whole(path: Path, tag: str = "") -> Iterator[BinaryIO]:
    """A file to write to, which takes the name `path` once it is whole and on the disk; on an error nothing of it is left.

    Args:
        tag: part of the temporary name, for a file that several processes may write at a time.
    """
    temporary = path.with_name(f"{path.name}{tag}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def rename(temporary: Path, path: Path) -> None:
    """Put a file in the place of another, so that the new name too survives a power cut."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
