"""Segment many files: read, predict and write at the same time, in bounded memory."""

import contextlib
import errno
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from PIL import Image

from sda.data.files import FileError, read_image
from sda.errors import SdaError
from sda.prediction import video
from sda.prediction.plan import MOVING, Input
from sda.prediction.record import Record, identity
from sda.prediction.render import encode, render
from sda.protocol import Protocol
from sda.runs.trained import VALUES, Prediction, Run
from sda.scoring.evaluate import BATCH, batch_size
from sda.system.atomic import written_whole

THREADS = min(8, os.cpu_count() or 1)
AHEAD = 2**27  # maximum number of pixels of images that are read, or wait to be written, at the same time
MEGAPIXELS = 200.0  # the default of Options.megapixels: photos of current telephones
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How images are segmented: see `Run.predict`.

    Attributes:
        batch: images per batch; 0: as in evaluation. megapixels: maximum size of images, video frames and network inputs.
    """

    size: str | tuple[int, int] = "fit"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    batch: int = 0
    megapixels: float = MEGAPIXELS

    def __post_init__(self):
        if not isinstance(self.size, str) and math.prod(self.size) > self.megapixels * 1e6:
            raise SdaError(f"--size {self.size[0]}x{self.size[1]}: more pixels than --max-megapixels {self.megapixels:g}")

    def protocol(self, run: Run, image: tuple[int, int]) -> Protocol:
        """Return the protocol for an image of (height, width).

        Raises:
            FileError: the network's input would be too large.
        """
        protocol = replace(run.fit(image, self.size), scales=self.scales, flip=self.flip)
        height, width = (round(side * max(self.scales)) for side in protocol.input or image)
        if height * width > self.megapixels * 1e6:
            raise FileError(
                f"the network's input would be {height}x{width} pixels, more than --max-megapixels {self.megapixels:g}; choose a "
                "smaller --size or smaller --scales"
            )
        return protocol


@dataclass
class Outcome:
    """Numbers of predicted images, videos and video frames, and the reasons why files were skipped."""

    images: int = 0
    videos: int = 0
    frames: int = 0
    skipped: list[str] = field(default_factory=list)


def predict_all(
    run: Run,
    tasks: list[Input],
    values: dict[str, np.ndarray],
    options: Options,
    record: Record,
    progress: Callable[[str, int, int], None],
) -> Outcome:
    """Write the outputs of all tasks; skip inputs that cannot be read.

    Args:
        values: see `sda.prediction.render.id_values`. progress: called with the task, the number done and the total.

    Raises:
        SdaError: an output cannot be written.
    """
    outcome = Outcome()
    images = [task for task in tasks if not task.is_video]
    with ThreadPoolExecutor(THREADS) as writers, _readers(THREADS) as readers:
        reads = ((task.content.pixels, partial(_read, run, options, task)) for task in images)
        read = ahead(readers, reads, (options.batch or BATCH) + THREADS)
        samples = segmented(run, _readable(read, outcome.skipped), options)
        writes = ((sample[1].width * sample[1].height, partial(_write_image, values, record, *sample)) for sample in samples)
        for fault in ahead(writers, writes, THREADS):
            if fault:
                outcome.skipped.append(fault)
            else:
                outcome.images += 1
            progress("predicting", outcome.images + len(outcome.skipped), len(images))
    for task in tasks:
        if task.is_video:
            try:
                frames, fault = _predict_video(run, task, options, values, record, partial(progress, task.source.name))
                outcome.videos, outcome.frames = outcome.videos + 1, outcome.frames + frames
                outcome.skipped += [fault] if fault else []
            except FileError as error:
                outcome.skipped.append(str(error))
    return outcome


@contextlib.contextmanager
def _readers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads. After an error or Ctrl-C, finish only the jobs that have begun, not all that were submitted."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(pool: ThreadPoolExecutor, jobs: Iterable[tuple[int, Callable[[], T]]], count: int) -> Iterator[T]:
    """Yield the results of jobs in order, and submit later jobs before their results are needed.

    Args:
        jobs: the number of pixels that a job holds or returns, and its function.
        count: maximum number of jobs in flight. Together they have up to AHEAD pixels, or there is only one.
    """
    submitted: deque[tuple[int, Future[T]]] = deque()
    total = 0
    for pixels, job in jobs:
        while submitted and (len(submitted) > count or total + pixels > AHEAD):
            before, future = submitted.popleft()
            yield future.result()
            total -= before
        submitted.append((pixels, pool.submit(job)))
        total += pixels
    while submitted:
        yield submitted.popleft()[1].result()


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


def _read(run: Run, options: Options, task: Input) -> tuple[tuple[Input, dict], Image.Image | str]:
    """Return the task, the identity of its source, and the image or the reason why it cannot be predicted."""
    try:
        source = identity(task.source)
        image = read_image(task.source)
    except FileError as error:
        return (task, {}), error.fault
    except OSError as error:
        return (task, {}), f"{task.source}: {error.strerror or error}"
    except Exception as error:  # a damaged file can raise nearly anything, and a large one MemoryError
        return (task, {}), f"{task.source}: this image cannot be read ({str(error) or type(error).__name__})"
    try:
        options.protocol(run, (image.height, image.width))
    except FileError as error:
        return (task, {}), f"{task.source}: {error}"
    return (task, source), image


def _readable(samples: Iterable[tuple[T, Image.Image | str]], faults: list[str]) -> Iterator[tuple[T, Image.Image]]:
    """Yield the samples that have an image; append the reasons of the others to `faults`."""
    for key, image in samples:
        if isinstance(image, str):
            faults.append(image)
        else:
            yield key, image


def _write_image(
    values: dict[str, np.ndarray], record: Record, key: tuple[Input, dict], image: Image.Image, prediction: Prediction
) -> str:
    """Write the outputs of an image. Return the reason if one of them cannot be written, else ""."""
    task, source = key
    contents, fault = {}, ""
    for kind, path in task.outputs.items():
        try:
            contents[path] = encode(render(kind, image, prediction, values), path.suffix)
        except OSError as error:  # JPEG supports at most 65,500 rows and columns
            fault = f"{task.source}: cannot be written as {path.suffix} ({error})"
    try:
        new, existing = _new_and_existing(contents)
        record.add(source, new)
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as file:
                file.write(content)
        record.add(source, existing)
    except OSError as error:
        return _too_long(task, error) or _stop(task, error)
    return fault


def _new_and_existing(outputs: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Divide outputs into those to note in the record before they are written and those to note after they are replaced.

    After a kill, `--resume` must neither find a new output without a note nor take an existing one for its replacement.
    """
    exists = {path: os.path.lexists(path) for path in outputs}
    return [path for path in exists if not exists[path]], [path for path in exists if exists[path]]


