"""The state of the runs in a folder, read from their files without PyTorch."""

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sda import recipe
from sda.errors import SdaError
from sda.reading import read_log
from sda.scoring.criteria import evaluations
from sda.scoring.summary import classes_scored, is_scored, read_result
from sda.system.owned import owner

FAILURE = "failure.txt"  # in a run folder: the error that ended the run


@dataclass(frozen=True)
class RunStatus:
    """The state of one run.

    Attributes:
        name: its folder, relative to the folder that was searched.
        state: finished, training (a process owns the folder), failed (an error ended it), interrupted, or damaged (its recipe
            cannot be read).
        step, steps: steps done, and steps in the recipe.
        miou: in percent, of the final evaluation or else the latest one; None before the first.
        classes: how many classes the final score is about, if not all: "1 of 7 classes".
        protocol: name of the protocol of the final score. seconds: time spent on training.
        age: seconds since its files last changed.
    """

    name: str
    state: str
    setting: str = ""
    method: str = ""
    seed: int | None = None
    step: int = 0
    steps: int = 0
    miou: float | None = None
    classes: str = ""
    protocol: str = ""
    seconds: float | None = None
    age: float = 0.0

    def to_dict(self) -> dict:
        return asdict(self)


def find(folder: Path) -> list[RunStatus]:
    """Return all runs below a folder, the most recently active first. Folders that cannot be read are skipped.

    Raises:
        SdaError: no such folder.
    """
    if not os.path.isdir(folder):
        raise SdaError(f"{folder}: no such folder")
    places = [Path(place) for place, below, names in os.walk(folder) if "recipe.toml" in [*below, *names]]
    found = [_read(place, str(place.relative_to(folder))) for place in places]
    return sorted(found, key=lambda run: run.age)


def result_of(folder: Path) -> dict | None:
    """Return the result of a finished run; None if there is none, or the file is damaged: then the run can be finished again."""
    try:
        return read_result(folder / "result.json")
    except (FileNotFoundError, SdaError):
        return None


def _read(folder: Path, name: str) -> RunStatus:
    age = time.time() - max(_changed(folder / file) for file in ("result.json", "metrics.jsonl", "recipe.toml"))
    try:
        values = recipe.load(str(folder / "recipe.toml"))
    except SdaError:
        return RunStatus(name, "damaged", age=age)
    status = RunStatus(name, "finished", values.setting, values.method, values.seed, values.steps, values.steps, age=age)
    if result := result_of(folder):
        return replace(
            status,
            miou=result.get("miou"),
            classes=classes_scored(result) if is_scored(result) else "",
            protocol=result["protocol"]["name"],
            seconds=result.get("seconds"),
        )
    try:
        log = read_log(folder / "metrics.jsonl")
    except SdaError:
        log = []
    step = max((record["step"] for record in log), default=0)
    mious = [values["miou"] for values in evaluations(log).values()]
    failed = os.path.lexists(folder / FAILURE)
    state = "training" if owner(folder) else "failed" if failed else "interrupted"
    return replace(status, state=state, step=step, miou=mious[-1] if mious else None)


def _changed(file: Path) -> float:
    """Return when a file was last changed, in seconds; 0 if that is unknown."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
