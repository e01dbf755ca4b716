"""Signals that ask a training to stop: noted, so that it can write a checkpoint first."""

import multiprocessing
import os
import signal
import threading
from types import FrameType

from sda.errors import SdaError


class Interrupted(SdaError):
    """A training that was asked to stop, and has: its checkpoint is written.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class Signals:
    """A context in which SIGTERM and SIGINT are noted in `caught`; the second SIGINT is a KeyboardInterrupt as ever.

    Where Python cannot catch signals, outside of the main thread, it does nothing.
    """

    def __init__(self):
        self.caught: int | None = None
        self._before = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number


def begin_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it however it ends: a pool's workers outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
