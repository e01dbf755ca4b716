"""The paper's splits: pickled indices into a directory walk, read without running anything that the pickle asks for."""

import io
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sda.data.item import Item
from sda.errors import SdaError

MAX_BYTES = 16 << 20  # of a pickle, and of the bytes made from it: hundreds of thousands of indices
MAX_ENTRIES = 1000  # of a dict: more would let chosen keys collide for hours
ORDERS = ("sorted", "walk", "given")


def read_pickle(path: Path, entry: str = "") -> list[int]:
    """The indices in a pickle: a flat list, tuple or one-dimensional array of whole numbers, or a dict of such.

    Reads the protocols 0 to 5 of Python 2 and 3, and arrays of numpy 1 and 2. Nothing of numpy or any other module is
    called: what the pickle asks for is looked up in a short table of stand-ins, and everything else is refused.

    Args:
        entry: the key of the indices, if the pickle holds a dict.

    Raises:
        SdaError: unreadable, larger than 16 MiB, damaged, hostile, not indices; a dict and no or another key named.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SdaError(f"{path}: cannot be read: {error}") from None
    if len(data) > MAX_BYTES:
        raise SdaError(f"{path}: larger than {MAX_BYTES >> 20} MiB: not a list of indices")
    try:
        value = _Reader(io.BytesIO(data), encoding="latin-1").load()
    except _Refused as error:
        raise SdaError(f"{path}: {error}; nothing of it was run: a split is a list or an array of whole numbers") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SdaError(f"{path}: not a readable pickle of indices ({reason})") from None
    if isinstance(value, dict):
        known = {str(key): key for key in value}
        if entry not in known:
            found = f"has no {entry!r}" if entry else "holds several lists"
            raise SdaError(f"{path}: {found}: name one of {', '.join(repr(key[:40]) for key in list(known)[:20])}")
        value = value[known[entry]]
    elif entry:
        raise SdaError(f"{path}: holds one list, not a dict with {entry!r}: leave the name out")
    if not isinstance(value, list | tuple) or not all(map(_is_whole, value)):
        raise SdaError(f"{path}: holds no flat list or array of whole numbers")
    if not value:
        raise SdaError(f"{path}: the list of indices is empty")
    return list(value)


def from_indices(indices: list[int], items: list[Item], order: str, path: Path | str = "indices") -> list[str]:
    """The keys of the items that indices point to, in the order of the indices.

    The paper's pickles hold all images of the split in a shuffled order, of which the first N were labelled.

    Args:
        items: all images of the split, with and without labels: the indices count them.
        order: "sorted" by path, which is the same everywhere; "walk", the order in which os.walk and glob find the images
            on this filesystem; or "given", the order of `items`. The paper's code walked Cityscapes, so that its splits are
            those images only where a filesystem lists folders as its authors' did; for VOC it counted the lines of a list,
            which is "given" for the items in the order that `read_keys` finds in that list.
        path: where the indices are from, for the messages.

    Raises:
        SdaError: another order, an index outside the items or given twice, images that are no longer there.
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
            raise SdaError(f"{path}: index {index} is given twice (the second time as number {place})")
        seen.add(index)
    return [keys[index] for index in indices]


def _walk(items: list[Item]) -> list[str]:
    """The keys as os.walk finds them, which goes into a folder only after it has listed all files of the one above."""
    wanted = {item.key for item in items}
    roots = {item.image.as_posix().removesuffix(item.key) or "." for item in items}
    folders = {str(parent) for key in wanted for parent in Path(key).parents}
    keys = []
    for root in roots:
        for folder, below, files in os.walk(root, followlinks=True):
            place = Path(folder).relative_to(root)
            below[:] = [name for name in below if str(place / name) in folders]
            keys += [key for name in files if (key := (place / name).as_posix()) in wanted]
    if len(roots) > 1 or len(keys) < len(wanted):
        lost = min(wanted - set(keys), default="")
        raise SdaError(f"{', '.join(sorted(roots))}: cannot be walked for the {len(wanted)} images: {lost!r} is not found")
    return keys


def _is_whole(value: Any) -> bool:
    return type(value) is int and value.bit_length() <= 64  # Python refuses to print the longest, even in a message


class _Refused(Exception):
    """What a pickle of indices has no use for."""


