"""Criteria that choose a checkpoint without the validation labels, and what each choice costs in mIoU. Without PyTorch."""

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


def evaluations(log: list[dict]) -> dict[int, dict[str, float]]:
    """Return step → the numbers of the evaluation after this step, at least `miou`, from the records of a metrics.jsonl."""
    found = {}
    for record in log:
        values = record.get("val")
        numbers = {key: value for key, value in values.items() if is_number(value)} if isinstance(values, dict) else {}
        if "miou" in numbers:
            found[record["step"]] = numbers
    return found


def is_number(value: object) -> bool:
    """Return whether a value of a log, which may be damaged, is a number that fits into a float."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def selection(log: list[dict]) -> dict[str, dict]:
    """Return which step each criterion would have chosen, from the records of a metrics.jsonl.

    Returns:
        criterion → `step`, its `miou`, and `behind`, how far that is below the best mIoU (percentage points). In addition,
        `last` is the last step and `oracle` the step with the best mIoU on the validation labels. Criteria that were not
        measured in every evaluation are skipped.
    """
    evaluated = evaluations(log)
    if not evaluated:
        return {}
    best = {"last": max(evaluated)}
    for name, criterion in {"miou": MIOU, **CRITERIA}.items():
        if all(name in values for values in evaluated.values()):
            choose = max if criterion.higher_is_better else min
            best["oracle" if name == "miou" else name] = choose(evaluated, key=lambda step: evaluated[step][name])
    top = evaluated[best["oracle"]]["miou"]
    return {
        name: {"step": step, "miou": evaluated[step]["miou"], "behind": top - evaluated[step]["miou"]}
        for name, step in best.items()
    }
