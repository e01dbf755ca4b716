"""Criteria that choose a checkpoint without the validation labels, and what each choice costs in mIoU. Without PyTorch."""

import json
from pathlib import Path
from typing import NamedTuple


class Criterion(NamedTuple):
    """A field of a score that can choose a checkpoint.

    Attributes:
        title: on tables. labels: the labels that it reads. needs: what a run must have to measure it.
        higher_is_better: else lower is better. unit: whether it is between 0 and 1.
    """

    title: str
    labels: str = "none"
    needs: str = ""
    higher_is_better: bool = True
    unit: bool = True


# A new criterion is returned by `sda.scoring.evaluate.evaluate` and listed here.
CRITERIA = {
    "entropy": Criterion("lowest entropy", higher_is_better=False),
    "infomax": Criterion("information maximisation"),
    "agreement": Criterion("teacher–student agreement", needs="unlabelled images: there is no teacher without them"),
    "held_out": Criterion("mIoU of held-out images", labels="held-out images", needs="hold_out = N", unit=False),
}
MIOU = Criterion("oracle: highest mIoU", labels="validation", unit=False)


def is_better(criterion: str, value: float, than: float) -> bool:
    """Return whether `value` of a criterion or of miou is better than the value `than`."""
    return value > than if CRITERIA.get(criterion, MIOU).higher_is_better else value < than


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
    for name, criterion in {"miou": MIOU, **CRITERIA}.items():
        if all(value.get(name) is not None for value in evaluations.values()):
            choose = max if criterion.higher_is_better else min
            best["oracle" if name == "miou" else name] = choose(evaluations, key=lambda step: evaluations[step][name])
    if "oracle" not in best:
        return {}
    top = evaluations[best["oracle"]]["miou"]
    return {
        name: {"step": step, "miou": evaluations[step]["miou"], "behind": top - evaluations[step]["miou"]}
        for name, step in best.items()
    }
