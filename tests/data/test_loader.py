"""Loader processes: they use no shared memory, their deaths are errors, and they end when asked."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from sda.data.batch import Labelled
from sda.data.dataset import Loader
from sda.errors import SdaError


class Numbers(Dataset):
    def __init__(self, slow=-1, dies=-1):
        self.slow, self.dies = slow, dies

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == self.slow:
            time.sleep(1000)
        if index == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((3, 2, 2), index, dtype=torch.uint8)


def stacked(samples):
    images = torch.stack(samples)
    return Labelled(images, images[:, 0]), ["fault"]


@pytest.fixture
def children():
    """`children()`: the child processes that the test has started and that run."""

    def found():
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before = found()
    return lambda: found() - before


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_equal_with_and_without_processes(workers, children):
    with Loader(Numbers(), 3, range(8), workers, stacked) as loader:
        batches = list(loader)
    assert [len(part.images) for part, _ in batches] == [3, 3, 2] and batches[0][1] == ["fault"]
    part = torch.cat([part.images for part, _ in batches])
    assert part.dtype == torch.uint8 and torch.equal(part, torch.stack([Numbers()[index] for index in range(8)]))
    batches[0][0].labels.add_(1)  # the tensors are writable
    assert not children()


def test_close_ends_processes_that_are_busy(children):
    loader = Loader(Numbers(slow=4), 2, range(8), 1)
    assert len(next(loader)) == 2 and len(children()) == 1
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 3 and not children()
    assert list(loader) == []


def test_a_killed_process_is_an_error_in_one_line(children):
    with Loader(Numbers(dies=2), 2, range(8), 1) as loader, pytest.raises(SdaError, match="loader process was killed.*--workers"):
        list(loader)
    assert not children()


def test_too_few_file_descriptors_are_an_error_in_one_line(children):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 6, before[1]))
    try:
        with pytest.raises(SdaError, match=r"cannot start 2 loader processes: Too many open files; lower --workers"):
            Loader(Numbers(), 2, range(8), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not children()


@pytest.mark.skipif(not shutil.which("unshare") or os.geteuid() != 0, reason="needs root to mount a small /dev/shm")
def test_a_small_shared_memory_is_enough(tmp_path):
    """As in Docker: each batch is larger than /dev/shm."""
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from sda.data.dataset import Loader\n"
        "class Large(torch.utils.data.Dataset):\n"
        "    def __getitem__(self, index):\n"
        "        return torch.full((3, 600, 600), index, dtype=torch.uint8)\n"
        "with Loader(Large(), 2, range(6), 2) as loader:\n"
        "    print(sum(int(image.max()) for batch in loader for image in batch))\n"
    )
    command = f"mount -t tmpfs -o size=1m tmpfs /dev/shm && exec {sys.executable} {script}"
    done = subprocess.run(["unshare", "-m", "bash", "-c", command], capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout == "15\n", done.stderr
