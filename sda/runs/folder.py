"""Write the files of a run folder that document a run and make it reproducible."""

import contextlib
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import Field

from sda import __version__, shelf
from sda.data.assemble import Data
from sda.data.splits.lists import list_hash, list_text
from sda.errors import SdaError
from sda.reading import read_object
from sda.recipe import Recipe
from sda.runs import copies
from sda.runs.status import FAILURE
from sda.scoring.summary import is_scored
from sda.system import tables
from sda.system.atomic import write_json, write_text
from sda.system.console import printable
from sda.system.owned import LOCK

_PACKAGES = ("torch", "torchvision", "kornia", "numpy", "pillow", "scipy", "h5py")


_IGNORED = {LOCK, "recipe.toml.partial"}  # left by a kill at the very start; such a folder still counts as empty
_BEGUN = ("recipe.toml", "environment.json", "weights.txt", "metrics.jsonl")
_WRITTEN = (*_BEGUN, FAILURE, "result.json", "iou.csv", "skipped.txt", "student.safetensors", "last.pt", "previous.pt", "best.pt")


def require_empty(folder: Path) -> None:
    """Raise SdaError if a folder, given with --out, exists and is not empty."""
    if not folder.exists():
        return
    if folder.is_dir() and _IGNORED.issuperset(os.listdir(folder)):
        return
    is_run = any((folder / name).exists() for name in ("recipe.toml", "last.pt"))
    resume = ", or resume this run with --resume auto" if is_run else ""
    raise SdaError(f"--out {folder}: exists and is not empty; choose another folder{resume}")


def first_free(base: Path, name: str) -> Path:
    """Create and return the first of base/NAME, base/NAME-2, … that does not exist."""
    for number in itertools.count(1):
        folder = base / (name if number == 1 else f"{name}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")


