"""The state of the runs in a folder, read from their files without PyTorch."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sda import recipe
from sda.errors import SdaError

ALIVE = 600  # a run without a result counts as training for this many seconds after its files last changed


@dataclass(frozen=True)
class RunStatus:
    """The state of one run.

    Attributes:
        name: its folder, relative to the folder that was searched.
        state: finished, training (files changed recently), interrupted, or damaged (its recipe cannot be read).
        step, steps: steps done, and steps in the recipe.
        miou: in percent, of the final evaluation or else the latest one; None before the first.
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
    protocol: str = ""
    seconds: float | None = None
    age: float = 0.0

    def to_dict(self) -> dict:
        return asdict(self)


def find(folder: Path) -> list[RunStatus]:
    """Return all runs below a folder, the most recently active first.

    Raises:
        SdaError: no such folder.
    """
    if not folder.is_dir():
        raise SdaError(f"{folder}: no such folder")
    found = [_read(path.parent, str(path.parent.relative_to(folder))) for path in folder.rglob("recipe.toml")]
    return sorted(found, key=lambda run: run.age)


def _read(folder: Path, name: str) -> RunStatus:
    files = [folder / file for file in ("result.json", "metrics.jsonl", "recipe.toml")]
    age = time.time() - max(file.stat().st_mtime for file in files if file.exists())
    try:
        values = recipe.load(str(folder / "recipe.toml"))
    except SdaError:
        return RunStatus(name, "damaged", age=age)
    status = RunStatus(name, "finished", values.setting, values.method, values.seed, values.steps, values.steps, age=age)
    result = _json((folder / "result.json").read_text(encoding="utf-8")) if (folder / "result.json").exists() else None
    if result:
        protocol = result.get("protocol", {}).get("name", "")
        return replace(status, miou=result.get("miou"), protocol=protocol, seconds=result.get("seconds"))
    step, miou = 0, None
    if (folder / "metrics.jsonl").exists():
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            record = _json(line) or {}
            step = max(step, record.get("step", 0))
            miou = record["val"]["miou"] if "val" in record else miou
    return replace(status, state="training" if age < ALIVE else "interrupted", step=step, miou=miou)


def _json(text: str) -> dict | None:
    """Return the parsed JSON, or None if it was cut off while it was written."""
    try:
        return json.loads(text)
    except ValueError:
        return None
