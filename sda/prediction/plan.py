"""Find the images and videos to predict, and choose the output files."""

import importlib.util
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sda.data.listing import IMAGE_SUFFIXES, walk
from sda.errors import SdaError
from sda.pictures import legend
from sda.prediction import video
from sda.system.atomic import written_whole

KINDS = {"overlay": ".jpg", "color": ".png", "ids": ".png", "train_ids": ".png", "confidence": ".png", "cityscapes": ".png"}
MOVING = {"overlay", "color"}  # for a video, these kinds are written as a video and all others as one PNG per frame


@dataclass(frozen=True)
class Input:
    """One input and its outputs.

    Attributes:
        source: an image or a video. outputs: kind → file, or, for PNGs of a video, their folder.
    """

    source: Path
    outputs: dict[str, Path]

    @property
    def is_video(self) -> bool:
        return is_video(self.source)


def is_video(path: Path) -> bool:
    return path.suffix.lower() in video.SUFFIXES


def find(inputs: list[Path], excluded: list[Path]) -> tuple[dict[Path, Path], int]:
    """Find all images and videos in `inputs` (files and folders), sorted.

    Args:
        excluded: files and folders to ignore inside the folders in `inputs`, such as earlier predictions.

    Returns:
        File → its path relative to the common parent folder of all inputs; and the number of files ignored because of `excluded`.

    Raises:
        SdaError: an input does not exist, or is a folder without images and videos.
    """
    found: dict[str, Path] = {}
    tops: list[Path] = []
    ignored: set[Path] = set()
    excluded = [Path(os.path.abspath(path)) for path in excluded]
    for given in inputs:
        top = Path(os.path.abspath(given))
        files = [given]
        if given.is_dir():
            suffixes = IMAGE_SUFFIXES | video.SUFFIXES
            files = [folder / name for folder, names in walk(given) for name in names if Path(name).suffix.lower() in suffixes]
            below = [path for path in excluded if path != top and path.is_relative_to(top)]
            own = {file for file in files if any(Path(os.path.abspath(file)).is_relative_to(path) for path in below)}
            ignored |= own
            files = [file for file in files if file not in own]
            if not files:
                raise SdaError(f"{given}: contains no images or videos ({', '.join(sorted(suffixes))})")
        elif not given.exists():
            raise SdaError(f"{given}: no such file or folder")
        tops.append(top if given.is_dir() else top.parent)
        for file in files:
            found.setdefault(os.path.abspath(file), file)
    base = os.path.commonpath(tops)
    return {found[path]: Path(path).relative_to(base) for path in sorted(found)}, len(ignored)


def plan(found: dict[Path, Path], out: Path, kinds: Iterable[str]) -> list[Input]:
    """Return a task for each file that `find` found; OUT/KIND/ mirrors the folder tree of the inputs.

    Files whose names differ only in the suffix keep it: a.jpg.png and a.png.png.

    Raises:
        SdaError: an output would overwrite an input, or the package for videos is not installed.
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
                name = f"{stem}.mp4" if kind in MOVING else str(found[file])
            outputs[kind] = out / kind / name
            if os.path.abspath(outputs[kind]) in inputs:
                raise SdaError(f"{outputs[kind]} is an input and would be overwritten; choose another --out")
        tasks.append(Input(file, outputs))
    videos = [task.source for task in tasks if task.is_video]
    if videos and importlib.util.find_spec("av") is None:
        raise SdaError(f"{videos[0]}: reading videos needs the package av: pip install av")
    return tasks


def remaining(tasks: list[Input], resume: bool, overwrite: bool) -> list[Input]:
    """Return the remaining tasks: with `resume`, those with missing outputs, reduced to the missing ones; with `overwrite`, all.

    Raises:
        SdaError: an output exists, and neither `resume` nor `overwrite` is set.
    """
    existing = {file for task in tasks for file in task.outputs.values() if file.exists()}
    if not existing or overwrite:
        return tasks
    if not resume:
        count = sum(len(task.outputs) for task in tasks)
        raise SdaError(
            f"{min(existing)} exists ({len(existing)} of {count} outputs do); add --resume to keep existing files and write "
            "the missing ones, add --overwrite to replace them, or choose another --out"
        )
    left = [replace(task, outputs={kind: file for kind, file in task.outputs.items() if file not in existing}) for task in tasks]
    return [task for task in left if task.outputs]


def make_folders(out: Path, kinds: Iterable[str], colors: dict[str, list[int]], overwrite: bool) -> None:
    """Create OUT/KIND/, check that files can be written there, and write OUT/classes.png, a legend of the class colours.

    Raises:
        SdaError: the folders cannot be written to.
    """
    try:
        for kind in kinds:
            (out / kind).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out / kind).close()
        if overwrite or not (out / "classes.png").exists():
            with written_whole(out / "classes.png") as file:
                legend(colors).save(file, "PNG")
    except OSError as error:
        raise SdaError(f"--out {out}: cannot write to this folder ({error.strerror}); choose another one") from None
