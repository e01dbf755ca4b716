"""What is known of the runs in a folder, read from their files: without PyTorch, and without waiting for any of them."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sda import recipe
from sda.errors import SdaError

ALIVE = 600  # seconds since the last sign of life, within which a run without a result may still be going


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        name: relative to the folder that was looked into.
        state: finished, training (its log is young), interrupted, or damaged (its recipe cannot be read).
        step, steps: how far it got, of how many.
        miou: in percent, of the end, or of the last evaluation; None before the first.
        protocol: of the final score. seconds: of training. age: seconds since its last sign of life.
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


def find(folder: Path) -> list[Run]:
    """The runs below a folder, the one that was active last first.

    Raises:
        SdaError: no such folder.
    """
    if not folder.is_dir():
        raise SdaError(f"{folder}: no such folder")
    found = [_read(path.parent, str(path.parent.relative_to(folder))) for path in folder.rglob("recipe.toml")]
    return sorted(found, key=lambda run: run.age)


def _read(place: Path, name: str) -> Run:
    signs = [place / file for file in ("result.json", "metrics.jsonl", "recipe.toml")]
    age = time.time() - max(sign.stat().st_mtime for sign in signs if sign.exists())
    try:
        values = recipe.load(str(place / "recipe.toml"))
    except SdaError:
        return Run(name, "damaged", age=age)
    facts = {"setting": values.setting, "method": values.method, "seed": values.seed, "steps": values.steps, "age": age}
    result = _json((place / "result.json").read_text(encoding="utf-8")) if (place / "result.json").exists() else None
    if result:
        score = {"miou": result.get("miou"), "protocol": result.get("protocol", {}).get("name", "")}
        return Run(name, "finished", step=values.steps, seconds=result.get("seconds"), **score, **facts)
    step, miou = 0, None
    if (place / "metrics.jsonl").exists():
        for line in (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            record = _json(line) or {}
            step = max(step, record.get("step", 0))
            miou = record["val"]["miou"] if "val" in record else miou
    return Run(name, "training" if age < ALIVE else "interrupted", step=step, miou=miou, **facts)


def _json(text: str) -> dict | None:
    """None for what was cut off while it was written."""
    try:
        return json.loads(text)
    except ValueError:
        return None
