"""Which of a run's evaluated checkpoints to take, without looking at the validation labels, and what that costs."""

import json
from pathlib import Path

# Criterion → whether more is better. `held_out` reads the labels of a few images kept for it, the others none.
CRITERIA = {"entropy": False, "infomax": True, "agreement": True, "held_out": True}


def is_better(criterion: str, value: float, than: float) -> bool:
    """Whether a value of a criterion, or of miou, is better than another."""
    return value > than if CRITERIA.get(criterion, True) else value < than


def selection(log: Path) -> dict[str, dict]:
    """What each criterion would have chosen, from the evaluations in a metrics.jsonl.

    Returns:
        criterion → `step`, `miou` there, and `behind`, how far that is behind `oracle`, the step whose mIoU on the validation
        labels is the best. `last` is the last step. Those criteria that were not measured at every evaluation are left out.
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
