"""Kills, signals, doubled starts and full disks at random moments, in real processes."""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch

from sda.runs import checkpoint

pytestmark = pytest.mark.slow

SETTINGS = ["--device", "cpu", *map(str, tiny.BANK), "--workers", "1"]
SDA = [sys.executable, "-m", "sda"]
ROOT = os.geteuid() == 0 and shutil.which("unshare")


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SDA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    made = tiny.write_world(tmp_path / "world")
    return dataclasses.replace(made, recipe=made.real)  # other processes do not know the small network


def start(*command, **options):
    """Start `sda COMMAND` in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [*SDA, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options
    )


def train(world, *flags):
    return start("train", world.recipe, *SETTINGS, *flags)


def ended(process, status, seconds=30):
    """Wait for the end of a process and of its whole group. Return its output."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {seconds} seconds: {process.communicate()[0]}")
    assert process.returncode == status and "Traceback" not in output, output
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return output
        time.sleep(0.1)
    pytest.fail(f"{process.args}: orphans in its process group: {output}")


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.05)


def logged(folder):
    return lambda: (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text()


def descendants(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(child)]
    return found


def same_network(first, second):
    first, second = (checkpoint.load(folder / "last.pt")["method"] for folder in (first, second))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("seed", range(3))
def test_doubled_starts_admit_one(world, tmp_path, seed):
    """Two or three starts at random moments: one trains, and the others name it."""
    delay, processes = random.Random(seed), []
    for _ in range(3):
        processes.append(train(world, "--steps", 8, "--out", "run"))
        time.sleep(delay.random() * 3)
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2, 2], outputs
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode:
            assert "is writing it; wait until it ends" in output or "exists and is not empty" in output
    ended(train(world, "--steps", 8, "--out", "alone"), 0, 200)
    same_network(tmp_path / "run", tmp_path / "alone")
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 7, 8]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("group", [True, False], ids=["group", "parent"])
def test_an_interrupted_ablation_goes_on(world, tmp_path, number, group):
    if group and number == signal.SIGKILL:
        pytest.skip("nothing can be left")
    fields = [f"--set={flag[2:].replace('-', '_')}={value}" for flag, value in zip(SETTINGS[2::2], SETTINGS[3::2], strict=True)]
    command = [
        "ablate",
        world.recipe,
        "--seeds",
        "0,1",
        "--jobs",
        2,
        "--set",
        "steps=12",
        *fields,
        "--out",
        "a",
        "--device",
        "cpu",
    ]
    process = start(*command)
    wait_for(lambda: all(logged(tmp_path / f"a/real/seed{seed}")() for seed in (0, 1)), process)
    (os.killpg if group else os.kill)(process.pid, number)
    output = ended(process, -9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert "Run the same command again to resume." in output.splitlines()[-1]
    assert "finished" not in [path.name for path in tmp_path.glob("a/**/result.json")]
    assert "seed 1" in ended(start(*command), 0, 300) and (tmp_path / "a/ablation.md").exists()
    ended(train(world, "--steps", 12, "--seed", 1, "--out", "alone"), 0, 200)
    same_network(tmp_path / "a/real/seed1", tmp_path / "alone")


def test_an_interrupted_drawing_leaves_nothing(world, tmp_path):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        process = start("demo", "--out", "d", "--device", "cpu", env={**os.environ, "HOME": str(tmp_path / "home")})
        wait_for(lambda: list(tmp_path.rglob("game/images/0*.png")), process)
        process.send_signal(number)
        ended(process, -9 if number == signal.SIGKILL else 128 + number)
        assert len(list(tmp_path.rglob("drawn"))) == (number == signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_evaluation_saves_first(world, tmp_path, number):
    """The evaluation takes for ever; the steps before it are not lost."""
    big = world.root / "field/pictures/val/west"
    image, label = big / "08.jpg", world.root / "field/labels/val/west/08.png"
    for index in range(100, 3000):
        os.link(image, image.with_name(f"{index}.jpg"))
        os.link(label, label.with_name(f"{index}.png"))
    process = train(world, "--steps", 4, "--doctor", "false", "--out", "run")
    wait_for(
        lambda: (tmp_path / "run/metrics.jsonl").exists() and '"step": 3' in (tmp_path / "run/metrics.jsonl").read_text(), process
    )
    time.sleep(1)
    process.send_signal(number)
    output = ended(process, 128 + number)
    assert "at step 4 of 4" in output and checkpoint.load(tmp_path / "run/last.pt")["step"] == 4


def test_a_killed_loader_process_ends_the_run(world, tmp_path):
    process = train(world, "--steps", 10_000, "--out", "run")
    wait_for(logged(tmp_path / "run"), process)
    os.kill(descendants(process.pid)[-1], signal.SIGKILL)
    assert "a loader process was killed, perhaps because memory ran out" in ended(process, 2)


def test_a_closed_pipe_does_not_end_the_run(world, tmp_path):
    process = train(world, "--steps", 8, "--out", "run")
    process.stdout.readline()
    process.stdout.close()
    process.wait(200)
    assert (tmp_path / "run/result.json").exists()


@pytest.mark.skipif(not ROOT, reason="needs root to mount a file system")
@pytest.mark.parametrize(
    ("place", "size", "status", "says"),
    [
        ("/dev/shm", "1m", 0, "Run folder: run"),
        ("/dev/shm", "64k", 2, "cannot start 1 loader processes: No space left on device in /dev/shm (in Docker: --shm-size)"),
        ("run", "2m", 2, "No space left on device"),
    ],
)
def test_full_file_systems(world, tmp_path, place, size, status, says):
    """Batches are larger than 1 MB of shared memory, which is enough; too little of it, or of disk, is an error in one line."""
    (tmp_path / "run").mkdir()
    command = " ".join(["exec", *SDA, "train", str(world.recipe), *SETTINGS, "--steps 4 --batch-labelled 64 --out run"])
    process = subprocess.Popen(
        ["unshare", "-m", "bash", "-c", f"mount -t tmpfs -o size={size} tmpfs {place} && {command}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    output = ended(process, status, 200)
    assert says in output and output.count("error:") == (status == 2)


def test_a_script_without_a_guard_may_draw_streets(world, tmp_path):
    (tmp_path / "script.py").write_text(
        "from sda import streets\nstreets.write('new', game=20, camera_train=2, camera_val=2, processes=2)\nprint('once')\n"
    )
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=True)
    assert done.stdout == "once\n" and (tmp_path / "new/streets.json").exists()
