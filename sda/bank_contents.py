"""What is in a trained bank: counts, ages, similarities; and banks as files."""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch

from sda import checkpoint
from sda.atomic import written_whole
from sda.bank import ClassBank
from sda.errors import SdaError
from sda.features import unit
from sda.methods.views import SOURCE

KIND = "sda bank"
FORMAT = 1
PARTS = ("features", "valid", "domain", "confidence", "step")


@dataclass(frozen=True)
class Contents:
    """A bank of C classes with ψ entries each, of D numbers.

    Attributes:
        classes: name → colour. at: the step of its checkpoint. features: (C, ψ, D). valid: (C, ψ) bool.
        domain, step: (C, ψ) int64; confidence: (C, ψ): see `sda.bank.ClassBank`.
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


def of_run(folder: Path) -> Contents:
    """The bank in the last.pt of a run.

    Raises:
        SdaError: no such run, a method without a bank, or a run of an older version.
    """
    path = folder / "last.pt"
    state = checkpoint.load(path)
    found = of_state(state)
    if found is None:
        method = state.get("recipe", {}).get("method", "")
        reason = (
            "it is of an older version of sda, whose banks had less in them" if method == "class_bank" else f"method {method}"
        )
        raise SdaError(f"{path}: there is no bank in it: {reason}")
    return found


def of_state(state: dict) -> Contents | None:
    """The bank in a checkpoint; None where there is none."""
    parts = [state.get("method", {}).get(f"bank.{name}") for name in PARTS]
    if any(part is None for part in parts):
        return None
    return Contents(state["classes"], state["step"], *(part.cpu().numpy() for part in parts))


# Banks as files


def export(contents: Contents, file: Path, run: str) -> None:
    """Write a bank as HDF5: one dataset per part. SdaError when there is such a file."""
    if file.exists():
        raise SdaError(f"{file}: exists; nothing is overwritten: name another file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as place, h5py.File(place, "w") as out:
            out.attrs["kind"], out.attrs["format"], out.attrs["run"] = KIND, FORMAT, run
            out.attrs["classes"], out.attrs["step"] = list(contents.classes), contents.at
            for name in PARTS:
                out.create_dataset(name, data=getattr(contents, name), compression="gzip", fletcher32=True)
            out["features"].attrs["about"] = "(C, psi, D) entries, newest first, as the teacher's head g gave them"
            out["valid"].attrs["about"] = "(C, psi) which of them are filled"
            out["domain"].attrs["about"] = "(C, psi) 0: source, 1: target"
            out["confidence"].attrs["about"] = "(C, psi) the teacher's, when the entry came"
            out["step"].attrs["about"] = "(C, psi) the training step at which the entry came"
    except (OSError, RuntimeError) as error:
        raise SdaError(f"{file}: cannot be written ({str(error).splitlines()[0]})") from None


def read(file: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """The PARTS of a bank in a file, their classes in the order of `names`.

    Raises:
        SdaError: not a bank of sda, or of other classes.
    """
    try:
        with h5py.File(file, "r", locking=False) as there:
            if there.attrs.get("kind") != KIND or there.attrs.get("format") != FORMAT:
                raise SdaError(f"{file}: not a bank of this version of sda; make one with sda bank RUN --export FILE")
            parts = {name: torch.from_numpy(there[name][:]) for name in PARTS}
            classes = list(there.attrs["classes"])
    except (OSError, KeyError, RuntimeError) as error:
        reason = "no such file" if not file.exists() else f"cannot be read ({str(error).splitlines()[0]})"
        raise SdaError(f"{file}: {reason}; make a bank with sda bank RUN --export FILE") from None
    if sorted(classes) != sorted(names):
        other = sorted({*classes} ^ {*names})
        raise SdaError(f"{file}: a bank of other classes: {', '.join(other[:5])}{', …' if len(other) > 5 else ''}")
    order = [classes.index(name) for name in names]
    return {name: values[order] for name, values in parts.items()}


@torch.no_grad()
def fill(bank: ClassBank, file: Path, names: list[str]) -> None:
    """Let the entries of a file into an empty bank, the newest first, as of step 0.

    Args:
        names: the classes of `bank`.

    Raises:
        SdaError: not a bank of sda, of other classes, or of features of another length.
    """
    parts = read(file, names)
    if parts["features"].shape[2] != bank.features.shape[2]:
        raise SdaError(
            f"{file}: its entries have {parts['features'].shape[2]} numbers, those of this bank {bank.features.shape[2]}"
        )
    parts["step"].zero_()
    count = min(parts["valid"].shape[1], bank.valid.shape[1])
    for name, values in parts.items():
        getattr(bank, name)[:, :count] = values[:, :count].to(bank.valid.device)
