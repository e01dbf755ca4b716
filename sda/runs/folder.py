"""Write the files of a run folder that document a run and make it reproducible."""

import csv
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sda import __version__
from sda.data.assemble import Data
from sda.data.splits.lists import list_hash, list_text
from sda.errors import SdaError
from sda.recipe import Recipe
from sda.system.atomic import write_json

_PACKAGES = ("torch", "torchvision", "kornia", "numpy", "pillow", "scipy", "h5py")


def require_empty(out: str) -> Path:
    """Return the folder given with --out, which must be empty or not exist.

    Raises:
        SdaError: the folder is not empty.
    """
    folder = Path(os.path.expanduser(out))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        resume = ", or continue this run with --resume auto" if (folder / "last.pt").exists() else ""
        raise SdaError(f"--out {folder}: exists and is not empty; choose another folder{resume}")
    return folder


def first_free(base: Path, name: str) -> Path:
    """Return the first of base/NAME, base/NAME-2, … that does not exist."""
    number = 1
    while (folder := base / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return folder


def begin(folder: Path, recipe: Recipe, data: Data, device: str) -> Path | None:
    """Write recipe.toml, splits/ and environment.json.

    If the folder contains an interrupted run without a checkpoint, it is renamed first.

    Returns:
        The new folder of that interrupted run, or None.

    Raises:
        SdaError: the folder cannot be created.
    """
    before = None
    if (folder / "recipe.toml").exists():
        before = folder.rename(first_free(folder.parent, f"{folder.name}-interrupted"))
    try:
        (folder / "splits").mkdir(parents=True)
    except OSError as error:
        raise SdaError(f"--out {folder}: cannot create the folder: {error}") from None
    (folder / "recipe.toml").write_text(
        f"# sda train {shlex.quote(str(folder / 'recipe.toml'))}\n" + toml_text(recipe.model_dump()), encoding="utf-8"
    )
    hashes = {}
    for stream, items in data.lists.items():
        (folder / "splits" / f"{stream}.txt").write_text(list_text(items), encoding="utf-8", errors="surrogateescape")
        hashes[stream] = {"images": len(items), "sha256": list_hash(items)}
    write_json(
        folder / "environment.json",
        {
            "sda": __version__,
            "git": _git_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": device,
            "packages": {name: _version(name) for name in _PACKAGES},
            "command": sys.argv,
            "setting": recipe.setting,
            "splits": hashes,
            "notes": data.notes,
        },
    )
    return before


def note_resumption(folder: Path, step: int, checkpoint: str, device: str) -> None:
    """Add to environment.json the checkpoint that the run resumes from, and the current environment."""
    path = folder / "environment.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    now = {"step": step, "checkpoint": checkpoint, "device": device, "git": _git_revision(), "command": sys.argv}
    write_json(path, {**facts, "resumed": [*facts.get("resumed", []), now]})


def finish(folder: Path, result: dict) -> None:
    """Write result.json, iou.csv and, if files were skipped, skipped.txt."""
    write_json(folder / "result.json", result)
    with (folder / "iou.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "iou_percent"])
        writer.writerows([name, "" if value is None else f"{value:.4f}"] for name, value in result["iou"].items())
        writer.writerow(["mean over classes present", f"{result['miou']:.4f}"])
        writer.writerow(["mean over all classes", f"{result['miou_all']:.4f}"])
    if result["skipped"]:
        (folder / "skipped.txt").write_text("\n".join(result["skipped"]) + "\n", encoding="utf-8", errors="surrogateescape")


def toml_text(values: dict) -> str:
    """Return flat values as TOML, without those that are None (None is their default)."""
    return "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items() if value is not None)


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
