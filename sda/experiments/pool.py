"""Train several runs in parallel on one machine, each in its own process."""

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sda.data import descriptor as descriptors
from sda.data.assemble import find_root
from sda.errors import SdaError, explained
from sda.experiments import run as experiment
from sda.recipe import Recipe
from sda.scoring.summary import is_scored
from sda.system.children import PATIENCE, run_tasks
from sda.system.progress import Bars, Relay
from sda.system.signals import Interrupted
from sda.training import resume

# Fields that may differ in a finished run. Other folders may have other images, so the roots must be equal.
SAME_DATA = resume.FREE - resume.PLACES | {"root"}
UNSCORED = "it has no mIoU, because its target has no labels to score on"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A run to train: its name on the progress bars, its recipe, and its run folder."""

    name: str
    recipe: Recipe
    folder: Path


def default_size(device: torch.device) -> int:
    """Return how many runs to train in parallel: two on a multi-core CPU, where more threads hardly speed up a single run."""
    return 2 if device.type == "cpu" and (os.cpu_count() or 1) > 1 else 1


def scores_of(jobs: list[Job], at_once: int, device: torch.device, bars: Bars) -> tuple[dict[str, dict], dict[str, str]]:
    """Train the jobs that are not finished, and return the results of all: name → score, and name → why there is none.

    Raises:
        SdaError: a job's folder has a run with other settings.
    """
    results: dict[str, dict | SdaError] = {}
    missing = []
    for job in jobs:
        if found := resume.finished(job.folder, job.recipe, SAME_DATA):
            results[job.name] = found
        else:
            missing.append(job)
    bars.say(f"{len(jobs)} runs: {len(results)} finished, {len(missing)} to train")
    for number, (job, result) in enumerate(train_all(missing, at_once, device, bars), 1):
        results[job.name] = result
        if isinstance(result, SdaError):
            bars.say(f"{job.name}: {result}")
        bars.count("runs", number, len(missing))
    scores = {name: result for name, result in results.items() if not isinstance(result, SdaError) and is_scored(result)}
    failed = {
        name: str(result) if isinstance(result, SdaError) else UNSCORED for name, result in results.items() if name not in scores
    }
    return scores, failed


def train_all(jobs: list[Job], at_once: int, device: torch.device, bars: Bars) -> Iterator[tuple[Job, dict | SdaError]]:
    """Train `jobs` in order, `at_once` in parallel, with an equal share of the cores each. Interrupted runs are resumed.

    Args:
        at_once: 1 trains in this process; more start one process each.

    Yields:
        Each finished job with its result (see `sda.training.loop.train`) or its error.
    """
    if at_once == 1:
        for job in jobs:
            yield job, _train(job, device, bars)
        return
    sets = {(job.recipe.target, job.recipe.target_root) for job in jobs} | {
        (source.dataset, source.root) for job in jobs for source in job.recipe.sources
    }
    for name, root in sorted(sets):
        # create generated data now, so that two processes do not create it at the same time
        if (described := descriptors.load(name)).generated:
            find_root(described, root, "--root", bars.count)
    threads = max(1, (os.cpu_count() or 1) // at_once)
    train = functools.partial(_train_apart, device=device, threads=threads)
    with closing(run_tasks(train, jobs, at_once, bars.hear, in_hand=1, patience=PATIENCE)) as results:
        for place, result in results:
            yield jobs[place], result


def _train(job: Job, device: torch.device, bars: Bars) -> dict | SdaError:
    """Train a job, and return its result or its error."""
    try:
        # A pool that was killed leaves children that write their last checkpoint.
        result = experiment.run(job.recipe, job.name, job.folder, device, bars, "auto", patience=PATIENCE)
        assert result is not None
        return result
    except SdaError as error:
        return error
    except Exception as error:  # such as out of memory or a full disk: the other runs continue
        if known := explained(error):
            return known
        logger.exception("%s", job.name)
        return SdaError(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


def _train_apart(job: Job, tell: Callable[[Any], None], device: torch.device, threads: int) -> dict | SdaError:
    """Train a job in a child process, and send its progress to the parent."""
    torch.set_num_threads(threads)
    bars = Relay(tell)
    try:
        return _train(job, device, bars)
    except Interrupted as stop:
        bars.say(f"{job.name}: {stop}")
        raise
