"""The exception for every error that the user can fix, and explanations of errors of other programs."""

import contextlib
import os
from collections.abc import Iterator


class SdaError(Exception):
    """Bad input. The message is one line: the file, what was expected, what was found, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the device or in the process. On a CPU, PyTorch raises a plain RuntimeError."""
    kind, text = type(error).__name__, str(error)  # PyTorch's own type, without importing PyTorch
    if isinstance(error, RuntimeError):
        return kind == "OutOfMemoryError" or "out of memory" in text or "can't allocate memory" in text
    return isinstance(error, MemoryError)


def explained(error: BaseException) -> SdaError | None:
    """Return an error of PyTorch that the user can fix as an SdaError, or None."""
    if is_out_of_memory(error):
        return SdaError("out of memory")
    if "DataLoader worker" in str(error):  # raised wherever the program is when the process dies
        return SdaError("a loader process was killed, perhaps because memory ran out; lower --workers, or set --workers 0")
    return None


@contextlib.contextmanager
def naming(file: str | os.PathLike) -> Iterator[None]:
    """Name a file in the OSErrors of the context that name none: Python names files that it opens, not those that it writes."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(file)
        raise
