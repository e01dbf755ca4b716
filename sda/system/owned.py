"""Locks: only one process at a time writes a folder or a file. A lock ends with its process, even if that is killed."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sda.errors import SdaError

LOCK = ".lock"  # in a folder that a process owns; names the process
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_HELD: set[str] = set()  # lock files of this process, which the system's locks do not protect from the process itself
_LOOKING = 1.0  # seconds
_CHECKING = threading.Lock()


@contextlib.contextmanager
def owned(folder: Path, shown: Path | None = None, patience: float = 0.0) -> Iterator[None]:
    """Own a folder within the context. Create it if it is missing; then remove it in the end if it is empty.

    Args:
        shown: the path to name in the message, if it is not the folder.
        patience: seconds to wait for another process that owns the folder.

    Raises:
        SdaError: another process owns the folder, and the message names its host and process id; or it is a file.
        OSError: the folder or its lock cannot be created.
    """
    if folder.exists() and not folder.is_dir():
        raise SdaError(f"{shown or folder}: exists and is not a folder; choose another --out")
    made = not folder.exists()
    lock = _acquire_patiently(folder, shown or folder, patience)
    try:
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        _release(folder / LOCK, lock, remove=True)
        with contextlib.suppress(OSError):  # not empty
            if made:
                folder.rmdir()


def _acquire_patiently(folder: Path, shown: Path, patience: float) -> int:
    end = time.monotonic() + patience
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # its owner just removed the folder
            if (lock := _acquire(folder / LOCK)) is not None:
                return lock
            # Without an owner, another process only looks at the lock, or has no time to write its name.
            holder = owner(folder)
            if time.monotonic() > (end if holder else end + _LOOKING):
                raise SdaError(
                    f"{shown}: {holder or 'another process'} is writing it; wait until it ends, stop it, or choose another --out"
                )
            time.sleep(0.1)


def owner(folder: Path) -> str:
    """Return the process that owns a folder, as "process ID on HOST"; "" if none does."""
    lock = folder / LOCK
    if os.path.abspath(lock) not in _HELD:
        try:
            with open(os.open(lock, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # whatever it is, opening must not block
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return ""
        except (BlockingIOError, PermissionError):
            pass
        except OSError:  # no lock file, or a file system without locks
            return ""
    with contextlib.suppress(OSError), lock.open(errors="replace") as file:
        return file.read(200).strip()
    return ""


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[int]:
    """Create or empty a file, and yield its descriptor; no other process opens it with this function meanwhile.

    Raises:
        SdaError: another process has it open. OSError: it cannot be created.
    """
    descriptor = _acquire(path)
    if descriptor is None:
        raise SdaError(f"{path}: another process is writing this file; wait until it ends")
    try:
        os.truncate(descriptor, 0)
        yield descriptor
    finally:
        _release(path, descriptor, remove=False)


def _acquire(path: Path) -> int | None:
    """Open and lock a file, and return its descriptor; None if another process, or this one, has locked it.

    The locks of `lockf` are not inherited by child processes, unlike those of `flock`.
    """
    with _CHECKING:
        return None if os.path.abspath(path) in _HELD else _open_locked(path)


def _open_locked(path: Path) -> int | None:
    while True:
        try:
            # Never through a link, which may lead to a file of the user; never waiting, as for a pipe.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise SdaError(f"{path}: is not a regular file; remove it") from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SdaError(f"{path}: is not a regular file; remove it")
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                os.close(descriptor)
                return None
            except OSError as error:
                if error.errno not in _NO_LOCKS:  # on a file system without locks, two processes are the user's responsibility
                    raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    _HELD.add(os.path.abspath(path))
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process replaced or removed the file between our open and our lock


def _release(path: Path, descriptor: int, remove: bool) -> None:
    try:
        if remove:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)
        _HELD.discard(os.path.abspath(path))
