"""Read the tensors of a weights file, whatever wraps them: PyTorch and .safetensors files, runs, and Hugging Face folders."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sda.errors import SdaError
from sda.models.stored import read_pt, read_safetensors
from sda.models.weights import hub

# Keys under which programs store a state dict. "student" is in the checkpoints of sda, "teacher" in those of DINO.
WRAPPERS = (
    "student",
    "state_dict",
    "model_state_dict",
    "model",
    "teacher",
    "net",
    "network",
    "state_dict_ema",
    "model_ema",
    "ema",
)

# Prefixes of programs that wrap a network. "Scale." is in ResNet-101 files converted from DeepLabv2's Caffe model.
PREFIXES = (
    *("module.", "_orig_mod.", "model.", "encoder.", "backbone.", "net.", "network.", "student.", "teacher."),
    *("image_encoder.", "visual.", "trunk.", "Scale."),
)
_DEEPEST = 4  # levels of wrappers

# Files in a folder that hold a network, the first that is there: runs of sda, then snapshots of the Hugging Face hub.
FOLDER_FILES = ("last.pt", "student.safetensors", "model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Stored:
    """The tensors of a file, and what it says about them.

    Attributes:
        path: the file that was read.
        tensors: name → tensor, as in the file, without wrappers.
        facts: the checkpoint of a network of sda, with its recipe and class table; empty for other files.
        config: content of the config.json in the folder; empty if there is none.
    """

    path: Path
    tensors: dict[str, Tensor]
    facts: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)


def read_file(path: str, example: str) -> Stored:
    """Read the tensors of a file, or of a folder with one of FOLDER_FILES. Never runs code from the file.

    Args:
        example: names of tensors that are expected, for messages.

    Raises:
        SdaError: the file is missing, damaged, unreadable, or has no named tensors.
    """
    file = hub.fetch(path) if hub.is_on_hub(path) else Path(path).expanduser()
    config: dict = {}
    if file.is_dir():
        config = _config(file)
        file = next((file / name for name in FOLDER_FILES if (file / name).is_file()), file)
    if not file.is_file():
        found = f"a folder without {', '.join(FOLDER_FILES)}" if file.is_dir() else "no such file or folder"
        raise SdaError(
            f"weights {path}: {found}; expected none, imagenet, coco, a file (.pth, .pt, .safetensors), a run folder, or the "
            "folder of a Hugging Face model"
        )
    try:
        if file.suffix == ".safetensors":
            tensors, about = read_safetensors(file)
            facts = json.loads(about or "{}")
            content: object = {**facts, "student": tensors} if isinstance(facts, dict) else tensors
        else:
            content = read_pt(file, old=True)
    except (ValueError, OSError, RecursionError) as error:
        raise SdaError(
            f"weights {path}: cannot be read as a state dict of tensors ({error}): the file is truncated or damaged, not a "
            "PyTorch file, or contains other objects, which are not loaded because that could run code"
        ) from None
    inner = _unwrapped(content)
    tensors = {key: value for key, value in inner.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not tensors:
        keys = [str(key) for key in inner]
        found = f"a dict without tensors, with the keys {examples(keys) or '(none)'}" if keys else type(content).__name__
        raise SdaError(f"weights {path}: expected a state dict (name → tensor) with names such as {example}, found {found}")
    facts = content if isinstance(content, dict) and "weights_format" in content and "student" in content else {}
    return Stored(file, tensors, facts, config)


def _config(folder: Path) -> dict:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _unwrapped(content: object) -> Mapping:
    """Return the innermost dict that a file's wrappers lead to; an empty one if the content is no dict."""
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            return {}
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return content
        content = inner
    return content if isinstance(content, Mapping) else {}


def strip(key: str, known: Collection[str] = ()) -> str:
    """Return a name without the prefixes of wrappers, in any order, but not beyond a name that is known."""
    while key not in known and key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def examples(names: list[str]) -> str:
    """Return up to three names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
