"""Signals that stop a command: SIGINT (Ctrl-C), SIGTERM (schedulers, kill) and SIGHUP (a closed terminal).

Commands stop at once with `interrupting`. Training uses `Signals`, because it finishes its step and writes a checkpoint first.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], None]


class Interrupted(BaseException):
    """A signal stopped the command. Not an Exception, so that no handler of errors takes it for one.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, message: str = ""):
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Let a function handle the stopping signals within the context.

    Signals that are ignored stay ignored (nohup does this with SIGHUP). Does nothing outside the main thread, where Python
    cannot handle signals.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in STOPPING}
        before = {number: found for number, found in before.items() if found not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)


def interrupting() -> contextlib.AbstractContextManager[None]:
    """Return a context in which the stopping signals raise Interrupted."""
    return handled_by(_raise)


def ending() -> contextlib.AbstractContextManager[None]:
    """Return a context in which the stopping signals end the process at once, with one line.

    This is for imports: many packages take an exception that interrupts them for a failed import.
    """
    return handled_by(_end)


def _end(number: int, _frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{Interrupted(number)}.\n".encode())
    os._exit(128 + number)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(number)


class Signals:
    """A context that records the last stopping signal in `caught`; a second Ctrl-C raises KeyboardInterrupt.

    Where the process waits for something that may never come, use `waiting`.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._waits = False
        self._context = handled_by(self._record)

    def __enter__(self) -> "Signals":
        self._context.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Raise Interrupted at once if a signal comes within the context, or came before it."""
        self._waits = True
        try:
            if self.caught:
                raise Interrupted(self.caught)
            yield
        finally:
            self._waits = False

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number
        if self._waits:
            self._waits = False  # a second signal must not interrupt the handling of the first
            raise Interrupted(number)
