"""Segment many files: read, predict and write at the same time, in bounded memory."""

import contextlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from sda.data.files import FileError, read_image
from sda.errors import SdaError
from sda.prediction import video
from sda.prediction.plan import MOVING, Input
from sda.prediction.render import encode, render
from sda.protocol import Protocol
from sda.runs.trained import VALUES, Prediction, Run
from sda.scoring.evaluate import BATCH, batch_size
from sda.system.atomic import written_whole

THREADS = min(8, os.cpu_count() or 1)

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How images are segmented: see `Run.predict`. batch: images per batch; 0: as in evaluation."""

    size: str | tuple[int, int] = "fit"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch: int = 0

    def protocol(self, run: Run, image: tuple[int, int]) -> Protocol:
        """Return the protocol for an image of (height, width)."""
        return replace(run.fit(image, self.size), scales=self.scales, flip=self.flip)


@dataclass
class Outcome:
    """Numbers of predicted images, videos and video frames, and the reasons why files were skipped."""

    images: int = 0
    videos: int = 0
    frames: int = 0
    skipped: list[str] = field(default_factory=list)


def predict_all(
    run: Run, tasks: list[Input], values: dict[str, np.ndarray], options: Options, progress: Callable[[str, int, int], None]
) -> Outcome:
    """Write the outputs of all tasks; skip inputs that cannot be read.

    Args:
        values: see `sda.prediction.render.id_values`. progress: called with the task, the number done and the total.

    Raises:
        SdaError: an output cannot be written.
    """
    outcome = Outcome()
    images = [task for task in tasks if not task.is_video]
    with ThreadPoolExecutor(THREADS) as pool:
        read = ahead(pool, (partial(_read, task) for task in images), (options.batch or BATCH) + THREADS)
        samples = segmented(run, _readable(read, outcome.skipped), options)
        for fault in ahead(pool, (partial(_write_image, values, *sample) for sample in samples), THREADS):
            if fault:
                outcome.skipped.append(fault)
            else:
                outcome.images += 1
            progress("predicting", outcome.images + len(outcome.skipped), len(images))
    for task in tasks:
        if task.is_video:
            try:
                frames, fault = _predict_video(run, task, options, values, partial(progress, task.source.name))
                outcome.videos, outcome.frames = outcome.videos + 1, outcome.frames + frames
                outcome.skipped += [fault] if fault else []
            except FileError as error:
                outcome.skipped.append(str(error))
    return outcome


def ahead(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], T]], count: int) -> Iterator[T]:
    """Yield the results of jobs in order; up to `count` jobs are submitted before their results are needed."""
    submitted: deque[Future[T]] = deque()
    for job in jobs:
        submitted.append(pool.submit(job))
        if len(submitted) > count:
            yield submitted.popleft().result()
    while submitted:
        yield submitted.popleft().result()


def segmented(
    run: Run, samples: Iterable[tuple[T, Image.Image]], options: Options
) -> Iterator[tuple[T, Image.Image, Prediction]]:
    """Yield samples (key, RGB image) with their predictions, in order; images of equal size share a batch."""
    for chunk in _chunks(samples, options.batch or BATCH, VALUES // len(run.table.names)):
        groups: dict[tuple, list[int]] = {}
        for index, (_, image) in enumerate(chunk):
            height, width = image.size[::-1]
            groups.setdefault((options.protocol(run, (height, width)), image.size), []).append(index)
        predictions: dict[int, Prediction] = {}
        for (protocol, _), indices in groups.items():
            count = options.batch or batch_size(protocol)
            for start in range(0, len(indices), count):
                part = indices[start : start + count]
                predictions |= zip(part, run.segment_all([chunk[index][1] for index in part], protocol), strict=True)
        for index, (key, image) in enumerate(chunk):
            yield key, image, predictions[index]


def _chunks(samples: Iterable[tuple[T, Image.Image]], count: int, pixels: int) -> Iterator[list[tuple[T, Image.Image]]]:
    """Yield lists of up to `count` samples with up to `pixels` pixels in total, or of one larger sample."""
    chunk: list[tuple[T, Image.Image]] = []
    total = 0
    for sample in samples:
        size = sample[1].width * sample[1].height
        if chunk and (len(chunk) == count or total + size > pixels):
            yield chunk
            chunk, total = [], 0
        chunk.append(sample)
        total += size
    if chunk:
        yield chunk


def _read(task: Input) -> tuple[Input, Image.Image | str]:
    """Return the image of a task, or the reason why it cannot be read."""
    try:
        return task, read_image(task.source)
    except FileError as error:
        return task, str(error).rpartition("; ")[0] or str(error)  # without the advice, which is about training


def _readable(samples: Iterable[tuple[T, Image.Image | str]], faults: list[str]) -> Iterator[tuple[T, Image.Image]]:
    """Yield the samples that have an image; append the reasons of the others to `faults`."""
    for key, image in samples:
        if isinstance(image, str):
            faults.append(image)
        else:
            yield key, image


def _write_image(values: dict[str, np.ndarray], task: Input, image: Image.Image, prediction: Prediction) -> str:
    """Write the outputs of an image. Return the reason if one of them cannot be encoded, else ""."""
    for kind, path in task.outputs.items():
        try:
            content = encode(render(kind, image, prediction, values), path.suffix)
        except OSError as error:  # JPEG supports at most 65,500 rows and columns
            return f"{task.source}: cannot be written as {path.suffix} ({error})"
        _write(path, content)
    return ""


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(content)
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: Exception) -> SdaError:
    reason = getattr(error, "strerror", None) or error
    return SdaError(f"{path}: cannot write this file ({reason}); run the same command again with --resume to resume")


def _predict_video(
    run: Run, task: Input, options: Options, values: dict[str, np.ndarray], progress: Callable[[int, int], None]
) -> tuple[int, str]:
    """Write the outputs of a video.

    Returns:
        The number of frames, and the reason if the video ends early, else "".

    Raises:
        FileError: the video cannot be read; no outputs are left.
    """
    import av

    done = 0
    with video.opened(task.source) as (frames, rate, total, in_header):
        try:
            with contextlib.ExitStack() as files:
                sinks = {
                    kind: files.enter_context(video.written(path, rate) if kind in MOVING else video.numbered(path))
                    for kind, path in task.outputs.items()
                }

                def put(place: video.Place, image: Image.Image, prediction: Prediction) -> None:
                    for kind, sink in sinks.items():
                        sink(place, render(kind, image, prediction, values))

                # one thread reads and one writes, so frames stay in order
                reader, writer = (files.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
                read = ahead(reader, (partial(next, frames, None) for _ in itertools.count()), options.batch or BATCH)
                samples = itertools.takewhile(lambda sample: sample is not None, read)
                jobs = (partial(put, *sample) for sample in segmented(run, samples, options))
                for done, _ in enumerate(ahead(writer, jobs, 2), 1):
                    progress(done, max(done, total))
        except (OSError, av.FFmpegError) as error:
            raise _cannot_write(next(iter(task.outputs.values())), error) from None
    if done < total:
        progress(done, done)
    return done, f"{task.source}: the video ends after {done} of {in_header} frames" if done < 0.9 * in_header else ""
