"""Markdown tables, and means that ignore missing values."""

import statistics
from collections.abc import Iterable, Sequence


def markdown(head: list[str], rows: Iterable[Sequence[object]], numbers: bool = False) -> str:
    """Return a Markdown table; with `numbers`, all columns but the first are right-aligned."""
    lines: list[Sequence[object]] = [head, ["---", *["---:" if numbers else "---"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def mean_of_present(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None (the IoU of an absent class is None), or None if there are none."""
    present = [value for value in values if value is not None]
    return statistics.mean(present) if present else None
