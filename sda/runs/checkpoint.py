"""State in, state out: files that `torch.load(weights_only=True)` opens, written whole or not at all."""

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
ALONE = "model.safetensors"  # an exported network


def save(path: Path, state: dict, keep: Path | None = None) -> None:
    """Write `state` (tensors, plain values, dicts and lists of them) whole or not at all.

    Args:
        keep: what stood under `path` gets this name, for the day when the new file turns out to be damaged.

    Raises:
        SdaError: it cannot be written; what stood there still does.
    """
    try:
        with written_whole(path) as file:
            torch.save({"format": FORMAT, **state}, file)
            if keep is not None and path.exists():
                _link(path, keep)
    except (OSError, RuntimeError) as error:  # torch hides a full disk in the latter
        cause = error if isinstance(error, OSError) else error.__context__
        reason = (isinstance(cause, OSError) and cause.strerror) or str(error).splitlines()[0]
        before = "the one before it is unharmed" if path.exists() else "there is none before it"
        raise SdaError(f"{path}: the checkpoint cannot be written ({reason}); {before}") from None


def _link(path: Path, name: Path) -> None:
    """Give a file a second name, where the file system can do that."""
    link = name.with_name(f"{name.name}.partial")
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        os.link(path, link)
        link.replace(name)


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


def alone(weights: dict[str, Tensor], about: dict) -> bytes:
    """A network alone, as the content of a .safetensors file; `about` (plain values) is in its metadata, as JSON under "sda"."""
    weights = {name: value.contiguous() for name, value in weights.items()}
    return safetensors.torch.save(weights, metadata={"sda": json.dumps(about)})


def load_alone(path: Path) -> dict:
    """Read what `alone` made: `about`, with the weights as `student`.

    Raises:
        SdaError: missing, cut short, or not written by sda.
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
        raise SdaError(f"{path}: not written by sda: its metadata do not say what was trained")
    return {**about, "student": weights}
