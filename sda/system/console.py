"""Interfaces for reporting progress: counting functions, and a console (`sda.system.progress.Bars` on a terminal)."""

import contextlib
from collections.abc import Callable
from typing import Any, TextIO

Count = Callable[[str, int, int], None]  # name of the task, number done, total
Progress = Callable[[int, int], None]  # number done, total


def ignore_count(*_: object) -> None:
    """Report no progress: the default `Count` and `Progress`."""


class Console:
    """A silent console."""

    def say(self, text: str) -> None:
        """Show a line of text."""

    def count(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps of the task `what` are done."""


class Unfailing:
    """A text stream that drops what cannot be written: a closed terminal, pipe or full disk must not end a training."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()
