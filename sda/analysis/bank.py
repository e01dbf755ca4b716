"""What is in a trained bank: counts, ages, similarities."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sda.analysis.cache import unit
from sda.errors import SdaError
from sda.methods.parts import bank_file
from sda.methods.parts.bank import SOURCE
from sda.runs import checkpoint


@dataclass(frozen=True)
class Contents:
    """A bank of C classes with ψ entries each, of D numbers.

    Attributes:
        classes: name → colour. at: the step of its checkpoint. features: (C, ψ, D). valid: (C, ψ) bool.
        domain, step: (C, ψ) int64; confidence: (C, ψ): see `sda.methods.parts.bank.ClassBank`.
    """

    classes: dict[str, list[int]]
    at: int
    features: np.ndarray
    valid: np.ndarray
    domain: np.ndarray
    confidence: np.ndarray
    step: np.ndarray

    def rows(self) -> list[dict]:
        """Per class: `class`, `entries`, `fill` (share of ψ); of what is there, means: `source` (share), `confidence`, `age` and
        `oldest` (steps), `within` (cosine of pairs); `nearest`, the class whose entries are most alike, and `between`, their
        mean cosine. None where there is nothing to say."""
        alike = self.similarity()
        names, rows = list(self.classes), []
        for c, name in enumerate(names):
            there = self.valid[c]
            row = {"class": name, "entries": int(there.sum()), "fill": float(there.mean())}
            row |= dict.fromkeys(("source", "confidence", "age", "oldest", "within", "nearest", "between"))
            if there.any():
                ages = self.at - self.step[c][there]
                row |= {
                    "source": float((self.domain[c][there] == SOURCE).mean()),
                    "confidence": float(self.confidence[c][there].mean()),
                    "age": float(ages.mean()),
                    "oldest": int(ages.max()),
                }
                row["within"] = None if np.isnan(alike[c, c]) else float(alike[c, c])
                others = np.where(np.arange(len(names)) == c, np.nan, alike[c])
                if not np.isnan(others).all():
                    nearest = int(np.nanargmax(others))
                    row |= {"nearest": names[nearest], "between": float(others[nearest])}
            rows.append(row)
        return rows

    def similarity(self) -> np.ndarray:
        """(C, C) mean cosine of pairs of entries, on the diagonal of pairs within the class; NaN where there is none."""
        filled = self.valid.sum(axis=1)
        total = (self.unit() * self.valid[:, :, None]).sum(axis=1)
        similarity, pairs = total @ total.T, np.outer(filled, filled).astype(float)
        np.fill_diagonal(similarity, similarity.diagonal() - filled)  # less the pairs of an entry with itself
        np.fill_diagonal(pairs, filled * (filled - 1))
        return np.divide(similarity, pairs, out=np.full_like(similarity, np.nan), where=pairs > 0)

    def unit(self) -> np.ndarray:
        """(C, ψ, D) float64 entries of length 1; 0 where there is none."""
        return unit(self.features.astype(np.float64))

    def export(self, file: Path, run: str) -> None:
        """Write the bank of `run` to a file that another training can start from: see `sda.methods.parts.bank_file.write`."""
        parts = {name: getattr(self, name) for name in bank_file.PARTS}
        bank_file.write(file, parts, list(self.classes), self.at, run)


def of_run(folder: Path) -> Contents:
    """Return the bank in the last.pt of a run.

    Raises:
        SdaError: no such run, or a checkpoint without a bank.
    """
    path = folder / "last.pt"
    state = checkpoint.load(path)
    found = of_state(state)
    if found is None:
        raise SdaError(f"{path}: the checkpoint has no bank (method {state.get('recipe', {}).get('method', 'unknown')})")
    return found


def of_state(state: dict) -> Contents | None:
    """The bank in a checkpoint; None where there is none."""
    parts = [state.get("method", {}).get(f"bank.{name}") for name in bank_file.PARTS]
    if any(part is None for part in parts):
        return None
    return Contents(state["classes"], state["step"], *(part.cpu().numpy() for part in parts))
