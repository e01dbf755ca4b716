"""Progress bars on a terminal, a line every few seconds elsewhere; on stderr, because stdout is for results."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from sda.system.console import Console, duration, printable

LINE_EVERY = 15  # seconds between two lines about the same task, without a terminal


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


class _Handler(logging.Handler):
    def __init__(self, bars: "Bars") -> None:
        super().__init__()
        self._bars = bars

    def emit(self, record: logging.LogRecord) -> None:
        self._bars.say(record.getMessage())


class Bars(Console):
    """A context that shows one progress bar per task, with messages above them."""

    def __init__(self, quiet: bool = False) -> None:
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
        self._tasks: dict[str, TaskID] = {}
        self._lines: dict[str, tuple[float, int, float]] = {}  # task → start time, count at the start, time of the last line

    def __enter__(self) -> "Bars":
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def say(self, text: str) -> None:
        """Print a message."""
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def saying_logs(self) -> Iterator[None]:
        """Print the log messages of sda within the context."""
        logger, handler = logging.getLogger("sda"), _Handler(self)
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    def count(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps of the task `what` are done; a lower count than before restarts its bar."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(printable(what), total=total, note="")
        task = self._progress.tasks[self._tasks[what]]
        if done <= task.completed:
            self._progress.reset(task.id, total=total, visible=True)
            self._lines.pop(what, None)
        # a line replaces a full bar
        self._progress.update(task.id, completed=done, note=printable(note), visible=done < total)
        now = time.monotonic()
        began, start, printed = self._lines.setdefault(what, (now, done, now))
        if done == total or (not self.console.is_terminal and now - printed >= LINE_EVERY):
            self._lines[what] = began, start, now
            rate = ""
            if now - began >= 1:
                speed = (done - start) / (now - began)
                left = f", {duration((total - done) / speed)} left" if speed and done < total else ""
                rate = f", {speed:.1f}/s{left}"
            self.say(f"{what}: {done}/{total}{rate}  {note}".rstrip())

    def hear(self, message: tuple[str, tuple]) -> None:
        """Show a message of a Relay."""
        kind, arguments = message
        getattr(self, kind)(*arguments)


class Relay(Bars):
    """Sends everything to another process with `tell`; there, `hear` shows it on that process's bars."""

    def __init__(self, tell: Callable[[tuple[str, tuple]], None]) -> None:
        self._tell = tell

    def say(self, text: str) -> None:
        self._tell(("say", (text,)))

    def count(self, what: str, done: int, total: int, note: str = "") -> None:
        self._tell(("count", (what, done, total, note)))
