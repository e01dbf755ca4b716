"""Signals that stop training, after it has written a checkpoint."""

import multiprocessing
import os
import signal
import threading
from types import FrameType
from typing import Any

from sda.errors import SdaError


class Interrupted(SdaError):
    """Training stopped because of a signal, after it wrote its checkpoint.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class Signals:
    """A context that records SIGTERM and SIGINT in `caught`; a second SIGINT raises KeyboardInterrupt as usual.

    Does nothing outside the main thread, where Python cannot handle signals.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[signal.Signals, Any] = {}  # the handlers to restore

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number


def begin_worker() -> None:
    """Set up a worker process: ignore Ctrl-C, which the parent handles, and exit when the parent does, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    parent = multiprocessing.parent_process()
    assert parent is not None, "not a worker process"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
