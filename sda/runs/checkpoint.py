"""Save and load checkpoints, which `torch.load(weights_only=True)` can open, and .safetensors files of weights."""

import contextlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, InstanceOf
from torch import Tensor

from sda import shelf
from sda.data.descriptor import Color
from sda.errors import SdaError
from sda.models.stored import SHA256, check_tensors, digest, read_pt, read_safetensors, write_safetensors
from sda.system.atomic import written_whole

FORMAT = 1
MODEL_FILE = "model.safetensors"  # name of an exported network

Text = InstanceOf[str]  # file names may not be valid Unicode, which pydantic's own type refuses
Count = Annotated[int, Field(ge=0, lt=2**53)]


class Best(shelf.Strict):
    """When best.pt was written, and why."""

    by: str
    step: Count
    value: float
    miou: float | None = None


class State(shelf.Strict):
    """The fields of a checkpoint and their types. Those with a default are only in last.pt and previous.pt."""

    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True)

    step: Count
    recipe: dict[str, Any]
    table: Text
    classes: dict[str, Color]
    splits: dict[str, list[Text]] = Field({})
    weights_format: Literal["torchvision", "caffe", "timm"]
    preprocessing: dict[str, Any]
    student: dict[str, Tensor]
    method: dict[str, Tensor] = Field({})
    optimizer: dict[str, Any] = Field({})
    scaler: dict[str, Any] = Field({})
    best: Best | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    evaluated: bool = True
    skipped: Count = 0
    faults: dict[str, list[Text]] = Field({})
    inputs: dict[Text, str] = Field({})
    machine: dict[str, str] = Field({})
    # of exported networks
    checkpoint: Annotated[str, Field(pattern=r"^[\w-]+$")] = "last"
    network: Literal["student", "teacher"] = "student"


def save(path: Path, state: dict, keep: Path | None = None) -> None:
    """Write `state` (tensors, plain values, dicts and lists of them) atomically.

    Args:
        keep: also keep the previous file under this name, in case the new one turns out to be damaged.

    Raises:
        SdaError: the file cannot be written; the previous one is unchanged.
    """
    try:
        content = {"format": FORMAT, **state}
        with written_whole(path) as file:
            torch.save({**content, SHA256: digest(content)}, file)
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
    """Load a checkpoint to the CPU, or the weights and metadata of a .safetensors file, after comparing all checksums.

    Files without checksums, which older versions wrote, are accepted.

    Returns:
        The fields of `State` that the file has; a .safetensors file has its weights as `student`.

    Raises:
        SdaError: the file is missing, truncated, damaged, or not written by this version of sda; a field has another type; or a
            weight is NaN or infinite.
    """
    if not path.is_file():
        raise SdaError(f"{path}: no such checkpoint")
    read, kind = (_read_safetensors, ".safetensors file") if path.suffix == ".safetensors" else (_read_pt, "checkpoint")
    try:
        state = read(path)
    except (ValueError, OSError, RecursionError) as error:
        raise SdaError(f"{path}: not a readable {kind} ({str(error).splitlines()[0]})") from None
    shelf.check(State, state, str(path))
    for name in ("student", "method"):
        check_tensors(state.get(name, {}), f"{path}: {name}")
    return state


def _read_pt(path: Path) -> dict:
    state = read_pt(path)
    if not isinstance(state, dict) or type(state.get("format")) is not int or state["format"] != FORMAT:
        raise SdaError(f"{path}: not a checkpoint of this version of sda (format {FORMAT})")
    return state


def _read_safetensors(path: Path) -> dict:
    tensors, about = read_safetensors(path)
    facts = json.loads(about or "null")
    if not isinstance(facts, dict):
        raise SdaError(f"{path}: not written by sda (its metadata has no entry 'sda')")
    return {**facts, "student": tensors}


def to_safetensors(weights: dict[str, Tensor], about: dict) -> bytes:
    """Return the content of a .safetensors file of weights, with `about` (plain values) as JSON in its metadata, key "sda"."""
    return write_safetensors(weights, json.dumps(about))


def others(path: Path, names: tuple[str, ...] = ("last.pt", "previous.pt", "best.pt")) -> str:
    """Return a clause that names the checkpoints beside `path` that are intact; "" if there is none."""
    good = []
    for name in names:
        other = path.with_name(name)
        if other != path and other.exists():
            with contextlib.suppress(SdaError):
                good.append(f"{other} (step {load(other)['step']})")
    which = "one of these" if len(good) > 1 else "this file"
    return f"; intact: {' and '.join(good)}; give {which} instead" if good else ""
