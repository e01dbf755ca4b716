"""Types of the functions that long work reports its progress to."""

from collections.abc import Callable

Count = Callable[[str, int, int], None]  # what is counted, how many are done, how many there are
Progress = Callable[[int, int], None]  # how many are done, how many there are


def ignore_count(*_: object) -> None:
    """Report no progress: the default `Count` and `Progress`."""
