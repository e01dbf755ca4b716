"""Predictions for files: what is read and where it goes, and the work between, with reading and writing beside it."""

import contextlib
import importlib.util
import io
import itertools
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from sda import video
from sda.atomic import written_whole
from sda.data import descriptor as descriptors
from sda.data.descriptor import IMAGE_SUFFIXES, label_values, map_classes, walk
from sda.data.files import FileError, read_image
from sda.errors import SdaError
from sda.evaluate import BATCH, batch_size
from sda.labels import IGNORE
from sda.pictures import GREY, colorize, legend, overlay
from sda.protocol import Protocol
from sda.trained import VALUES, Prediction, Run

KINDS = {"overlay": ".jpg", "color": ".png", "ids": ".png", "train_ids": ".png", "confidence": ".png", "cityscapes": ".png"}
MOVING = {"overlay", "color"}  # of a video these are videos, the others a PNG per frame
THREADS = min(8, os.cpu_count() or 1)

T = TypeVar("T")  # what a sample is besides its picture


@dataclass(frozen=True)
class Task:
    """One input, and what is to be made of it.

    Attributes:
        source: an image, or a video. outputs: kind → the file; for a video's PNGs, their folder.
    """

    source: Path
    outputs: dict[str, Path]

    @property
    def is_video(self) -> bool:
        return is_video(self.source)


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


def is_video(path: Path) -> bool:
    return path.suffix.lower() in video.SUFFIXES


def find(inputs: list[Path], made: list[Path]) -> tuple[dict[Path, Path], int]:
    """Every image and video that is named or lies in a folder that is named, sorted.

    Args:
        made: where predictions go: passed over on the way through a folder.

    Returns:
        File as named → its path below the folder that all inputs have in common; and how many were passed over.

    Raises:
        SdaError: no such file, or a folder without any.
    """
    found, tops, passed_over = {}, [], set()
    made = [Path(os.path.abspath(place)) for place in made]
    for given in inputs:
        top = Path(os.path.abspath(given))
        files = [given]
        if given.is_dir():
            suffixes = IMAGE_SUFFIXES | video.SUFFIXES
            files = [place / name for place, names in walk(given) for name in names if Path(name).suffix.lower() in suffixes]
            below = [place for place in made if place != top and place.is_relative_to(top)]
            own = {file for file in files if any(Path(os.path.abspath(file)).is_relative_to(place) for place in below)}
            passed_over |= own
            files = [file for file in files if file not in own]
            if not files:
                raise SdaError(f"{given}: holds no image and no video ({', '.join(sorted(suffixes))})")
        elif not given.exists():
            raise SdaError(f"{given}: no such file or folder")
        tops.append(top if given.is_dir() else top.parent)
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    base = os.path.commonpath(tops)
    return {found[path]: Path(path).relative_to(base) for path in sorted(found)}, len(passed_over)


def plan(found: dict[Path, Path], out: Path, kinds: Iterable[str]) -> list[Task]:
    """What is made of each file that `find` found: OUT/KIND/ mirrors their tree.

    Files that differ by their suffix alone keep it before the new one.

    Raises:
        SdaError: an input would be overwritten, or a video cannot be read here.
    """
    kinds = list(kinds)
    stems = {file: path.with_suffix("") for file, path in found.items()}
    while True:
        uses = Counter((is_video(file), stem) for file, stem in stems.items())
        shared = [file for file, stem in stems.items() if uses[is_video(file), stem] > 1]
        if not shared:
            break
        stems |= {file: found[file] for file in shared}
    tasks, inputs = [], {os.path.abspath(file) for file in found}
    for file, stem in stems.items():
        outputs = {}
        for kind in kinds:
            name = f"{stem}{KINDS[kind]}"
            if is_video(file):
                name = f"{stem}.mp4" if kind in MOVING else found[file]
            outputs[kind] = out / kind / name
            if os.path.abspath(outputs[kind]) in inputs:
                raise SdaError(f"{outputs[kind]} is an input, and would be written: name another folder with --out")
        tasks.append(Task(file, outputs))
    videos = [task.source for task in tasks if task.is_video]
    if videos and importlib.util.find_spec("av") is None:
        raise SdaError(f"{videos[0]}: to read videos, the package av is needed: pip install av")
    return tasks


