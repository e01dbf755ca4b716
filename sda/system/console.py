"""Interfaces for reporting progress: counting functions, and a console (`sda.system.progress.Bars` on a terminal)."""

import contextlib
import re
from collections.abc import Callable
from typing import Any, TextIO

from sda.errors import naming

Count = Callable[[str, int, int], None]  # name of the task, number done, total
Progress = Callable[[int, int], None]  # number done, total


def ignore_count(*_: object) -> None:
    """Report no progress: the default `Count` and `Progress`."""


# Control characters except tabs, line separators, marks that change the direction of text, and halves of characters, which stand
# for the bytes of a file name that is not UTF-8.
_HIDDEN = re.compile(r"[\x00-\x08\n-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text in which nothing acts on a terminal or hides from the reader: such characters become escapes as `\\x1b`.

    All text of others, such as names of files, classes and recipes, passes through here before it is shown.
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Console:
    """A silent console."""

    def say(self, text: str) -> None:
        """Show a line of text."""

    def count(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps of the task `what` are done."""


class Named:
    """A text stream whose errors name it, as errors of files do."""

    def __init__(self, stream: TextIO, name: str):
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with naming(self._name):
            return self._stream.write(text)

    def flush(self) -> None:
        with naming(self._name):
            self._stream.flush()


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


def duration(seconds: float) -> str:
    """Format a time: 12 s, 3 min 20 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
