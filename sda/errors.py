"""The exception for every error that the user can fix."""


class SdaError(Exception):
    """Bad input. The message is one line: the file, what was expected, what was found, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


def explained(error: BaseException) -> SdaError | None:
    """Return an error of PyTorch that the user can fix as an SdaError, or None."""
    if "can't allocate memory" in str(error) or isinstance(error, MemoryError):
        return SdaError("out of memory")
    if "DataLoader worker" in str(error):  # raised wherever the program is when the process dies
        return SdaError("a loader process was killed, perhaps because memory ran out; lower --workers, or set --workers 0")
    return None
