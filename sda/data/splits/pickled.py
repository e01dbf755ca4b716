"""Read the paper's splits, pickled indices into a directory walk, without running any code from the pickle."""

import io
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sda.data.item import Item
from sda.data.splits.lists import root_of
from sda.errors import SdaError
from sda.reading import read_bytes

MAX_BYTES = 16 << 20  # maximum size of a pickle: hundreds of thousands of indices
ORDERS = ("sorted", "walk", "given")


def read_pickle(path: Path, entry: str = "") -> list[int]:
    """Return the indices in a pickle: a flat list, tuple or one-dimensional array of whole numbers, or a dict of these.

    Reads protocols 0 to 5 of Python 2 and 3, and arrays of numpy 1 and 2.

    Args:
        entry: the key of the indices, if the pickle holds a dict.

    Raises:
        SdaError: the file is unreadable, larger than 16 MiB, damaged, or asks for anything but numbers in lists and arrays;
            it holds a dict and `entry` is not one of its keys, or no dict and an `entry` is given.
    """
    try:
        data = read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        raise SdaError(f"{path}: cannot be read: no such file") from None
    try:
        return _indices(_Unpickler(io.BytesIO(data), encoding="latin-1").load(), entry)
    except _Refused as error:
        raise SdaError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SdaError(f"{path}: not a readable pickle of indices ({reason})") from None


def from_indices(indices: list[int], items: list[Item], order: str, path: Path | str = "indices") -> list[str]:
    """Return the keys of the items that indices point to, in the order of the indices.

    The paper's pickles hold the indices of all images of the split in a shuffled order; the first N were labelled.

    Args:
        items: all images of the split, with and without labels, which the indices refer to.
        order: "sorted" by path, which is the same on every machine; "walk", the order in which os.walk and glob find the
            images on this file system; or "given", the order of `items`. The paper's code walked Cityscapes, so its splits
            select the same images only where a file system lists folders as its authors' did. For VOC it counted the lines
            of a list: use "given" with the items in the order that `read_keys` returns for that list.
        path: the file with the indices, for the error messages.

    Raises:
        SdaError: an unknown order, an index outside the items or given twice, or missing images.
    """
    if order not in ORDERS:
        raise SdaError(f"order = {order!r}: must be one of {', '.join(ORDERS)}")
    keys = _walk(items) if order == "walk" else [item.key for item in items]
    if order == "sorted":
        keys.sort()
    seen: set[int] = set()
    for place, index in enumerate(indices):
        if not 0 <= index < len(keys):
            raise SdaError(
                f"{path}: index {index} (number {place} of {len(indices)}) is outside 0 to {len(keys) - 1}: "
                f"the split was made for other images than these {len(keys)}"
            )
        if index in seen:
            raise SdaError(f"{path}: index {index} occurs twice (the second time as number {place})")
        seen.add(index)
    return [keys[index] for index in indices]


def _walk(items: list[Item]) -> list[str]:
    """Return the keys in the order of os.walk, which lists all files of a folder before it enters the folders below."""
    roots = {root_of(item) for item in items}
    wanted = {item.image.relative_to(root_of(item)).as_posix(): item.key for item in items}
    folders = {str(parent) for stored in wanted for parent in Path(stored).parents}
    keys = []
    for root in roots:
        for folder, below, files in os.walk(root, followlinks=True):
            place = Path(folder).relative_to(root)
            below[:] = [name for name in below if str(place / name) in folders]
            keys += [wanted[stored] for name in files if (stored := (place / name).as_posix()) in wanted]
    if len(roots) > 1 or len(keys) < len(wanted):
        lost = min({*wanted.values()} - set(keys), default="")
        raise SdaError(
            f"{', '.join(sorted(map(str, roots)))}: cannot be walked for the {len(wanted)} images: {lost!r} is not found"
        )
    return keys


def _indices(value: Any, entry: str) -> list[int]:
    """Return the indices that an unpickled object holds, or its `entry` does. Raise _Refused if it holds anything else."""
    if isinstance(value, dict):
        known = {str(key): key for key in value}
        if entry not in known:
            found = f"has no {entry!r}" if entry else "holds several lists"
            raise _Refused(f"{found}: name one of {', '.join(repr(key[:40]) for key in list(known)[:20])}")
        value = value[known[entry]]
    elif entry:
        raise _Refused(f"holds one list, not a dict with {entry!r}: omit the name")
    if isinstance(value, _Array):
        value = value.tolist()
    if not isinstance(value, list | tuple) or not all(map(_is_index, value)):
        raise _Refused("holds no flat list or array of whole numbers")
    if not value:
        raise _Refused("the list of indices is empty")
    return list(value)


