"""Progress bars on a terminal, a line now and then anywhere else. All of it on stderr: stdout is for results."""

import contextlib
import logging
import time
from collections.abc import Iterator
from queue import Empty

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from sda.system.console import Console

LINE_EVERY = 15  # seconds between the lines of one count, where there is no terminal


class _Rate(ProgressColumn):
    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


class Bars(Console):
    """A context in which things report how far they are: a bar each, on top of which lines scroll away."""

    def __init__(self, quiet: bool = False):
        self.console = RichConsole(stderr=True, quiet=quiet)
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        ]
        self._progress = Progress(*columns, console=self.console)
        self._tasks = {}  # what is counted → its bar
        self._lines = {}  # … → when it began, how far it was then, and when its last line was said

    def __enter__(self) -> "Bars":
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def say(self, text: str) -> None:
        self.console.print(text.encode(errors="replace").decode(), highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def saying_logs(self) -> Iterator[None]:
        """Meanwhile, what sda logs is said here."""
        logger, handler = logging.getLogger("sda"), logging.Handler()
        handler.emit = lambda record: self.say(record.getMessage())
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    def count(self, what: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` of `what` is behind us; counting the same thing again starts its bar anew."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note="")
        task = self._progress.tasks[self._tasks[what]]
        if done <= task.completed:
            self._progress.reset(task.id, total=total, visible=True)
            self._lines.pop(what, None)
        # a bar that is full gives way to a line
        self._progress.update(task.id, completed=done, note=note, visible=done < total)
        now = time.monotonic()
        began, start, said = self._lines.setdefault(what, (now, done, now))
        if done == total or (not self.console.is_terminal and now - said >= LINE_EVERY):
            self._lines[what] = began, start, now
            rate = f", {(done - start) / (now - began):.1f}/s" if now - began >= 1 else ""
            self.say(f"{what}: {done}/{total}{rate}  {note}".rstrip())


class Relay(Bars):
    """The bars of another process: what is reported here is put on a queue, and `play` shows it there."""

    def __init__(self, queue):
        self._queue = queue

    def say(self, text: str) -> None:
        self._queue.put(("say", (text,)))

    def count(self, what: str, done: int, total: int, note: str = "") -> None:
        self._queue.put(("count", (what, done, total, note)))


def play(queue, bars: Bars, seconds: float) -> None:
    """Show on `bars` what was put on the queue of a Relay; wait up to `seconds` for the first of it."""
    with contextlib.suppress(Empty):
        kind, arguments = queue.get(timeout=seconds)
        while True:
            getattr(bars, kind)(*arguments)
            kind, arguments = queue.get_nowait()
