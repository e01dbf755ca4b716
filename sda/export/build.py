"""A trained network for use elsewhere: as ONNX, TorchScript or torch.export, checked against the network of the run before it is
written; or its weights, with a model card."""

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from sda import __version__
from sda.errors import SdaError
from sda.export.card import card
from sda.export.check import CHECKED, agreement, picture, probabilities, refuse_unlike, run_on
from sda.export.formats import FORMATS, PACKAGES, Deployed
from sda.models.build import build_network
from sda.models.network import SegmentationNetwork
from sda.runs import checkpoint
from sda.runs.trained import Run
from sda.scoring.inference import SMALLEST
from sda.system.atomic import written_whole
from sda.system.progress import Bars

CARD = "README.md"


def check_installed(formats: tuple[str, ...]) -> None:
    """SdaError when a format needs packages that are not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        raise SdaError(f"--as onnx needs packages that are not installed: pip install {' '.join(missing)}")


def check_free(out: Path, formats: tuple[str, ...]) -> None:
    """SdaError when a file that is to be written exists."""
    taken = [name for name in file_names(formats) if (out / name).exists()]
    if taken:
        raise SdaError(f"{out}: there is {' and '.join(taken)} already: --overwrite replaces, --out DIR writes elsewhere")


def file_names(formats: tuple[str, ...]) -> list[str]:
    """What an export in these formats writes."""
    files = [FORMATS[form].file for form in formats if form in FORMATS]
    return files + ([checkpoint.ALONE, CARD] if "safetensors" in formats else [])


def export(run: Run, formats: tuple[str, ...], out: Path, bars: Bars) -> dict:
    """Write a run's network into the folder `out`; nothing of it is written where one of the files fails its check.

    Args:
        run: on the CPU. formats: keys of FORMATS, and "safetensors": weights with a model card.

    Returns:
        What `facts_of` gives, and `files`: of each its `file` (path), `bytes`, and `check` (the fields of `Agreement`; None where
        nothing computes).

    Raises:
        SdaError: a file does not compute what the network does, or cannot be written.
    """
    facts, files, checks = facts_of(run), {}, {}
    if any(form in FORMATS for form in formats):
        pictures = [picture(*size, seed=number) for number, size in enumerate([*CHECKED, (1, *trained_size(run))])]
        exact = in_float32(run)
        expected = [probabilities(exact, images) for images in pictures]
        if run.recipe.precision != "float32":
            trained = [probabilities(run.network, images).max(dim=1) for images in pictures]
            change = agreement([(p.indices, p.values) for p in trained], expected)
            facts["float32"] = {"trained in": run.recipe.precision, **asdict(change)}
            bars.say(f"float32 instead of {run.recipe.precision}, on made-up pictures: {change}")
        deployed = Deployed(with_plain_pooling(exact)).eval()
    for form, kind in FORMATS.items():
        if form in formats:
            bars.say(f"{kind.file}: exporting")
            with _quiet():
                made = kind.make(deployed)
                found = run_on(kind.load(kind.dump(made, facts)), pictures, form)
                checks[kind.file] = agreement(found, expected)
                refuse_unlike(checks[kind.file], form)
                files[kind.file] = kind.dump(made, {**facts, "check": asdict(checks[kind.file])})
    if "safetensors" in formats:
        files[checkpoint.ALONE] = checkpoint.alone(run.network.state_dict(), about(run))
        files[CARD] = card(run, facts, {file: str(check) for file, check in checks.items()}).encode()
    _write(out, files)
    written = [
        {"file": os.path.relpath(out / name), "bytes": len(content), "check": asdict(checks[name]) if name in checks else None}
        for name, content in files.items()
    ]
    return {**facts, "files": written}


def about(run: Run) -> dict:
    """What stands beside a network's weights, as in a run's `student.safetensors`; paths are names alone."""
    return {
        "sda": __version__,
        "checkpoint": run.which,
        "network": run.network_name,
        "step": run.step,
        "recipe": portable(run.recipe.model_dump()),
        "table": run.table_name,
        "classes": run.table.colors,
        "splits": run.splits,
        "weights_format": run.weights_format,
        "preprocessing": run.network.preprocessing.to_dict(),
    }


def facts_of(run: Run) -> dict:
    """What a file that computes says of itself: plain values."""
    least = f"height and width from {SMALLEST}"
    size = run.recipe.input_size
    resize = "resize pictures so that their shorter side is that of size" if size else "pictures at their own size"
    return {
        "sda": __version__,
        "input": f"image: uint8 RGB, (batch, 3, height, width), any batch, {least}; {resize}",
        "output": "labels: uint8, (batch, height, width), positions in classes; confidence: float32, the same shape, 0 to 1",
        "size": list(size) if size else None,
        "classes": run.table.colors,
        "preprocessing": {"where": "inside", **run.network.preprocessing.to_dict()},
        "checkpoint": run.which,
        "network": run.network_name,
        "step": run.step,
        "recipe": portable(run.recipe.model_dump()),
        "float32": None,
    }


def portable(values: dict) -> dict:
    """The same values, but for the folders of this machine: of an absolute path, ./ and the last part."""
    return {
        key: f"./{Path(value).name}" if isinstance(value, str) and os.path.isabs(value) else value
        for key, value in values.items()
    }


def trained_size(run: Run) -> tuple[int, int]:
    """Height and width of the pictures that the network was trained for."""
    return run.recipe.input_size or run.recipe.crop_size


def in_float32(run: Run) -> SegmentationNetwork:
    """A copy of the run's network that computes in float32."""
    recipe = run.recipe.model_copy(update={"precision": "float32"})
    network = build_network(recipe, len(run.table.names), run.weights_format, run.network.preprocessing)
    network.load_state_dict(run.network.state_dict())
    return network.eval().requires_grad_(False)


def with_plain_pooling(network: SegmentationNetwork) -> SegmentationNetwork:
    """The network, whose pooling no longer rounds its size up (Caffe's does, torch.export cannot), but pads by one more.

    What is pooled has passed a ReLU, so that a zero is never the maximum of a window that lies at least in part in the image.
    """
    pool = getattr(network.backbone, "maxpool", None)
    if pool is not None and pool.ceil_mode:
        near, far = pool.padding, pool.padding + pool.stride - 1
        network.backbone.maxpool = nn.Sequential(
            nn.ZeroPad2d((near, far, near, far)), nn.MaxPool2d(pool.kernel_size, pool.stride)
        )
    return network


# Checks


# Formats


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Meanwhile, exporters keep their remarks on their own workings to themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            yield
    finally:
        logging.disable(before)


def _write(out: Path, files: dict[str, bytes]) -> None:
    """All of them, or on an error none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for name, content in files.items():
                stack.enter_context(written_whole(out / name)).write(content)
    except OSError as error:
        raise SdaError(f"{out}: the export cannot be written ({error.strerror})") from None
