"""Resuming an interrupted run: find its checkpoint, and check that it belongs to the same training."""

import hashlib
import json
import os
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sda import shelf
from sda.data import descriptor as descriptors
from sda.data.assemble import Data
from sda.data.splits.contents import fingerprint
from sda.errors import SdaError
from sda.reading import read_log
from sda.recipe import IDLE, Recipe
from sda.runs import checkpoint
from sda.runs.folder import set_aside
from sda.runs.status import result_of
from sda.system.atomic import written_whole
from sda.system.console import Count
from sda.system.devices import is_fast_in_bfloat16
from sda.training.optimizer import rate_factor

# Fields that may change when a run resumes, because they have no effect on the trained network. Roots may change because the
# images of every stream are compared, and the file of the pretrained weights because the checkpoint has the weights.
PLACES = {"root", "source_root", "target_root", "weights"}
FREE = {*IDLE, "eval_every", *PLACES}
# Fields with paths of files and folders that may move: their content, or the images that they name, are compared.
MOVABLE = {"source", "target", "classes", "split", "val_list", "unlabelled"}

RESUMABLE = ("last.pt", "previous.pt")  # of a run, the newest first

NEEDED = {
    "step",
    "recipe",
    "splits",
    "weights_format",
    "preprocessing",
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
    """A checkpoint to resume from.

    Attributes:
        path, state: its file and its content. instead_of: why a newer checkpoint cannot be used; "" if this is the newest.
    """

    path: Path
    state: dict
    instead_of: str = ""

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


def finished(folder: Path, recipe: Recipe, free: Set[str] = FREE) -> dict | None:
    """Return the result in a run folder; None if its run is not finished, or its result.json or recipe.toml is damaged.

    Args:
        free: fields that may differ from the recipe of the finished run.

    Raises:
        SdaError: the finished run has another recipe.
    """
    result = result_of(folder)
    if result is None or not {"seconds", "steps"} <= result.keys():
        return None
    file = folder / "recipe.toml"
    try:
        before = shelf.parse(file)
    except SdaError:  # missing or damaged: the run is finished again, from its checkpoint, which has the recipe
        return None
    for key, then, now in _differences(shelf.check(Recipe, before, str(file)), recipe, free):
        longer = free is FREE and key == "steps" and result["steps"] < recipe.steps
        raise SdaError(
            f"{folder}: this run is finished, with {key} = {json.dumps(then)}, not {json.dumps(now)}; choose another --out"
            + (f", or train on in a new folder: --resume {folder / 'last.pt'} --steps {now} --out DIR" if longer else "")
        )
    return result


def _differences(before: Recipe, recipe: Recipe, free: Set[str]) -> Iterator[tuple[str, object, object]]:
    """Yield (field, earlier value, value) for the fields that differ, except those in `free` and a precision that is open. If
    `free` is FREE, files and folders may have moved."""
    for key, now in recipe.model_dump(exclude=set(free)).items():
        then = getattr(before, key)
        if free is FREE and key in MOVABLE and _names(then) == _names(now):
            continue
        if then != now and before.in_steps(key) != recipe.in_steps(key) and (key, now) != ("precision", "auto"):
            yield key, then, now


def _names(value: str | list[str]) -> list[str]:
    """Return the names at the end of absolute paths, and other values as they are."""
    return [os.path.basename(each) if os.path.isabs(each) else each for each in ([value] if isinstance(value, str) else value)]


def settle(recipe: Recipe, resumed: Resumed | None, device: torch.device) -> Recipe:
    """Return a recipe whose precision is not "auto": that of the resumed run, or bfloat16 where the device is fast at it."""
    if recipe.precision != "auto":
        return recipe
    before = resumed.state["recipe"].get("precision", "auto") if resumed else "auto"
    chosen = before if before != "auto" else ("bfloat16" if is_fast_in_bfloat16(device) else "float32")
    return recipe.model_copy(update={"precision": chosen})


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
        try:
            return _read(Path(wanted))
        except SdaError as fault:
            raise SdaError(f"{fault}{checkpoint.others(Path(wanted), RESUMABLE)}") from None
    faults: list[str] = []
    for name in RESUMABLE:
        if (folder / name).exists():
            try:
                return replace(_read(folder / name), instead_of="; ".join(faults))
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
    steps = state["recipe"].get("steps")
    if not isinstance(steps, int) or state["step"] > steps:
        raise SdaError(f"{path}: cannot resume from this checkpoint: step {state['step']} of a training of {steps!r:.20} steps")
    return Resumed(path, state)


def check(resumed: Resumed, recipe: Recipe, data: Data, inputs: dict[str, str], machine: dict[str, str], out: Path) -> list[str]:
    """Check that a checkpoint belongs to a run with this recipe and data, or to a shorter run that continues in another folder.

    Args:
        inputs: see `inputs_of`. machine: see `machine_of`. out: the folder of the run that resumes.

    Returns:
        Notes on what could not be checked, and on what makes the run differ from one that was never interrupted.

    Raises:
        SdaError: the recipe differs in a field that is not in FREE, or a stream has other images or labels.
    """
    before, notes = shelf.check(Recipe, resumed.state["recipe"], f"{resumed.path}: recipe"), []
    for key, then, now in _differences(before, recipe, FREE):
        longer = key == "steps" and before.steps < recipe.steps
        if longer and not resumed.is_in(out):
            notes.append(_extension(resumed, before, recipe))
            continue
        advice = f"start again in another --out (only {', '.join(sorted(FREE))} may change)"
        advice = f"train on in another folder, with --resume {resumed.path} --out DIR" if longer else advice
        raise SdaError(
            f"{resumed.path}: was trained with {key} = {json.dumps(then)}, not {json.dumps(now)}; restore the value, or {advice}"
        )
    for stream in {*resumed.state["splits"], *data.lists}:
        then, now = resumed.state["splits"].get(stream, []), [item.key for item in data.lists.get(stream, [])]
        if then != now:
            other = next(iter(sorted({*then} ^ {*now})), "their order")
            raise SdaError(
                f"{resumed.path}: was trained on different {stream} images ({len(then)} then, {len(now)} now; {other}); "
                "restore them, or start again in another --out"
            )
    notes += _check_inputs(resumed, inputs)
    if resumed.state["classes"] != data.table.colors:
        raise SdaError(f"{resumed.path}: was trained on other classes; restore their table, or start again in another --out")
    return [*notes, *_compare_machine(resumed, machine)]


def _extension(resumed: Resumed, before: Recipe, recipe: Recipe) -> str:
    """Say how a run that continues a shorter one differs from one that was as long from the start."""
    then, now = (each.learning_rate * rate_factor(resumed.step, each) for each in (before, recipe))
    return (
        f"extends a run of {before.steps} steps to {recipe.steps}: at step {resumed.step} the learning rate changes from "
        f"{then:.3g} to {now:.3g}, so the result is not that of {recipe.steps} steps from the start"
    )


def inputs_of(recipe: Recipe, data: Data, progress: Count) -> dict[str, str]:
    """Return fingerprints of everything outside the recipe that a run depends on: stream → of its images and labels, and dataset
    → of its descriptor and classes. Unlabelled images count without their labels."""
    found, checked, total = {}, 0, sum(map(len, data.lists.values()))

    def report(done: int, _: int) -> None:
        progress("checking files", checked + done, total)

    for stream, items in data.lists.items():
        found[f"{stream} images"] = fingerprint(items, stream != "unlabelled", report)
        checked += len(items)
    for name in (*(source.dataset for source in recipe.sources), recipe.target):
        meaning = descriptors.load(name).meaning()
        found[f"descriptor of {Path(name).stem}"] = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
    return found


def machine_of(device: torch.device) -> dict[str, str]:
    """Return what decides about the last bits of all results: the device, the number of threads, the version of PyTorch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": str(torch.get_num_threads()), "PyTorch": str(torch.__version__)}


def _check_inputs(resumed: Resumed, inputs: dict[str, str]) -> list[str]:
    before, notes = resumed.state.get("inputs"), []
    if before is None:
        return ["this checkpoint has no fingerprints of its images; only their names were compared"]
    for name, now in inputs.items():
        then = before.get(name, "")
        if then.partition(":")[0] != now.partition(":")[0] and ":" in then:
            notes.append(f"{name}: one time from files, one time from a pack: only their names were compared")
        elif then != now:
            raise SdaError(
                f"{resumed.path}: the {name} have changed since it was written, although their names have not; restore them, or "
                "start again in another --out"
                if ":" in now
                else f"{resumed.path}: the {name} has changed since it was written; restore it, or start again in another --out"
            )
    return notes


def _compare_machine(resumed: Resumed, machine: dict[str, str]) -> list[str]:
    before = resumed.state.get("machine", {})
    changed = [f"{name} {before[name]}, now {now}" for name, now in machine.items() if before.get(name, now) != now]
    if not changed:
        return []
    return [f"trained so far with {'; '.join(changed)}: the result may differ slightly from that of a run without interruption"]


def take_log(resumed: Resumed, folder: Path, steps: int) -> str:
    """Copy the log next to the checkpoint to the metrics.jsonl of `folder`, up to the checkpoint's step.

    Later lines are dropped, because the resumed run writes them again, and so are damaged lines. A log that cannot be read is
    set aside if it is in `folder`.

    Args:
        steps: the length of the run that resumes.

    Returns:
        A note for the user if the log cannot be read, else "".
    """
    path, step, note = resumed.path.with_name("metrics.jsonl"), resumed.step, ""
    again = step == steps or not resumed.state["evaluated"]
    try:
        log = read_log(path)
    except SdaError as fault:
        log, note = [], f"{fault}; the log starts at step {step}"
        if resumed.is_in(folder):
            set_aside(path)
    records = [record for record in log if record["step"] < step or ("val" in record and record["step"] == step and not again)]
    with written_whole(folder / "metrics.jsonl") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records).encode())
    return note
