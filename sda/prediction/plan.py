"""Find the images and videos to predict, and choose the output files."""

import hashlib
import importlib.util
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sda.data.files import FileError, read_image
from sda.data.item import Item
from sda.data.layouts.maps import find_maps
from sda.data.listing import walk
from sda.errors import SdaError
from sda.pictures import legend
from sda.prediction.content import VIDEO_SUFFIXES, Content, examine
from sda.system.atomic import written_whole

KINDS = {"overlay": ".jpg", "color": ".png", "ids": ".png", "train_ids": ".png", "confidence": ".png", "cityscapes": ".png"}
MOVING = {"overlay", "color"}  # for a video, these kinds are written as a video and all others as one PNG per frame
LONGEST = 240  # bytes of an output's name without its suffix: file systems allow 255, and temporary names need a few more


@dataclass(frozen=True)
class Input:
    """One input and its outputs.

    Attributes:
        source: an image or a video. content: what it is. outputs: kind → file, or, for PNGs of a video, their folder.
    """

    source: Path
    content: Content
    outputs: dict[str, Path]

    @property
    def is_video(self) -> bool:
        return self.content.kind == "video"


@dataclass
class Found:
    """The files in some inputs.

    Attributes:
        files: image or video → its path relative to the common parent folder of all inputs, sorted. contents: what they are.
        skipped: reasons why images, videos and folders cannot be read. ignored: reason → files in folders that are not predicted.
        inputs: absolute paths of all these files. excluded: number of files in excluded folders.
    """

    files: dict[Path, Path] = field(default_factory=dict)
    contents: dict[Path, Content] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    ignored: dict[str, list[Path]] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    excluded: int = 0

    def skip(self, path: Path, reason: str) -> None:
        self.skipped.append(f"{path}: {reason}")


def find(inputs: list[Path], excluded: list[Path]) -> Found:
    """Find all images and videos in `inputs` (files and folders) by their content. Hidden files in folders are ignored.

    Args:
        excluded: files and folders to ignore inside the folders in `inputs`, such as earlier predictions.

    Raises:
        SdaError: an input does not exist, or is a folder without images and videos.
    """
    found = Found()
    groups: list[tuple[Path, dict[str, Path]]] = []  # an input, and its files: absolute path → path to show
    excluded = [Path(os.path.abspath(path)) for path in excluded]
    own: set[str] = set()
    for given in inputs:
        top = Path(os.path.abspath(given))
        files = {str(top): given}
        if os.path.isdir(given):
            below = [path for path in excluded if path != top and path.is_relative_to(top)]
            walked = (place / name for place, names in walk(given, found.skip) for name in names)
            files = {os.path.abspath(file): file for file in walked}
            own |= {file for file in files if any(Path(file).is_relative_to(path) for path in below)}
            files = {file: shown for file, shown in files.items() if file not in own}
        elif not os.path.exists(given):
            raise SdaError(f"{given}: no such file or folder")
        groups.append((given, files))
    paths = {path: shown for _, files in reversed(groups) for path, shown in files.items()}
    found.inputs, found.excluded = set(paths), len(own)
    Image.init()  # not in several threads at once
    with ThreadPoolExecutor(8) as pool:
        contents = dict(zip(paths, pool.map(examine, paths.values()), strict=True))
    for given, files in groups:
        if os.path.isdir(given) and not found.skipped and all(contents[path].kind == "other" for path in files):
            raise SdaError(f"{given}: contains no images or videos{_and(list(files.values()))}")
    base = os.path.commonpath(
        [given if os.path.isdir(given) else os.path.dirname(given) for given in map(os.path.abspath, inputs)]
    )
    explicit = {os.path.abspath(given) for given in inputs}
    for path, shown in sorted(paths.items()):
        content = contents[path]
        if content.kind == "other" and path not in explicit:
            found.ignored.setdefault("neither images nor videos", []).append(shown)
        elif content.kind in ("other", "unreadable"):
            found.skipped.append(f"{shown}: {content.reason or 'neither an image nor a video'}")
        elif content.kind == "video" and importlib.util.find_spec("av") is None:
            found.skipped.append(f"{shown}: reading videos needs the package av: pip install av")
        else:
            found.files[shown], found.contents[shown] = Path(path).relative_to(base), content
    images = {found.files[file].as_posix(): file for file, content in found.contents.items() if content.kind == "image"}
    for key in find_maps([Item(key, file, None) for key, file in images.items()]):
        if os.path.abspath(file := images[key]) not in explicit:
            found.ignored.setdefault("label or depth maps of other images; to predict one, name the file", []).append(file)
            del found.files[file], found.contents[file]
    return found


