"""Write one large HDF5 file OUT so that a kill or a full disk costs little work.

Until OUT is complete, everything is in the folder OUT.parts:

    settings.json   the settings that determine the contents of OUT
    .lock           names the process that writes (`sda.system.owned`)
    *.npz           shards: finished work, from which the same command resumes
    whole.partial   the HDF5 file that gets the name OUT in the end
"""

import contextlib
import errno
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from sda.errors import SdaError
from sda.reading import read_object
from sda.system.atomic import rename, written_whole
from sda.system.owned import owned

_SETTINGS, _SHARDS, _PARTIAL = "settings.json", "*.npz", "*.partial"
# Depending on which byte is damaged, zipfile and NumPy raise any of these.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, KeyError, RuntimeError)


def write_resumable(
    out: Path,
    settings: dict,
    existing: Callable[[], list[str]],
    write: Callable[[Path], list[str]],
    wording: Mapping[str, str] | None = None,
) -> list[str]:
    """Write the file `out`, or resume from the shards that an interrupted call with the same settings left in OUT.parts.

    If `out` exists and `existing` accepts it, it is kept. OUT.parts is removed once `out` is complete.

    Args:
        settings: everything that determines the contents of `out`, as JSON values.
        existing: validates the `out` that exists and returns what `write` returned for it; raises SdaError to reject it.
        write: gets the folder OUT.parts; writes shards there with `new_shard`, then `out` with `new_hdf5`; returns the reasons
            why files were skipped.
        wording: see `difference`.

    Returns:
        What `write` or `existing` returned.

    Raises:
        SdaError: `existing` rejected `out`; OUT.parts has other settings; another process is writing `out`; `out` cannot be
            written, for example because the disk is full.
    """
    parts = out.with_name(f"{out.name}.parts")
    try:
        if not os.path.lexists(out):
            skipped = None
            with owned(parts, shown=out):
                if not os.path.lexists(out):  # another process may just have finished it
                    _claim(parts, settings, wording)
                    skipped = write(parts)
                    _remove(parts)
            if skipped is not None:
                _remove_empty(parts)
                return skipped
    except OSError as error:
        reason = (error.strerror or first_line(error)).splitlines()[0]
        raise SdaError(
            f"{out}: cannot be written ({reason}); free disk space or fix the cause, then run the same command again: "
            f"it resumes from {parts}"
        ) from None
    try:
        skipped = existing()
    except SdaError as error:
        reason = str(error).removeprefix(f"{out}: ").partition("; ")[0]  # without its advice, which does not fit here
        raise SdaError(f"{out}: already exists ({reason}) and is not overwritten; remove it or choose another --out") from None
    if parts.exists() and _read_settings(parts) in (None, settings):  # a kill interrupted the removal of the parts
        with contextlib.suppress(SdaError, OSError), owned(parts):
            _remove(parts)
        _remove_empty(parts)
    return skipped


def difference(found: dict, wanted: dict, wording: Mapping[str, str] | None = None) -> str:
    """Describe the first of the `wanted` settings that has another value in `found`; "" if there is none.

    Args:
        wording: setting → description, for settings whose values mean nothing to the user.
    """
    for key, value in wanted.items():
        if found.get(key) != value:
            short = max(len(str(found.get(key))), len(str(value))) < 80
            return (wording or {}).get(key) or (f"{key} is {found.get(key)}, not {value}" if short else f"{key} differs")
    return ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; the name of its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


# Shards


@contextlib.contextmanager
def new_shard(path: Path) -> Iterator[Callable[[str, np.ndarray], None]]:
    """Yield a function that adds a named array to the shard at `path`. The shard exists once the context ends without error."""
    with written_whole(path) as file, zipfile.ZipFile(file, "w") as archive:

        def add(name: str, array: np.ndarray) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)

        yield add


def read_shard(path: Path, *names: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the arrays of a shard with their names, one at a time, in the order in which they were added.

    Args:
        names: read only these.

    Raises:
        SdaError: the shard is damaged; it has been removed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in [f"{name}.npy" for name in names] or archive.namelist():
                content = io.BytesIO(archive.read(name))  # verifies the checksum before NumPy parses anything
                yield name.removesuffix(".npy"), np.lib.format.read_array(content, allow_pickle=False)
    except _DAMAGE as error:
        path.unlink()
        raise SdaError(
            f"{path}: damaged on the disk ({first_line(error)}) and therefore removed; run the same command again"
        ) from None


# The HDF5 file


@contextlib.contextmanager
def new_hdf5(parts: Path, out: Path) -> Iterator[h5py.File]:
    """Yield a new HDF5 file in the folder `parts`. It gets the name `out` if the context ends without error, else it is removed.

    Raises:
        SdaError: `out` exists by then. OSError: the file cannot be written.
    """
    temporary = parts / "whole.partial"
    try:
        # Format 1.10 is the oldest with checksums in its indices. Locks fail on many network file systems.
        file = h5py.File(temporary, "w", libver=("v110", "v110"), locking=False)
        try:
            yield file
        except BaseException:
            with contextlib.suppress(OSError, RuntimeError):
                file.close()
            raise
        with h5py_errors():
            file.close()
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        if os.path.lexists(out):
            raise SdaError(
                f"{out}: another process created it in the meantime; it is not overwritten: remove it or choose another --out"
            )
        rename(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def h5py_errors() -> Iterator[None]:
    """Raise OSError where h5py raises RuntimeError, as it does for some failed writes."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(first_line(error)) from None


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError if the disk has less than `needed` bytes left: HDF5 may crash if the disk is full when it closes a file."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        short = f"{os.strerror(errno.ENOSPC)}: {needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free"
        raise OSError(errno.ENOSPC, short)


# OUT.parts


def _read_settings(parts: Path) -> dict | None:
    try:
        return read_object(parts / _SETTINGS)
    except (FileNotFoundError, SdaError):
        return None


def _claim(parts: Path, settings: dict, wording: Mapping[str, str] | None) -> None:
    """Write settings.json, or compare it. Remove shards without settings, which a power cut may leave."""
    found = _read_settings(parts)
    if found is None:
        for path in parts.glob(_SHARDS):
            path.unlink()
        with written_whole(parts / _SETTINGS) as file:
            file.write(json.dumps(settings).encode())
    elif other := difference(found, settings, wording):
        raise SdaError(f"{parts}: was started with other settings ({other}); remove this folder or choose another --out")


def _remove(parts: Path) -> None:
    """Remove our files, the settings after the shards, so that a kill leaves no shards of unknown settings."""
    with contextlib.suppress(OSError):
        for pattern in (_SHARDS, _PARTIAL, _SETTINGS):
            for path in parts.glob(pattern):
                path.unlink(missing_ok=True)


def _remove_empty(parts: Path) -> None:
    with contextlib.suppress(OSError):  # not empty: it has files that are not ours
        parts.rmdir()
