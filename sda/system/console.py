"""Interfaces for reporting progress: counting functions, and a console (`sda.system.progress.Bars` on a terminal)."""

from collections.abc import Callable

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