def _is_index(value: Any) -> bool:
    return type(value) is int and value.bit_length() <= 64  # Python refuses to print very long numbers, even in a message


class _Refused(Exception):
    """Raised for anything in a pickle that a list of indices does not need."""


class _Dtype:
    """Stand-in for numpy.dtype: the type's code, such as i8, and its byte order."""

    def __init__(self, code: Any, *_flags: Any):
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def real(self) -> np.dtype:
        """Return the integer dtype that this stands for."""
        if not (isinstance(self.code, str) and re.fullmatch("[iu][1248]", self.code)) or self.order not in ("<", ">", "|"):
            raise _Refused(f"it holds numbers of the type {str(self.code)[:20]!r}, not whole numbers")
        return np.dtype(self.order + self.code)


class _Array:
    """Stand-in for numpy.ndarray. It refers to its bytes, so many arrays of the same bytes take no more memory than one."""

    def __init__(self, data: Any = b"", dtype: Any = None, shape: Any = (0,), *_order: Any):
        self._data, self._dtype, self._shape = data, dtype, shape

    def __setstate__(self, state: Any) -> None:
        *_version, self._shape, self._dtype, _by_column, self._data = state

    def tolist(self) -> list[int]:
        if type(self._dtype) is not _Dtype:
            raise _Refused("it holds an array without a type")
        dtype, shape, data = self._dtype.real(), self._shape, self._data
        if type(shape) is not tuple or len(shape) != 1 or type(shape[0]) is not int:
            raise _Refused("it holds an array that is not one-dimensional")
        if type(data) not in (bytes, str) or len(data) != shape[0] * dtype.itemsize:
            raise _Refused("it holds an array whose bytes do not fit its length")
        return np.frombuffer(data.encode("latin-1") if isinstance(data, str) else data, dtype).tolist()  # Python 2: str


class _Dict(dict):
    """Stand-in for dict with simple keys: hashing a deeply nested key overflows the stack and ends Python."""

    def __setitem__(self, key, value):
        if type(key) is not str and not _is_index(key):
            raise _Refused("it holds a dict whose keys are not strings or whole numbers")
        super().__setitem__(key, value)


def _load_empty_dict(unpickler: Any) -> None:
    unpickler.append(_Dict())


def _load_dict(unpickler: Any) -> None:
    entries, made = unpickler.pop_mark(), _Dict()
    for key, value in zip(entries[::2], entries[1::2], strict=True):
        made[key] = value
    unpickler.append(made)


def _load_bytearray(unpickler: Any) -> None:
    (size,) = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(unpickler.read(size))  # Python's own method first allocates `size` bytes


def _refuse_set(_unpickler: Any) -> None:
    raise _Refused("it holds a set, not a list of whole numbers")


class _Unpickler(pickle._Unpickler):
    """An unpickler whose only callables are stand-ins.

    It derives from the unpickler written in Python, because the one in C allocates memory for whatever sizes and memo
    numbers a file claims. It calls nothing of numpy, because numpy trusts the state of a pickled dtype: a forged one makes an
    array of objects out of any bytes.
    """

    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        pickle.EMPTY_DICT[0]: _load_empty_dict,
        pickle.DICT[0]: _load_dict,
        pickle.BYTEARRAY8[0]: _load_bytearray,
        pickle.EMPTY_SET[0]: _refuse_set,
        pickle.FROZENSET[0]: _refuse_set,
    }

    def find_class(self, module: str, name: str) -> Any:
        encoded: dict[str, bytes] = self.__dict__.setdefault("encoded", {})

        def encode(text: Any, encoding: Any) -> bytes:
            """Return text as bytes: protocols 0 to 2 store bytes as text to encode. Equal texts share their bytes."""
            if type(text) is not str or encoding != "latin1":
                raise _Refused("it encodes something other than bytes")
            return encoded.setdefault(text, text.encode("latin-1"))

        # New functions for every lookup, because a pickle can set attributes of what it gets.
        allowed = {
            "numpy.ndarray": "numpy.ndarray",  # only named, never called
            "numpy.dtype": _Dtype,
            "numpy.core.multiarray._reconstruct": lambda *_type_and_shape: _Array(),
            "numpy.core.multiarray.scalar": lambda dtype, data: _Array(data, dtype, (1,)).tolist()[0],
            "numpy.core.numeric._frombuffer": lambda *arguments: _Array(*arguments),
            "_codecs.encode": encode,
        }
        wanted = f"{module}.{name}"
        found = allowed.get(wanted.replace("numpy._core.", "numpy.core.", 1))  # the name in numpy 2
        if found is None:
            raise _Refused(f"it asks for {wanted[:100]!r}; no code was run: a split must be a list or an array of whole numbers")
        return found
