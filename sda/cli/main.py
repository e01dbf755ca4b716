"""The entry point. It imports the commands late, because a signal may come before they are there."""

import errno
import os
import sys
from contextlib import redirect_stderr, redirect_stdout

from sda.errors import SdaError, explained
from sda.system.console import Named, Unfailing, printable
from sda.system.signals import Interrupted, ending, interrupting


def main() -> None:
    """Run a command.

    An expected error becomes one line on stderr and exit status 2, a signal 128 + its number. If nobody reads the output, the
    command goes on: the files that it writes count.
    """
    # Waiting threads must not spin: on small machines they would slow down the data loader processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 -- None: it was closed
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    with ending(), redirect_stdout(Named(sys.stdout, "standard output")), redirect_stderr(Unfailing(sys.stderr)):
        status, message = _run()
        if message:
            print(printable(message), file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # such as a closed pipe: Python must not try again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


def _run() -> tuple[int, str]:
    """Run the command; return its exit status and the message to end with."""
    from sda.cli.commands import cli

    try:
        with interrupting():
            try:
                cli()
            finally:
                sys.stdout.flush()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0, ""
    except Interrupted as stop:
        return 128 + stop.number, f"{stop}."
    except SdaError as error:
        return 2, f"error: {error}"
    except (MemoryError, RuntimeError) as error:
        if (known := explained(error)) is None:
            raise
        return 2, f"error: {known}"
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our output has had enough
            return 1, ""
        name = error.filename
        where = f"{os.fsdecode(name)}: " if isinstance(name, (str, bytes, os.PathLike)) else "cannot write: "
        return 2, f"error: {where}{error.strerror or error}"
    return 0, ""
