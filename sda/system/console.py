"""How long work reports its progress: to a function that counts, or to a console (`sda.system.progress.Bars` on a terminal)."""

from collections.abc import Callable

Count = Callable[[str, int, int], None]  # what is counted, how many are done, how many there are
Progress = Callable[[int, int], None]  # how many are done, how many there are


def ignore_count(*_: object) -> None:
    """Report no progress: the default `Count` and `Progress`."""


class Console:
    """A silent console."""

    def say(self, text: str) -> None:
        """Show a line of text."""

    def count(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` of the work `what` is done."""