def begin(folder: Path, recipe: Recipe, data: Data, device: str) -> Path | None:
    """Write recipe.toml, datasets/, splits/ and environment.json into a folder that this process owns.

    If the folder contains a run that ended before its first checkpoint, its files are moved to another folder first.

    Returns:
        The new folder of that run, or None.
    """
    before = None
    if (folder / "recipe.toml").exists():
        before = first_free(folder.parent, f"{folder.name}-interrupted")
        for path in folder.iterdir():
            if path.name not in _IGNORED:
                path.rename(before / path.name)
    _write_recipe(folder, recipe)  # first, because it tells that the folder contains a run
    copies.write(folder, recipe)
    hashes = _write_splits(folder, data)
    write_json(
        folder / "environment.json",
        {
            "sda": __version__,
            "git": _git_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": device,
            "threads": torch.get_num_threads(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "command": sys.argv,
            "setting": recipe.setting,
            "splits": hashes,
            "notes": data.notes,
        },
    )
    return before


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    command = printable(f"sda train {shlex.quote(str(folder / 'recipe.toml'))}")  # a comment ends with its line
    write_text(folder / "recipe.toml", f"# {command}\n{toml_text(recipe.model_dump())}")


def _write_splits(folder: Path, data: Data) -> dict[str, dict]:
    """Write the lists of the streams, and return their sizes and hashes."""
    (folder / "splits").mkdir(exist_ok=True)
    hashes = {}
    for stream, items in data.lists.items():
        write_text(folder / "splits" / f"{stream}.txt", list_text(items))
        hashes[stream] = {"images": len(items), "sha256": list_hash(items)}
    return hashes


def repair(folder: Path, recipe: Recipe, data: Data) -> list[str]:
    """Write recipe.toml and splits/ of a run that resumes again if they are missing or damaged. Set aside what is damaged, and
    what cannot be replaced by the run's files: folders, pipes and devices.

    Returns:
        Notes about what was set aside.
    """
    notes = [
        set_aside(folder / name) for name in _WRITTEN if os.path.lexists(folder / name) and not os.path.isfile(folder / name)
    ]
    path = folder / "recipe.toml"
    try:
        shelf.parse(path)
    except SdaError:
        if os.path.lexists(path):
            notes.append(set_aside(path))
        _write_recipe(folder, recipe)
    if not (folder / "splits").is_dir():
        if os.path.lexists(folder / "splits"):
            notes.append(set_aside(folder / "splits"))
        _write_splits(folder, data)
    return notes


def set_aside(path: Path) -> str:
    """Rename a damaged file to NAME-damaged, so that a run can write it again, and return a note. A good checkpoint must not be
    blocked by the files beside it."""
    for number in itertools.count(1):
        kept = path.with_stem(f"{path.stem}-damaged{'' if number == 1 else f'-{number}'}")
        if not os.path.lexists(kept):
            path.rename(kept)
            return f"{path}: damaged, or not a regular file; it is kept as {kept.name}"
    raise AssertionError("unreachable")


def note_resumption(folder: Path, step: int, checkpoint: str, device: str, extends: int | None) -> None:
    """Add to environment.json the checkpoint that the run resumes from, and the current environment.

    A damaged file must not block a good checkpoint: it is kept as environment-damaged.json.

    Args:
        extends: the number of steps of the run that the checkpoint belongs to, if this run is longer.
    """
    path = folder / "environment.json"
    facts, fault = read_environment(folder)
    if fault:
        set_aside(path)
    now = {"step": step, "checkpoint": checkpoint, "device": device, "git": _git_revision(), "command": sys.argv}
    now |= {"extends": extends} if extends else {}
    write_json(path, {**facts, "resumed": [*facts.get("resumed", []), now]})
    (folder / FAILURE).unlink(missing_ok=True)


def fail(folder: Path, error: str, stepped: bool) -> None:
    """Note the error that ended a run; if it ended before its first step, remove what `begin` and the loop's start wrote."""
    with contextlib.suppress(OSError):
        if stepped:
            write_text(folder / FAILURE, f"{error}\n")
            return
        for name in _BEGUN:
            (folder / name).unlink(missing_ok=True)
        for name in ("splits", copies.FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)


def read_environment(folder: Path) -> tuple[dict, str]:
    """Return the contents of environment.json, and why it cannot be used; {} if it is missing or damaged."""
    path = folder / "environment.json"
    try:
        facts = read_object(path)
        shelf.check(_Environment, facts, f"{path}: damaged")
    except FileNotFoundError:
        return {}, ""
    except SdaError as error:
        return {}, str(error)
    return facts, ""


class _List(shelf.Strict, extra="allow"):
    images: int
    sha256: str


class _Resumption(shelf.Strict, extra="allow"):
    step: int
    extends: int | None = None


class _Environment(shelf.Strict, extra="allow"):
    """The fields of environment.json that are read again."""

    packages: dict[str, str | None] = Field({})
    command: list[str] = Field([])
    splits: dict[str, _List] = Field({})
    notes: list[str] = Field([])
    resumed: list[_Resumption] = Field([])


def finish(folder: Path, result: dict) -> None:
    """Write result.json, iou.csv if the run was scored, and skipped.txt if files were skipped."""
    if is_scored(result):
        rows = [[name, "" if value is None else f"{value:.4f}"] for name, value in result["iou"].items()]
        means = [["mean over classes present", f"{result['miou']:.4f}"], ["mean over all classes", f"{result['miou_all']:.4f}"]]
        table = tables.csv_text([["class", "iou_percent"], *rows, *means])
        write_text(folder / "iou.csv", table)
    if result["skipped"]:
        write_text(folder / "skipped.txt", "\n".join(result["skipped"]) + "\n")
    write_json(folder / "result.json", result)  # last, because it tells that the run is finished


def toml_text(values: dict) -> str:
    """Return values as TOML, without those that are None (None is their default)."""
    return "".join(f"{key} = {shelf.toml_value(value)}\n" for key, value in values.items() if value is not None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Return the git revision of the checkout that this package is in, plus "+changes" if it has uncommitted changes."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        revision, changes = [
            subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, timeout=10, check=True).stdout
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.strip() + ("+changes" if changes.strip() else "")