def _too_long(task: Input, error: OSError) -> str:
    """Return a reason to skip a task if the file system refuses the name of an output, else ""."""
    too_long = error.errno == errno.ENAMETOOLONG
    return f"{task.source}: the path of its output is too long for the file system; choose a shorter --out" if too_long else ""


def _stop(task: Input, error: Exception) -> NoReturn:
    """Raise an SdaError: outputs cannot be written."""
    path = getattr(error, "filename", None) or next(iter(task.outputs.values()))
    reason = getattr(error, "strerror", None) or error
    raise SdaError(f"{path}: cannot write this file ({reason}); run the same command again with --resume to resume") from None


def _predict_video(
    run: Run,
    task: Input,
    options: Options,
    values: dict[str, np.ndarray],
    record: Record,
    progress: Callable[[int, int], None],
) -> tuple[int, str]:
    """Write the outputs of a video.

    Returns:
        The number of frames, and the reason if the video ends early, else "".

    Raises:
        FileError: the video cannot be read, or not be written as a video; no outputs are left.
    """
    import av

    done = 0
    with video.opened(task.source, options.megapixels, partial(options.protocol, run)) as (frames, rate, total, in_header):
        try:
            source = identity(task.source)
            new, existing = _new_and_existing(task.outputs.values())
            with contextlib.ExitStack() as files:
                sinks = {
                    kind: files.enter_context(video.written(path, rate) if kind in MOVING else video.numbered(path))
                    for kind, path in task.outputs.items()
                }

                def put(place: video.Place, image: Image.Image, prediction: Prediction) -> None:
                    for kind, sink in sinks.items():
                        sink(place, render(kind, image, prediction, values))

                # one thread reads and one writes, so frames stay in order
                reader, writer = files.enter_context(_readers(1)), files.enter_context(ThreadPoolExecutor(1))
                read = ahead(reader, ((0, partial(next, frames, None)) for _ in itertools.count()), options.batch or BATCH)
                samples = itertools.takewhile(lambda sample: sample is not None, read)
                jobs = ((0, partial(put, *sample)) for sample in segmented(run, samples, options))
                for done, _ in enumerate(ahead(writer, jobs, 2), 1):
                    progress(done, max(done + 1, total))
                record.add(source, new)
            record.add(source, existing)
        except av.FFmpegError as error:
            if error.errno in _DISK:
                _stop(task, error)
            raise FileError(f"{task.source}: cannot be written as a video ({error.strerror})") from None
        except OSError as error:
            if reason := _too_long(task, error):
                raise FileError(reason) from None
            _stop(task, error)
    progress(done, done)
    return done, f"{task.source}: the video ends after {done} of {in_header} frames" if done < 0.9 * in_header else ""
