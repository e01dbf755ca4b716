"""Resuming an interrupted run: find its checkpoint, and check that it belongs to the same training."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from sda import shelf
from sda.data.assemble import Data
from sda.errors import SdaError
from sda.recipe import IDLE, Recipe
from sda.runs import checkpoint
from sda.system.atomic import written_whole

# Fields that may change when a run resumes, because they have no effect on the trained network. Roots may change because the
# images of every stream are compared, and the file of the pretrained weights because the checkpoint has the weights.
PLACES = {"root", "source_root", "target_root", "weights"}
FREE = {*IDLE, "eval_every", *PLACES}

NEEDED = {
    "step",
    "recipe",
    "splits",
    "weights_format",
    "method",
    "optimizer",
    "scaler",
    "best",
    "seconds",
    "evaluated",
    "skipped",
    "faults",
}


@dataclass(frozen=True)
class Resumed:
    """A checkpoint to resume from: its file and its state."""

    path: Path
    state: dict

    @property
    def step(self) -> int:
        return self.state["step"]

    def is_in(self, folder: Path) -> bool:
        """Return whether the checkpoint is a file of the run folder `folder`."""
        return self.path.parent.resolve() == folder.resolve()


def folder(wanted: str, out: str, recipe: str, title: str) -> Path:
    """Return the folder of the run to resume: `out` (--out), else the folder of the given checkpoint or of the given
    recipe.toml, else runs/TITLE."""
    if out:
        return Path(os.path.expanduser(out))
    if wanted != "auto":
        return Path(wanted).parent
    path = Path(recipe)
    return path.parent if path.name == "recipe.toml" else Path("runs") / title


def find(wanted: str, folder: Path) -> Resumed | None:
    """Read the checkpoint that `--resume` asks for.

    Args:
        wanted: a file, or "auto" for the newest usable checkpoint in the run folder.

    Returns:
        None if `wanted` is "auto" and the folder has no checkpoint.

    Raises:
        SdaError: the file is unreadable or has no training state; with "auto", only if this holds for every checkpoint.
    """
    if wanted != "auto":
        return _read(Path(wanted))
    faults = []
    for name in ("last.pt", "previous.pt"):
        if (folder / name).exists():
            try:
                return _read(folder / name)
            except SdaError as fault:
                faults.append(str(fault))
    if faults:
        raise SdaError(f"no usable checkpoint to resume from: {'; '.join(faults)}; start again in another --out")
    return None


def _read(path: Path) -> Resumed:
    state = checkpoint.load(path)
    missing = NEEDED - state.keys()
    if missing:
        raise SdaError(f"{path}: cannot resume from this checkpoint: missing {', '.join(sorted(missing))}")
    return Resumed(path, state)


def check(resumed: Resumed, recipe: Recipe, data: Data) -> None:
    """Check that a checkpoint belongs to a run with this recipe and data.

    Raises:
        SdaError: the recipe differs in a field that is not in FREE, or a stream has other images.
    """
    before = resumed.state["recipe"]
    shelf.check(Recipe, before, f"{resumed.path}: recipe")
    for key, value in recipe.model_dump().items():
        if key not in FREE and before.get(key) != value:
            raise SdaError(
                f"{resumed.path}: was trained with {key} = {json.dumps(before.get(key))}, not {json.dumps(value)}; restore the "
                f"value, or start again in another --out (only {', '.join(sorted(FREE))} may change)"
            )
    for stream in {*resumed.state["splits"], *data.lists}:
        then, now = resumed.state["splits"].get(stream, []), [item.key for item in data.lists.get(stream, [])]
        if then != now:
            other = next(iter(sorted({*then} ^ {*now})), "their order")
            raise SdaError(
                f"{resumed.path}: was trained on different {stream} images ({len(then)} then, {len(now)} now; {other}); "
                "restore them, or start again in another --out"
            )


def take_log(resumed: Resumed, folder: Path) -> None:
    """Copy the log next to the checkpoint to the metrics.jsonl of `folder`, up to the checkpoint's step.

    Later lines are dropped, because the resumed run writes them again.
    """
    path, step, kept = resumed.path.with_name("metrics.jsonl"), resumed.step, []
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line, if the process was killed while writing it
        scored = "val" in record
        again = step == resumed.state["recipe"]["steps"] or not resumed.state["evaluated"]
        if record["step"] < step or (scored and record["step"] == step and not again):
            kept.append(line)
    with written_whole(folder / "metrics.jsonl") as file:
        file.write("".join(kept).encode())
