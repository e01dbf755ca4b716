"""Several trainings at a time on one machine, each in a process of its own."""

import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from sda.data import descriptor as descriptors
from sda.data.assemble import find_root
from sda.errors import SdaError
from sda.experiments import run as experiment
from sda.recipe import Recipe
from sda.system.progress import Bars, Relay, play
from sda.training import resume

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A training: its name on the bars, its recipe, and its run folder."""

    name: str
    recipe: Recipe
    folder: Path


def default_size(device: torch.device) -> int:
    """How many trainings at a time: two on a CPU of several cores, where small networks gain little from more threads."""
    return 2 if device.type == "cpu" and (os.cpu_count() or 1) > 1 else 1


def train_all(jobs: list[Job], at_once: int, device: torch.device, bars: Bars) -> Iterator[tuple[Job, dict | SdaError]]:
    """Train `jobs` in their order, `at_once` at a time with an even share of the cores each; 1: in this process.

    What an interrupted run left in a job's folder is gone on with.

    Yields:
        Each job as it ends, with its result (see `sda.training.loop.train`) or the error that ended it.
    """
    if at_once == 1:
        for job in jobs:
            yield job, _train(job, device, bars)
        return
    sets = {(job.recipe.target, job.recipe.target_root) for job in jobs} | {
        (job.recipe.source, job.recipe.source_root) for job in jobs
    }
    for name, root in sorted(sets):
        # data that is drawn on first use is drawn once, before two want it
        if name and (described := descriptors.load(name)).generated:
            find_root(described, root, "--root", bars.count)
    threads = max(1, (os.cpu_count() or 1) // at_once)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(at_once, context) as pool:
        queue = manager.Queue()
        running = {pool.submit(_train_apart, job, device, threads, queue): job for job in jobs}
        try:
            while running:
                play(queue, bars, seconds=0.2)
                for future in [future for future in running if future.done()]:
                    play(queue, bars, seconds=0.0)
                    job = running.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        result = SdaError("its process was killed: out of memory?")
                    yield job, result
        finally:  # the caller gave up: what has not begun does not begin
            for future in running:
                future.cancel()


def _train(job: Job, device: torch.device, bars: Bars) -> dict | SdaError:
    try:
        return experiment.run(job.recipe, job.name, job.folder, device, bars, resume.find("auto", job.folder))
    except SdaError as error:
        return error
    except Exception as error:  # out of memory, a full disk: the other trainings go on
        logger.exception("%s", job.name)
        return SdaError(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


def _train_apart(job: Job, device: torch.device, threads: int, queue) -> dict | SdaError:
    """The same in a process of its own, which reports to `queue`."""
    torch.set_num_threads(threads)
    return _train(job, device, Relay(queue))
