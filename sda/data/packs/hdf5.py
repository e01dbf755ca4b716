"""Read HDF5 files so that a crafted file neither reads other files nor takes more memory than its size explains."""

import math
import mmap
import struct
from pathlib import Path

import h5py
import numpy as np

from sda.system.resumable import first_line

# What reading a damaged or crafted file can raise; h5py has no exceptions of its own.
FAULTS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, MemoryError, OverflowError)

_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
_HEAP = b"GCOL\x01\0\0\0"
_GROWTH = 1100  # no compression that we read makes data smaller than that; deflate reaches 1032
_TEXTS = 64  # texts that are read at a time


def open_file(path: Path, locking: bool | None = False, has_text: bool = True) -> h5py.File:
    """Open a file for reading. Raise one of FAULTS if it cannot be opened.

    Args:
        locking: False: without a lock, which fails on many network file systems. None: HDF5's default, for files that users may
            open with h5py in the same process.
        has_text: it has text of variable length.
    """
    if has_text:
        _check_heaps(path)
    return h5py.File(path, "r", locking=locking)


def _check_heaps(path: Path) -> None:
    """Check the heaps for text of variable length. They have no checksums, and HDF5 never returns from some damaged ones.

    A heap is GCOL, its version and size, and objects: number, count, size and data, at multiples of 8; the last one, with the
    number 0, is the free space.

    Raises:
        ValueError: the objects of a heap do not fill it.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_HEAP)
        while start >= 0:
            place, end = start + 16, start + int.from_bytes(data[start + 8 : start + 16], "little")
            while place + 16 <= end <= len(data):
                number, size = struct.unpack_from("<H6xQ", data, place)
                place += size if number == 0 else 16 + size + -size % 8
                if number == 0 and place != end:
                    raise ValueError("damaged: its text cannot be read")
            if not end - 16 < place <= end <= len(data):
                raise ValueError("damaged: its text cannot be read")
            start = data.find(_HEAP, start + 8)


def dataset(file: h5py.File, name: str, kind: str, shape: tuple[int | None, ...], sparse: bool = False) -> h5py.Dataset:
    """Return a dataset whose data are in the file itself.

    Args:
        name: path in the file, such as images/train. kind: type of its values, such as uint8; "text" for strings.
        shape: its expected shape; None for a side of any length.
        sparse: parts may never have been written, and read as the fill value.

    Raises:
        ValueError: there is no such dataset; it has another type or shape; it is a link, or its data are in another file, which
            are not read because they could be any file of this machine; or its claimed size is impossible.
    """
    found: h5py.Group | h5py.Dataset = file
    for part in name.split("/"):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            raise ValueError(f"it has no dataset {name}")
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is a link to another file or place, and links are not followed")
        found = found[part]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{name} is not a dataset")
    if found.external or found.is_virtual:
        raise ValueError(f"the data of {name} are in another file, and other files are not read")
    right = h5py.check_string_dtype(found.dtype) is not None if kind == "text" else found.dtype == np.dtype(kind)
    if not right:
        raise ValueError(f"{name} has type {found.dtype}, expected {kind}")
    sides = found.shape or ()
    if len(sides) != len(shape) or any(side not in (None, own) for side, own in zip(shape, sides, strict=False)):
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f"{name} has shape {sides}, expected ({wanted})")
    properties = found.id.get_create_plist()
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    if len(set(filters)) < len(filters) or not _FILTERS.issuperset(filters):
        raise ValueError(f"{name} is stored with filters that sda does not use")
    if found.chunks and not sparse and found.id.get_num_chunks() < math.prod(map(_parts, sides, found.chunks)):
        raise ValueError(f"parts of {name} were never written")
    stored = min(found.id.get_storage_size(), Path(file.filename).stat().st_size)
    if found.nbytes > _GROWTH * stored and not sparse:
        raise ValueError(f"{name} claims {found.nbytes} bytes, but only {stored} are stored")
    return found


def _parts(side: int, chunk: int) -> int:
    return -(-side // chunk)


def texts(file: h5py.File, name: str) -> list[str]:
    """Read a dataset of text, (N,)."""
    found = dataset(file, name, "text", (None,))
    left, read = Path(file.filename).stat().st_size, []
    for first in range(0, len(found), _TEXTS):
        block = found[first : first + _TEXTS]
        left -= sum(map(len, block))
        if left < 0:  # many rows that point to the same text
            raise ValueError(f"the texts of {name} are longer than the file")
        read += [text.decode(errors="surrogateescape") for text in block]
    return read


def text(file: h5py.File, name: str) -> str:
    """Read an attribute of text."""
    value = file.attrs[name]
    if not isinstance(value, str):
        raise ValueError(f"the attribute {name} is not text")
    return value


def text_list(file: h5py.File, name: str) -> list[str]:
    """Read an attribute of texts, (N,)."""
    value = file.attrs[name]
    if not isinstance(value, np.ndarray) or value.ndim != 1 or not all(isinstance(part, str) for part in value):
        raise ValueError(f"the attribute {name} is not a list of texts")
    return value.tolist()


def number(file: h5py.File, name: str) -> int:
    """Read an attribute of one whole number."""
    value = file.attrs[name]
    if not isinstance(value, int | np.integer):
        raise ValueError(f"the attribute {name} is not a whole number")
    return int(value)


def is_kind(file: h5py.File, kind: str) -> bool:
    """Return whether the attribute `kind` of a file, text of fixed or variable length, has this value."""
    value = file.attrs.get("kind")
    return isinstance(value, str | bytes) and value in (kind, kind.encode())


def unreadable(path: Path, error: BaseException, again: str) -> str:
    """Return a message for one of FAULTS.

    Args:
        again: how to make the file again.
    """
    if not path.exists():
        return f"{path}: no such file; {again}"
    if "already open for write" in str(error) or "unable to lock" in str(error):
        return (
            f"{path}: another program has opened this file for writing; wait until it closes the file; if no program has it "
            f"open, one was killed while it wrote: {again}"
        )
    return f"{path}: cannot be read ({first_line(error)}); if it is truncated or damaged, {again}"
