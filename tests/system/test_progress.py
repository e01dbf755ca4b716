"""Without a terminal, progress is a line with the mean rate every few seconds and one at the end."""

import pytest

from sda.system import progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_progress_without_a_terminal_prints_few_lines(clock, capsys):
    with progress.Bars() as bars:
        for done in range(1, 101):
            bars.count("reading", done, 100, "loss 1.0")
            clock[0] += 1
        for done in (1, 2):
            bars.count("short", done, 2)
        bars.count("reading", 5, 10)
        bars.count("reading", 10, 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["reading: 16/100, 1.0/s, 1 min 24 s left  loss 1.0", "reading: 31/100, 1.0/s, 1 min 9 s left  loss 1.0"]
    assert lines[6:] == ["reading: 100/100, 1.0/s  loss 1.0", "short: 2/2", "reading: 10/10"]
    assert len(lines) == 9
