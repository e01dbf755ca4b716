"""State in, state out: files that `torch.load(weights_only=True)` opens, written whole or not at all."""

import os
import warnings
from pathlib import Path

import torch

from sda.errors import SdaError

FORMAT = 1


def save(path: Path, state: dict) -> None:
    """Write `state` (tensors, plain values, dicts and lists of them) to a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: Path) -> dict:
    """Read a checkpoint to the CPU.

    Raises:
        SdaError: missing, cut short, not a checkpoint of ours, or of another format.
    """
    if not path.is_file():
        raise SdaError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SdaError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise SdaError(f"{path}: not a checkpoint of this version of sda (format {FORMAT})")
    return state
