"""Evaluate trained runs, and save the scores as RUN/evaluations/*.json."""

import os
import re
import time
from pathlib import Path

from sda.protocol import Protocol
from sda.runs.trained import Run
from sda.scoring.evaluate import evaluate
from sda.system.atomic import write_json
from sda.system.progress import Bars


def evaluate_run(run: Run, protocol: Protocol, dataset: str, root: str, split: str, skip: bool, bars: Bars) -> dict:
    """Evaluate a run on one dataset, with the run's classes.

    Args:
        root: folder of the dataset; "" for the one used in training, or the default of the descriptor.
        skip: skip unusable files instead of raising an error.

    Returns:
        `run`, `dataset`, `split`, `checkpoint`, `network`, `step`, `seconds`, and the fields of `sda.scoring.evaluate.evaluate`.
    """
    data = run.labelled_images(protocol, dataset, root, split, bars.count)
    for note in data.notes:
        bars.say(note)
    assert data.val is not None
    began = time.perf_counter()
    score = evaluate(
        run.network,
        data.val,
        run.table.names,
        run.device,
        protocol,
        workers=run.recipe.workers,
        skip=skip,
        progress=lambda done, total: bars.count(f"evaluating on {dataset}", done, total),
    )
    facts = {"run": str(run.folder), "dataset": dataset, "split": split, "checkpoint": run.which, "network": run.network_name}
    return {**facts, "step": run.step, "seconds": round(time.perf_counter() - began, 1), **score}


def cost(protocol: Protocol, score: dict) -> str:
    """Return a phrase with the cost of a score: passes per image and time."""
    seconds, images = score["seconds"], score["images"]
    return f"{protocol.name}: {protocol.cost}; {seconds:.1f} s for {images} images, {1000 * seconds / images:.0f} ms each"


def keep(run: Run, score: dict) -> str:
    """Save a score in the run folder; it replaces an earlier score of the same dataset, split, protocol and network.

    Returns:
        The reason if the file cannot be written, else "".
    """
    dataset = Path(score["dataset"]).stem
    others = [word for word in (score["network"], score["checkpoint"]) if word not in ("student", "last")]
    name = re.sub(r"[^\w=.,+-]+", "_", "-".join([dataset, score["split"], score["protocol"]["name"], *others]))
    file = run.folder / "evaluations" / f"{name}.json"
    try:
        file.parent.mkdir(exist_ok=True)
        write_json(file, score)
    except OSError as error:
        return f"{os.path.relpath(file)}: cannot save the scores ({error.strerror})"
    return ""
