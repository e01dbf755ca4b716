"""Predictions for files: what is read and where it goes, and the work between, with reading and writing beside it."""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from sda.data.files import FileError, read_image
from sda.errors import SdaError
from sda.prediction import video
from sda.prediction.plan import MOVING, Task
from sda.prediction.render import encode, render
from sda.protocol import Protocol
from sda.runs.trained import VALUES, Prediction, Run
from sda.scoring.evaluate import BATCH, batch_size
from sda.system.atomic import written_whole

THREADS = min(8, os.cpu_count() or 1)

T = TypeVar("T")  # what a sample is besides its picture


@dataclass(frozen=True)
class Manner:
    """How images are taken: see `Run.predict`. batch: how many at a time; 0: as evaluation does."""

    size: str | tuple[int, int] = "fit"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch: int = 0

    def protocol(self, run: Run, image: tuple[int, int]) -> Protocol:
        """For an image of (height, width)."""
        return replace(run.fit(image, self.size), scales=self.scales, flip=self.flip)


@dataclass
class Outcome:
    """What came of it: counts, and why files were left out."""

    images: int = 0
    videos: int = 0
    frames: int = 0
    left_out: list[str] = field(default_factory=list)


# What is read and where it goes


# Pictures of predictions


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(content)
    except OSError as error:
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: OSError) -> SdaError:
    return SdaError(f"{path}: cannot be written ({error.strerror or error}); what is whole stays: --resume goes on with the rest")


# The work between


def ahead(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], T]], count: int) -> Iterator[T]:
    """The results of jobs in their order, `count` of which are begun before they are asked for."""
    begun = deque()
    for job in jobs:
        begun.append(pool.submit(job))
        if len(begun) > count:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def predicted(run: Run, samples: Iterable[tuple[T, Image.Image]], manner: Manner) -> Iterator[tuple[T, Image.Image, Prediction]]:
    """Samples, whatever each is and its RGB picture, with their predictions, in order; those of equal size are taken together."""
    for chunk in _chunks(samples, manner.batch or BATCH, VALUES // len(run.table.names)):
        alike: dict[tuple, list[int]] = {}
        for place, (_, picture) in enumerate(chunk):
            alike.setdefault((manner.protocol(run, picture.size[::-1]), picture.size), []).append(place)
        predictions: dict[int, Prediction] = {}
        for (protocol, _), places in alike.items():
            at_once = manner.batch or batch_size(protocol)
            for start in range(0, len(places), at_once):
                part = places[start : start + at_once]
                predictions |= zip(part, run.segment_all([chunk[place][1] for place in part], protocol), strict=True)
        for place, (what, picture) in enumerate(chunk):
            yield what, picture, predictions[place]


def _chunks(samples: Iterable[tuple[T, Image.Image]], count: int, pixels: int) -> Iterator[list[tuple[T, Image.Image]]]:
    """Up to `count` samples at a time, with up to `pixels` in all, but one at least."""
    chunk, held = [], 0
    for sample in samples:
        size = sample[1].width * sample[1].height
        if chunk and (len(chunk) == count or held + size > pixels):
            yield chunk
            chunk, held = [], 0
        chunk.append(sample)
        held += size
    if chunk:
        yield chunk


def predict_all(
    run: Run, tasks: list[Task], values: dict[str, np.ndarray], manner: Manner, count: Callable[[str, int, int], None]
) -> Outcome:
    """Make the outputs of all tasks. Whatever cannot be read is left out and the others go on.

    Args:
        values: of `id_values`. count: what is being done, how many are done, how many there are.

    Raises:
        SdaError: an output cannot be written.
    """
    outcome = Outcome()
    images = [task for task in tasks if not task.is_video]
    with ThreadPoolExecutor(THREADS) as pool:
        read = ahead(pool, (partial(_read, task) for task in images), (manner.batch or BATCH) + THREADS)
        jobs = (partial(_write_image, values, *each) for each in predicted(run, _sound(read, outcome.left_out), manner))
        for fault in ahead(pool, jobs, THREADS):
            if fault:
                outcome.left_out.append(fault)
            else:
                outcome.images += 1
            count("predicting", outcome.images + len(outcome.left_out), len(images))
    for task in tasks:
        if task.is_video:
            try:
                frames, amiss = _predict_video(run, task, manner, values, partial(count, task.source.name))
                outcome.videos, outcome.frames = outcome.videos + 1, outcome.frames + frames
                outcome.left_out += [amiss] if amiss else []
            except FileError as fault:
                outcome.left_out.append(str(fault))
    return outcome


def _read(task: Task) -> tuple[Task, Image.Image | str]:
    """The picture of a task, or what is wrong with it."""
    try:
        return task, read_image(task.source)
    except FileError as error:
        return task, str(error).partition("; fix or remove")[0]  # which is advice for a training
    except Exception as error:  # Pillow's readers raise anything when a file is damaged the right way
        return task, f"{task.source}: this image cannot be read ({type(error).__name__}: {error})"


def _sound(samples: Iterable[tuple[T, Image.Image | str]], faults: list[str]) -> Iterator[tuple[T, Image.Image]]:
    """The samples with a picture; of the others, the fault goes on the list."""
    for what, picture in samples:
        if isinstance(picture, str):
            faults.append(picture)
        else:
            yield what, picture


def _write_image(values: dict[str, np.ndarray], task: Task, picture: Image.Image, prediction: Prediction) -> str:
    """Why not all of it could be, or ""."""
    for kind, path in task.outputs.items():
        try:
            content = encode(render(kind, picture, prediction, values), path.suffix)
        except OSError as error:  # JPEG has room for 65,500 rows and columns
            return f"{task.source}: no {path.suffix} can be made of it ({error})"
        _write(path, content)
    return ""


def _predict_video(
    run: Run, task: Task, manner: Manner, values: dict[str, np.ndarray], count: Callable[[int, int], None]
) -> tuple[int, str]:
    """The number of frames, and what is amiss, or "". FileError when the video cannot be read: nothing of it stays then."""
    import av

    done = 0
    with video.opened(task.source) as (frames, rate, total, said):
        try:
            with contextlib.ExitStack() as files:
                sinks = {
                    kind: files.enter_context(video.written(path, rate) if kind in MOVING else video.numbered(path))
                    for kind, path in task.outputs.items()
                }

                def put(place: video.Place, picture: Image.Image, prediction: Prediction) -> None:
                    for kind, sink in sinks.items():
                        sink(place, render(kind, picture, prediction, values))

                # one thread reads, one writes: each frame after the one before it
                reader, writer = (files.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
                read = ahead(reader, (partial(next, frames, None) for _ in itertools.count()), manner.batch or BATCH)
                samples = itertools.takewhile(lambda sample: sample is not None, read)
                jobs = (partial(put, *each) for each in predicted(run, samples, manner))
                for done, _ in enumerate(ahead(writer, jobs, 2), 1):
                    count(done, max(done, total))
        except (OSError, av.FFmpegError) as error:
            raise _unwritten(next(iter(task.outputs.values())), error) from None
    if done < total:
        count(done, done)
    return done, f"{task.source}: it ends after {done} of {said} frames" if done < 0.9 * said else ""
