"""Run tasks in child processes that never outlive their parent.

A child is a fresh interpreter that imports only what its tasks need. In contrast to those of `multiprocessing`, it does not run
the caller's script again, so a script needs no `if __name__ == "__main__"`. A child ends when the parent closes the connection:
when the tasks are done, when the parent is interrupted or fails, and when the parent is killed.
"""

import contextlib
import functools
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from sda.errors import SdaError
from sda.system.signals import Interrupted, interrupting

PATIENCE = 30.0  # seconds in which an interrupted child may finish what it is doing, such as writing a checkpoint
_PARENTS = (signal.SIGINT, signal.SIGHUP)  # a terminal sends them to all processes; only the parent handles them
_CODE = "import sys; sys.path, sys.argv = {path!r}, {argv!r}; from sda.system.children import serve; serve({descriptor})"


class ChildDied(SdaError):
    """A child process ended in the middle of a task, for example because the system ran out of memory."""


@dataclass
class _Child:
    process: subprocess.Popen
    connection: Connection
    tasks: deque[int] = field(default_factory=deque)  # places of the tasks that it has, the current one first

    def give(self, place: int, task: Any) -> None:
        self.tasks.append(place)
        with contextlib.suppress(OSError):  # it died, which `receive` will tell
            self.connection.send(task)

    def receive(self) -> tuple[str, Any]:
        """Return the next ("message" | "result" | "raised", value) from the child, or ("died", ChildDied)."""
        try:
            return self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            return "died", ChildDied(f"its process was killed{_cause(self.process.returncode)}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


def run_tasks(
    function: Callable[..., Any],
    tasks: Sequence[Any],
    processes: int,
    heard: Callable[[Any], None] | None = None,
    in_hand: int = 2,
    patience: float = 0.0,
) -> Generator[tuple[int, Any], None, None]:
    """Call `function(task)` for each task, in several child processes.

    If the caller stops iterating or is interrupted, the children stop too.

    Args:
        function: importable from a module of this package. It gets a second argument if `heard` is given: a function that sends
            a message to the parent.
        tasks: picklable values.
        processes: number of child processes.
        heard: called in the parent with each message.
        in_hand: number of tasks that a child has at a time; with 1, it waits for the parent after each task.
        patience: seconds in which interrupted children may finish; they get SIGTERM at its start and SIGKILL at its end.

    Yields:
        (place of the task in `tasks`, result), in the order in which the tasks finish. If a child dies, the result of its current
        task is a ChildDied, and another child takes its place.

    Raises:
        Whatever `function` raises. SdaError: a process cannot be started.
    """
    todo = deque(range(len(tasks)))
    children: list[_Child] = []
    try:
        while True:
            while len(children) < min(processes, len(todo) + len(children)):
                children.append(_start(function, tells=heard is not None))
            while todo and len((idlest := min(children, key=lambda child: len(child.tasks))).tasks) < in_hand:
                idlest.give(todo[0], tasks[todo[0]])
                todo.popleft()
            busy = {child.connection: child for child in children if child.tasks}
            if not busy:
                return
            for connection in wait(list(busy)):
                child = busy[connection]  # type: ignore[index]
                kind, value = child.receive()
                if kind == "message" and heard is not None:
                    heard(value)
                    continue
                place = child.tasks.popleft()
                if kind == "raised":
                    raise value
                if kind == "died":
                    children.remove(child)
                    todo.extendleft(reversed(child.tasks))
                    child.end()
                yield place, value
    finally:
        _stop(children, patience, heard)


def run_in_order(function: Callable[..., Any], tasks: Sequence[Any], processes: int) -> Generator[Any, None, None]:
    """Yield the results of `run_tasks` in the order of the tasks. Raise ChildDied if a child dies."""
    finished: dict[int, Any] = {}
    due = 0
    with contextlib.closing(run_tasks(function, tasks, processes)) as results:
        for place, result in results:
            if isinstance(result, ChildDied):
                raise result
            finished[place] = result
            while due in finished:
                yield finished.pop(due)
                due += 1


def _start(function: Callable[..., Any], tells: bool) -> _Child:
    ours, theirs = Pipe()
    descriptor = theirs.fileno()
    # Ctrl-C goes to all processes of a terminal. The child must not see it before it can ignore it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=sys.path, argv=sys.argv, descriptor=descriptor)],
            stdin=subprocess.DEVNULL,
            pass_fds=[descriptor],
        )
    except OSError as error:
        ours.close()
        raise SdaError(f"cannot start another process: {error.strerror}; use fewer processes") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    child = _Child(process, ours)
    with contextlib.suppress(OSError):
        ours.send((function, tells))
    return child


def _cause(status: int | None) -> str:
    if status == -signal.SIGKILL:
        return ", perhaps because memory ran out"
    return "" if status is None else f" ({signal.Signals(-status).name if status < 0 else f'exit status {status}'})"


def _stop(children: list[_Child], patience: float, heard: Callable[[Any], None] | None) -> None:
    """End all children. Those that have a task get SIGTERM first, if there is patience, and their last messages are heard."""
    busy = {child.connection: child for child in children if child.tasks and patience}
    try:
        for child in busy.values():
            child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + patience
        while busy and (left := deadline - time.monotonic()) > 0:
            for connection in wait(list(busy), left):
                kind, value = busy[connection].receive()  # type: ignore[index]
                if kind != "message":
                    del busy[connection]  # type: ignore[arg-type]
                elif heard is not None:
                    heard(value)
    finally:  # also if the user presses Ctrl-C again
        for child in children:
            child.end()


# In the child


def serve(descriptor: int) -> None:
    """Work on the tasks that come through a connection, until it is closed."""
    for number in _PARENTS:
        signal.signal(number, signal.SIG_IGN)
    connection, sending = Connection(descriptor), threading.Lock()
    tasks: queue.SimpleQueue = queue.SimpleQueue()

    def send(kind: str, value: Any) -> None:
        with sending, contextlib.suppress(OSError):  # the parent is gone: `read` ends this process
            connection.send((kind, value))

    def read() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                tasks.put(connection.recv())
        # The parent is gone.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    with interrupting():
        try:
            function, tells = tasks.get()
            tell = [functools.partial(send, "message")] if tells else []
            while True:
                task = tasks.get()
                try:
                    send("result", function(task, *tell))
                except Exception as error:
                    send("raised", error)
        except Interrupted as stop:
            os._exit(128 + stop.number)  # without waiting for threads
