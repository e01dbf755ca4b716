"""Tables as text, and the means that stand in them."""

import statistics
from collections.abc import Iterable


def markdown(head: list[str], rows: list[list], numbers: bool = False) -> str:
    """A Markdown table; with `numbers`, all columns but the first are set flush right."""
    lines = [head, ["---", *["---:" if numbers else "---"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def mean_of_present(values: Iterable[float | None]) -> float | None:
    """The mean of those that are not None, as the IoU of absent classes is; None where all are."""
    present = [value for value in values if value is not None]
    return statistics.mean(present) if present else None
