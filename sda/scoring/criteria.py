"""Criteria that choose a checkpoint without the validation labels, and what each choice costs in mIoU."""

import json
from pathlib import Path

# Criterion → whether higher is better. `held_out` reads the labels of a few held-out images, the others read no labels.
CRITERIA = {"entropy": False, "infomax": True, "agreement": True, "held_out": True}


def is_better(criterion: str, value: float, than: float) -> bool:
    """Return whether `value` of a criterion or of miou is better than the value `than`."""
    return value > than if CRITERIA.get(criterion, True) else value < than


def selection(log: Path) -> dict[str, dict]:
    """Return which step each criterion would have chosen, from the evaluations in a metrics.jsonl.

    Returns:
        criterion → `step`, its `miou`, and `behind`, how far that is below the best mIoU (percentage points). In addition,
        `last` is the last step and `oracle` the step with the best mIoU on the validation labels. Criteria that were not
        measured in every evaluation are skipped.
    """
    evaluations = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "val" in record:
            evaluations[record["step"]] = record["val"]
    if not evaluations:
        return {}
    best = {"last": max(evaluations)}
    for criterion in ("miou", *CRITERIA):
        if all(value.get(criterion) is not None for value in evaluations.values()):
            sign = 1 if CRITERIA.get(criterion, True) else -1
            step = max(evaluations, key=lambda k: sign * evaluations[k][criterion])
            best["oracle" if criterion == "miou" else criterion] = step
    if "oracle" not in best:
        return {}
    top = evaluations[best["oracle"]]["miou"]
    return {
        name: {"step": step, "miou": evaluations[step]["miou"], "behind": top - evaluations[step]["miou"]}
        for name, step in best.items()
    }
