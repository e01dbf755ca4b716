"""Child processes: their results, their deaths, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sda.errors import SdaError
from sda.system.children import ChildDied, run_in_order, run_tasks

# What the children of these tests run; tests/ is on their sys.path like on ours.


def square(x):
    return x * x


def sleepy(seconds):
    time.sleep(seconds)
    return os.getpid()


def failing(x):
    raise SdaError(f"no {x}")


def dying(x):
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def telling(x, tell):
    try:
        tell(f"begin {x}")
        time.sleep(60)
    finally:
        tell(f"end {x}")


def arguments(_):
    return sys.argv


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_results_come_with_their_places():
    assert dict(run_tasks(square, [1, 2, 3, 4, 5], 2)) == {0: 1, 1: 4, 2: 9, 3: 16, 4: 25}
    assert list(run_in_order(square, range(7), 3)) == [x * x for x in range(7)]
    assert list(run_tasks(square, [], 2)) == []
    assert list(run_tasks(arguments, [0], 1)) == [(0, sys.argv)]


def test_errors_of_the_function_are_raised():
    with pytest.raises(SdaError, match="no 0"):
        list(run_tasks(failing, [0], 1))


def test_a_dead_child_costs_only_its_task():
    found = dict(run_tasks(dying, [0, 1, 2, 3, 4], 1, in_hand=3))
    assert isinstance(found[1], ChildDied) and "memory" in str(found[1])
    assert [found[place] for place in (0, 2, 3, 4)] == [0, 2, 3, 4]
    with pytest.raises(ChildDied):
        list(run_in_order(dying, [0, 1, 2], 2))


def test_children_end_when_the_caller_stops():
    results = run_tasks(sleepy, [0, 60, 60, 60], 2)
    _, pid = next(results)
    results.close()
    assert gone([pid])
    assert pid != os.getpid()


def test_interrupted_children_may_finish_and_speak():
    said = []

    def hear(message):
        said.append(message)
        if len(said) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(telling, ["a", "b"], 2, hear, patience=20))
    assert sorted(said[:2]) == ["begin a", "begin b"] and sorted(said[2:]) == ["end a", "end b"]


SCRIPT = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored if nohup started the tests
from sda.system.children import run_tasks
sys.path.insert(0, {tests!r})
import test_children
print(*run_tasks(test_children.square, [1, 2], 2))
for place, pid in run_tasks(test_children.sleepy, [0, 0, 60, 60], 2, in_hand=1):
    print(pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_children_do_not_outlive_their_parent(tmp_path, number):
    """The parent is a script without `if __name__ == "__main__"`."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert sorted(parent.stdout.readline().split()) == sorted(["(0,", "1)", "(1,", "4)"])
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids))
        parent.send_signal(number)
        assert parent.wait(10) == -number
    assert gone(pids)