def settle(tasks: list[Task], resume: bool, overwrite: bool) -> list[Task]:
    """The tasks less what is there already, with `resume`; all of them with `overwrite`.

    Raises:
        SdaError: something is there, and neither was said.
    """
    there = {file for task in tasks for file in task.outputs.values() if file.exists()}
    if not there or overwrite:
        return tasks
    if not resume:
        count = sum(len(task.outputs) for task in tasks)
        raise SdaError(
            f"{min(there)} exists ({len(there)} of {count} outputs do): --resume leaves what is there and makes the rest, "
            "--overwrite makes all anew, --out DIR goes elsewhere"
        )
    rest = [replace(task, outputs={k: file for k, file in task.outputs.items() if file not in there}) for task in tasks]
    return [task for task in rest if task.outputs]


def make_folders(out: Path, kinds: Iterable[str], colors: dict[str, list[int]], overwrite: bool) -> None:
    """Make OUT/KIND and see that files can be written there; OUT/classes.png shows which colour is which class.

    Raises:
        SdaError: they cannot.
    """
    try:
        for kind in kinds:
            (out / kind).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out / kind).close()
        if overwrite or not (out / "classes.png").exists():
            with written_whole(out / "classes.png") as file:
                legend(colors).save(file, "PNG")
    except OSError as error:
        raise SdaError(f"--out {out}: cannot be written to ({error.strerror}); name another folder") from None


# Pictures of predictions


def id_values(run: Run, kinds: Iterable[str]) -> dict[str, np.ndarray]:
    """For those of `kinds` that hold ids, the (256,) uint8 table train id → value in the file.

    `ids`: as in the label files of the run's target. `cityscapes`: the label ids of Cityscapes (7 is road).

    Raises:
        SdaError: a class has no such id.
    """
    tables = {}
    for kind in kinds:
        if kind == "train_ids":
            tables[kind] = np.arange(256, dtype=np.uint8)
        elif kind in ("ids", "cityscapes"):
            described = descriptors.load(run.recipe.target if kind == "ids" else kind)
            try:
                mapping, _ = map_classes(described, run.table_name, run.table)
            except SdaError:  # nothing maps
                mapping = np.full(256, IGNORE, np.uint8)
            tables[kind], named = np.full(256, IGNORE, np.uint8), set()
            for value, train_id in label_values(described, "ids").items():
                index = mapping[train_id]
                if index != IGNORE and index not in named:
                    tables[kind][index] = value
                    named.add(index)
            lacking = [name for index, name in enumerate(run.table.names) if index not in named]
            if lacking:
                raise SdaError(
                    f"--as {kind}: {described.title} has no id for {', '.join(lacking[:4])}{', …' if lacking[4:] else ''} "
                    f"among this run's classes ({run.table_name}); --as train_ids takes any"
                )
    return tables


def render(kind: str, picture: Image.Image, prediction: Prediction, values: dict[str, np.ndarray]) -> Image.Image:
    """One output: RGB, or single-channel. Ids have a palette, the colours of the classes, but for the Cityscapes server.

    Args:
        picture: the RGB image that the prediction is of. values: of `id_values`.
    """
    if kind == "confidence":
        return Image.fromarray(np.round(255 * prediction.confidence.clip(0, 1)).astype(np.uint8))
    colors = list(prediction.table.colors.values())
    if kind in values:
        ids = Image.fromarray(values[kind][prediction.labels])
        if kind != "cityscapes":
            palette = np.full((256, 3), GREY, np.uint8)
            palette[values[kind][: len(colors)]] = colors
            ids.putpalette(palette.tobytes())
        return ids
    mask = colorize(prediction.labels, colors)
    return Image.fromarray(mask if kind == "color" else overlay(np.asarray(picture), mask))


def _encode(image: Image.Image, suffix: str) -> bytes:
    out = io.BytesIO()
    if suffix == ".jpg":
        image.save(out, "JPEG", quality=92, subsampling=0)
    else:
        image.save(out, "PNG")
    return out.getvalue()


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
        return task, str(error).partition("; mend or remove")[0]  # which is advice for a training
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
            content = _encode(render(kind, picture, prediction, values), path.suffix)
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