def _and(files: list[Path]) -> str:
    """Return a phrase about files that are neither images nor videos."""
    return f"; it has {some(files)}" if files else ""


def some(files: list[Path], most: int = 10) -> str:
    """Return the names of some files, and how many more there are."""
    rest = len(files) - most
    more = f" and {rest} more file{'s' if rest > 1 else ''}" if rest > 0 else ""
    return ", ".join(file.name for file in files[:most]) + more


def plan(found: Found, out: Path, kinds: Iterable[str]) -> list[Input]:
    """Return a task for each image and video that `find` found; OUT/KIND/ mirrors the folder tree of the inputs.

    Files whose names differ only in the suffix keep it: a.jpg.png and a.png.png. Very long names are shortened.

    Raises:
        SdaError: an output would overwrite an input.
    """
    kinds = list(kinds)
    is_video = {file: content.kind == "video" for file, content in found.contents.items()}
    stems = {file: shorter(path.with_suffix("")) for file, path in found.files.items()}
    while True:
        uses = Counter((is_video[file], stem) for file, stem in stems.items())
        shared = [file for file, stem in stems.items() if uses[is_video[file], stem] > 1]
        if not shared:
            break
        stems |= {file: shorter(found.files[file]) for file in shared}
    tasks = []
    for file, stem in stems.items():
        outputs = {}
        for kind in kinds:
            name = f"{stem}{KINDS[kind]}"
            if is_video[file]:
                frames = shorter(found.files[file])
                if frames.suffix.lower() not in VIDEO_SUFFIXES:  # such as a.png, which the ids of an image may be called
                    frames = frames.with_name(f"{frames.name}.frames")
                name = f"{stem}.mp4" if kind in MOVING else str(frames)
            outputs[kind] = out / kind / name
            if os.path.abspath(outputs[kind]) in found.inputs:
                raise SdaError(f"{outputs[kind]} is an input and would be overwritten; choose another --out")
        tasks.append(Input(file, found.contents[file], outputs))
    return tasks


def shorter(path: Path) -> Path:
    """Return a path with a name of up to LONGEST bytes: the start of its name and a hash of the path, if it is longer.

    Names that end like shortened ones get the hash too, so that no two paths become equal.
    """
    name = os.fsencode(path.name)
    if len(name) <= LONGEST and not re.search(rb"~[0-9a-f]{12}$", name):
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return path.with_name(f"{name[: LONGEST - 13].decode(errors='ignore')}~{digest}")


def remaining(tasks: list[Input], resume: bool, overwrite: bool) -> list[Input]:
    """Return the remaining tasks: with `resume`, those with missing outputs, reduced to the missing ones; with `overwrite`, all.

    Raises:
        SdaError: an output exists, and neither `resume` nor `overwrite` is set.
    """
    existing = {file for task in tasks for file in task.outputs.values() if os.path.exists(file)}
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
        SdaError: the folders cannot be written to; or OUT/classes.png is another picture, without `overwrite`.
    """
    picture, file = legend(colors), out / "classes.png"
    try:
        for kind in kinds:
            (out / kind).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out / kind).close()
        if file.exists() and not overwrite and not _shows(file, picture):
            raise SdaError(f"{file} is not the legend of these classes; add --overwrite to replace it, or choose another --out")
        if overwrite or not file.exists():
            with written_whole(file) as content:
                picture.save(content, "PNG")
    except OSError as error:
        raise SdaError(f"--out {out}: cannot write to this folder ({error.strerror}); choose another one") from None


def _shows(file: Path, picture: Image.Image) -> bool:
    """Return whether an image file contains this picture."""
    try:
        return np.array_equal(np.asarray(read_image(file)), np.asarray(picture))
    except FileError:
        return False
