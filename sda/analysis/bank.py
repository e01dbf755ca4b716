"""Statistics of a trained memory bank: counts, ages, similarities."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sda.analysis.cache import unit
from sda.errors import SdaError
from sda.methods.parts import bank_file
from sda.methods.parts.bank import SOURCE
from sda.runs import checkpoint


@dataclass(frozen=True)
class Contents:
    """A bank of C classes with ψ entries each, of dimension D.

    Attributes:
        classes: name → colour. at: step of the checkpoint. features: (C, ψ, D). valid: (C, ψ) bool, False for empty entries.
        domain, step: (C, ψ) int64. confidence: (C, ψ). See `sda.methods.parts.bank.ClassBank`.
    """

    classes: dict[str, list[int]]
    at: int
    features: np.ndarray
    valid: np.ndarray
    domain: np.ndarray
    confidence: np.ndarray
    step: np.ndarray

    def rows(self) -> list[dict]:
        """Return a dict per class.

        `class`; `entries`, their number; `fill`, share of ψ; `source`, share of entries from the source; `confidence` and `age`
        (steps), means over the entries; `oldest`, the largest age; `within`, mean cosine of pairs; `nearest`, the class with
        the most similar entries; `between`, the mean cosine to that class. Undefined values are None.
        """
        similarity = self.similarity()
        names, rows = list(self.classes), []
        for c, name in enumerate(names):
            filled = self.valid[c]
            row: dict[str, Any] = {"class": name, "entries": int(filled.sum()), "fill": float(filled.mean())}
            row |= dict.fromkeys(("source", "confidence", "age", "oldest", "within", "nearest", "between"))
            if filled.any():
                ages = self.at - self.step[c][filled]
                row |= {
                    "source": float((self.domain[c][filled] == SOURCE).mean()),
                    "confidence": float(self.confidence[c][filled].mean()),
                    "age": float(ages.mean()),
                    "oldest": int(ages.max()),
                }
                row["within"] = None if np.isnan(similarity[c, c]) else float(similarity[c, c])
                others = np.where(np.arange(len(names)) == c, np.nan, similarity[c])
                if not np.isnan(others).all():
                    nearest = int(np.nanargmax(others))
                    row |= {"nearest": names[nearest], "between": float(others[nearest])}
            rows.append(row)
        return rows

    def similarity(self) -> np.ndarray:
        """Return the (C, C) mean cosine of pairs of entries; on the diagonal, pairs within a class; NaN if there are no pairs."""
        filled = self.valid.sum(axis=1)
        total = (self.unit() * self.valid[:, :, None]).sum(axis=1)
        similarity, pairs = total @ total.T, np.outer(filled, filled).astype(float)
        np.fill_diagonal(similarity, similarity.diagonal() - filled)  # exclude pairs of an entry with itself
        np.fill_diagonal(pairs, filled * (filled - 1))
        return np.divide(similarity, pairs, out=np.full_like(similarity, np.nan), where=pairs > 0)

    def unit(self) -> np.ndarray:
        """Return the (C, ψ, D) float64 entries at unit length; empty entries are 0."""
        return unit(self.features.astype(np.float64))

    def export(self, file: Path, run: str) -> None:
        """Write the bank of `run` to a file that another run can start from: see `sda.methods.parts.bank_file.write`."""
        parts = {name: getattr(self, name) for name in bank_file.PARTS}
        bank_file.write(file, parts, list(self.classes), self.at, run)


def of_run(folder: Path) -> Contents:
    """Return the bank in the last.pt of a run.

    Raises:
        SdaError: no such run, or a method without a bank.
    """
    path = folder / "last.pt"
    state = checkpoint.load(path)
    found = of_state(state, path)
    if found is None:
        raise SdaError(f"{path}: contains no memory bank; its method is {state.get('recipe', {}).get('method', 'unknown')}")
    return found


def of_state(state: dict, path: Path) -> Contents | None:
    """Return the bank in a checkpoint that was read from `path`, or None. Raise SdaError if its parts do not fit together."""
    method = state.get("method", {})
    parts = {name: method[f"bank.{name}"] for name in bank_file.PARTS if f"bank.{name}" in method}
    if len(parts) < len(bank_file.PARTS):
        return None
    try:
        bank_file.check(parts, len(state["classes"]))
    except ValueError as error:
        raise SdaError(f"{path}: its memory bank cannot be read: {error}") from None
    return Contents(state["classes"], state["step"], *(part.numpy() for part in parts.values()))