class _Dtype:
    """Stands in for numpy.dtype: the type's code, such as i8, and the byte order, < or > (| for single bytes)."""

    def __init__(self, code: Any, *_flags: Any):
        self.code, self.order = code, "<"

    def numpy(self) -> np.dtype:
        if not (isinstance(self.code, str) and re.fullmatch("[iu][1248]", self.code)) or self.order not in ("<", ">", "|"):
            raise _Refused(f"it holds numbers of the type {str(self.code)[:20]!r}")
        return np.dtype(self.order + self.code)


class _Array(list):
    """Stands in for numpy.ndarray."""


class _Dict(dict):
    """Stands in for dict. Simple keys only, for to hash a deeply nested one overflows the stack; and few, since keys can be
    chosen to collide."""

    def __setitem__(self, key, value):
        if not (type(key) is str or _is_whole(key)) or len(self) >= MAX_ENTRIES:
            raise _Refused(f"it holds a dict of more than {MAX_ENTRIES} entries, or whose keys are not words or whole numbers")
        super().__setitem__(key, value)


# The operations that write numbers, strings, lists, tuples and references to them, in any protocol.
_PLAIN = (
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "GET", "BINGET", "LONG_BINGET", "MEMOIZE"),
    *("PUT", "BINPUT", "LONG_BINPUT", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("LIST", "EMPTY_LIST", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE"),
)


class _Reader(pickle._Unpickler):
    """An unpickler whose only callables are its own stand-ins.

    Built on the one in Python, since the one in C takes memory by the sizes that a file claims. Whatever makes bytes draws on
    one budget, since a file may refer to the same megabyte any number of times.
    """

    made = 0  # bytes so far

    def find_class(self, module: str, name: str) -> Any:
        stand_ins = {
            "numpy.ndarray": "numpy.ndarray",  # only ever named as a type
            "numpy.dtype": _Dtype,
            "numpy.core.multiarray._reconstruct": lambda *_type_and_shape: _Array(),
            "numpy.core.multiarray.scalar": lambda dtype, data: self._numbers((1,), dtype, data)[0],
            "numpy.core.numeric._frombuffer": lambda data, dtype, shape, *_order: _Array(self._numbers(shape, dtype, data)),
            "_codecs.encode": self._encode,
        }
        wanted = f"{module}.{name}"
        found = stand_ins.get(wanted.replace("numpy._core.", "numpy.core.", 1))  # numpy 2 writes _core
        if found is None:
            raise _Refused(f"it asks for {wanted[:100]!r}")
        return found

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """How protocols 0 to 2 write bytes."""
        if type(text) is not str or encoding != "latin1":
            raise _Refused("it encodes something other than bytes")
        self._draw(len(text))
        return text.encode("latin-1")

    def _numbers(self, shape: Any, dtype: Any, data: Any) -> list[int]:
        if type(dtype) is not _Dtype:
            raise _Refused("it holds an array without a type")
        kind = dtype.numpy()
        if type(shape) is not tuple or len(shape) != 1 or type(shape[0]) is not int:
            raise _Refused("it holds an array of other than one dimension")
        if type(data) not in (bytes, str) or len(data) != shape[0] * kind.itemsize:
            raise _Refused("it holds an array whose bytes do not fit its length")
        self._draw(len(data))
        return np.frombuffer(data.encode("latin-1") if isinstance(data, str) else data, kind).tolist()  # Python 2: str

    def _draw(self, count: int) -> None:
        self.made += count
        if self.made > 2 * MAX_BYTES:  # an array's bytes may be encoded first
            raise _Refused(f"it unfolds to more than {2 * MAX_BYTES >> 20} MiB")

    def _refuse(self):
        raise _Refused("it holds something other than lists and arrays of whole numbers")

    def _build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is _Dtype:
            target.order = state[1]
        elif type(target) is _Array:
            *_version, shape, dtype, _by_column, data = state
            target[:] = self._numbers(shape, dtype, data)
        else:
            self._refuse()

    def _empty_dict(self):
        self.append(_Dict())

    def _dict(self):
        entries, made = self.pop_mark(), _Dict()
        for key, value in zip(entries[::2], entries[1::2], strict=True):
            made[key] = value
        self.append(made)

    def _bytearray(self):
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))

    dispatch: ClassVar = {
        **dict.fromkeys(range(256), _refuse),
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _PLAIN},
        pickle.BUILD[0]: _build,
        pickle.EMPTY_DICT[0]: _empty_dict,
        pickle.DICT[0]: _dict,
        pickle.BYTEARRAY8[0]: _bytearray,
    }
