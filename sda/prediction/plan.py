"""Which files are read, and which are written."""

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


MOVING = {"overlay", "color"}  # of a video these are videos, the others a PNG per frame


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
