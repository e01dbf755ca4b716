"""Save and load checkpoints, which `torch.load(weights_only=True)` can open, and .safetensors files of weights."""

import contextlib
import json
import os
import warnings
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from sda.errors import SdaError
from sda.system.atomic import written_whole

FORMAT = 1
MODEL_FILE = "model.safetensors"  # name of an exported network


def save(path: Path, state: dict, keep: Path | None = None) -> None:
    """Write `state` (tensors, plain values, dicts and lists of them) atomically.

    Args:
        keep: also keep the previous file under this name, in case the new one turns out to be damaged.

    Raises:
        SdaError: the file cannot be written; the previous one is unchanged.
    """
    try:
        with written_whole(path) as file:
            torch.save({"format": FORMAT, **state}, file)
            if keep is not None and path.exists():
                _link(path, keep)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
        cause = error if isinstance(error, OSError) else error.__context__
        reason = (isinstance(cause, OSError) and cause.strerror) or str(error).splitlines()[0]
        before = "the previous checkpoint is unchanged" if path.exists() else "there is no previous checkpoint"
        raise SdaError(f"{path}: cannot write the checkpoint ({reason}); {before}") from None


def _link(path: Path, name: Path) -> None:
    """Give a file a second name, if the file system supports hard links."""
    link = name.with_name(f"{name.name}.partial")
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        os.link(path, link)
        link.replace(name)


def load(path: Path) -> dict:
    """Load a checkpoint to the CPU.

    Raises:
        SdaError: the file is missing, truncated, not a checkpoint of sda, or has a different format.
    """
    if not path.is_file():
        raise SdaError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt pickle can raise nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SdaError(f"{path}: not a readable checkpoint ({reason})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise SdaError(f"{path}: not a checkpoint of this version of sda (format {FORMAT})")
    return state


def to_safetensors(weights: dict[str, Tensor], about: dict) -> bytes:
    """Return the content of a .safetensors file of weights, with `about` (plain values) as JSON in its metadata, key "sda"."""
    weights = {name: value.contiguous() for name, value in weights.items()}
    return safetensors.torch.save(weights, metadata={"sda": json.dumps(about)})


def load_safetensors(path: Path) -> dict:
    """Load a file that `to_safetensors` made: the fields of `about`, and the weights as `student`.

    Raises:
        SdaError: the file is missing, truncated, or was not written by sda.
    """
    if not path.is_file():
        raise SdaError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("sda", "null"))
            names = file.keys()
            weights = {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise SdaError(f"{path}: not a readable .safetensors file ({str(error).splitlines()[0]})") from None
    if not isinstance(about, dict):
        raise SdaError(f"{path}: not written by sda (its metadata has no entry 'sda')")
    return {**about, "student": weights}
