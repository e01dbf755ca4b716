"""Going on with a run that was interrupted: which checkpoint, and whether it is of the same training."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from sda import shelf
from sda.data.assemble import Data
from sda.errors import SdaError
from sda.recipe import IDLE, Recipe, newer_fields
from sda.runs import checkpoint
from sda.system.atomic import written_whole

# What may change between an interruption and going on: it decides nothing about the network that comes out. Roots may, since
# the images of every stream are compared; and the file of the weights, which are in the checkpoint.
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
    """A checkpoint to go on from: its file and its state."""

    path: Path
    state: dict

    @property
    def step(self) -> int:
        return self.state["step"]

    def lies_in(self, folder: Path) -> bool:
        return self.path.parent.resolve() == folder.resolve()


def folder(wanted: str, out: str, recipe: str, title: str) -> Path:
    """The folder of the run to go on with: --out, else that of the checkpoint or of the recipe.toml named, else runs/TITLE."""
    if out:
        return Path(os.path.expanduser(out))
    if wanted != "auto":
        return Path(wanted).parent
    path = Path(recipe)
    return path.parent if path.name == "recipe.toml" else Path("runs") / title


def find(wanted: str, folder: Path) -> Resumed | None:
    """The checkpoint that `--resume` names: a file, or with "auto" the newest good one in the run folder, if there is any.

    Raises:
        SdaError: unreadable, or without the state of a training; with "auto", if that is so of all there are.
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
        raise SdaError(f"no checkpoint to go on from: {'; '.join(faults)}")
    return None


def _read(path: Path) -> Resumed:
    state = checkpoint.load(path)
    missing = NEEDED - state.keys()
    if missing:
        raise SdaError(f"{path}: not a checkpoint to go on from: it lacks {', '.join(sorted(missing))}")
    return Resumed(path, state)


def check(resumed: Resumed, recipe: Recipe, data: Data) -> None:
    """Refuse to go on with another training than the one that was interrupted.

    Raises:
        SdaError: another recipe (but for FREE), or other images in a stream.
    """
    if newer := newer_fields(resumed.state["recipe"]):
        raise SdaError(f"{resumed.path}: of an older version of sda, without {', '.join(newer)}: go on with that, or start anew")
    before = shelf.check(Recipe, resumed.state["recipe"], f"{resumed.path}: recipe").model_dump()
    for key, value in recipe.model_dump().items():
        if key not in FREE and before[key] != value:
            raise SdaError(
                f"{resumed.path}: was trained with {key} = {json.dumps(before[key])}, not {json.dumps(value)}: leave it "
                f"as it was, or start anew in another --out (only {', '.join(sorted(FREE))} may change)"
            )
    for stream in {*resumed.state["splits"], *data.lists}:
        then, now = resumed.state["splits"].get(stream, []), [item.key for item in data.lists.get(stream, [])]
        if then != now:
            other = next(iter(sorted({*then} ^ {*now})), "their order")
            raise SdaError(
                f"{resumed.path}: was trained on other {stream} images ({len(then)} then, {len(now)} now; {other}): "
                "restore them, or start anew in another --out"
            )


def take_log(resumed: Resumed, folder: Path) -> None:
    """Put into the metrics.jsonl of `folder` what that beside the checkpoint says of the steps before it.

    What was written after it will be written again, the same.
    """
    path, step, kept = resumed.path.with_name("metrics.jsonl"), resumed.step, []
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut off
        scored = "val" in record
        again = step == resumed.state["recipe"]["steps"] or not resumed.state["evaluated"]
        if record["step"] < step or (scored and record["step"] == step and not again):
            kept.append(line)
    with written_whole(folder / "metrics.jsonl") as file:
        file.write("".join(kept).encode())
