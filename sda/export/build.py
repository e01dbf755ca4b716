"""Export a trained network: as ONNX, TorchScript or torch.export, compared with the network before the file is written; or as
weights with a model card."""

import contextlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from sda import __version__
from sda.errors import SdaError
from sda.export.card import card, resizing
from sda.export.check import CHECKED, Agreement, agreement, picture, probabilities, require_agreement, run_on
from sda.export.formats import FORMATS, ONNX_PACKAGES, Deployed, Format
from sda.export.rewrite import branches_on_size, exportable, positions_of_any_size
from sda.models.build import build_network
from sda.models.network import SegmentationNetwork
from sda.runs import checkpoint
from sda.runs.trained import Run
from sda.sizes import SMALLEST, size_text
from sda.system.atomic import written_whole
from sda.system.progress import Bars

CARD = "README.md"
CONFIG = "config.json"


def check_installed(formats: tuple[str, ...]) -> None:
    """Raise SdaError if a format needs packages that are not installed."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if "onnx" in formats and missing:
        raise SdaError(f"--as onnx needs packages that are not installed: pip install {' '.join(missing)}")


def check_free(out: Path, formats: tuple[str, ...]) -> None:
    """Raise SdaError if a file to be written already exists."""
    taken = [name for name in file_names(formats) if (out / name).exists()]
    if taken:
        raise SdaError(f"{out}: already contains {' and '.join(taken)}; replace them with --overwrite, or choose another --out")


def file_names(formats: tuple[str, ...]) -> list[str]:
    """Return the names of the files that an export in these formats writes."""
    files = [FORMATS[form].file for form in formats if form in FORMATS]
    if "hub" in formats:
        files += [checkpoint.MODEL_FILE, CARD, CONFIG]
    elif "safetensors" in formats:
        files += [checkpoint.MODEL_FILE, CARD]
    return files


def export(run: Run, formats: tuple[str, ...], out: Path, bars: Bars) -> dict:
    """Write the network of a run to the folder `out`; if a file fails its check, write nothing.

    Args:
        run: on the CPU. formats: keys of FORMATS; "safetensors" for weights with a model card; "hub" for these and config.json.

    Returns:
        The fields of `metadata`, and `files`, a list with `file` (path), `bytes` and `check` of each (the fields of `Agreement`;
        None for files that cannot be run).

    Raises:
        SdaError: a file does not compute the same as the network, or cannot be written.
    """
    facts = metadata(run)
    files: dict[str, bytes] = {}
    checks: dict[str, Agreement] = {}
    if any(form in FORMATS for form in formats):
        pictures = [picture(*size, seed=number) for number, size in enumerate([*CHECKED, (2, *trained_size(run))])]
        exact = in_float32(run)
        expected = [probabilities(exact, images) for images in pictures]
        if run.recipe.precision != "float32":
            trained = [probabilities(run.network, images).max(dim=1) for images in pictures]
            change = agreement([(p.indices, p.values) for p in trained], expected)
            facts["float32"] = {"trained in": run.recipe.precision, **asdict(change)}
            bars.say(f"float32 compared with {run.recipe.precision}, on synthetic images: {change}")
        deployed = Deployed(exportable(exact)).eval()
    for form, kind in FORMATS.items():
        if form in formats:
            bars.say(f"{kind.file}: exporting")
            with _quiet(), positions_of_any_size():
                model, size, found = _make(form, kind, deployed, pictures)
                checks[kind.file] = agreement(found, expected[-len(found) :])
                require_agreement(checks[kind.file], form)
                known = {**facts, "input": input_text(run, size), "check": asdict(checks[kind.file])}
                files[kind.file] = kind.dump(model, known)
            if size:
                bars.say(f"{kind.file}: takes images of {size_text(size)} only, because PyTorch cannot export it for all sizes")
    if "safetensors" in formats or "hub" in formats:
        files[checkpoint.MODEL_FILE] = checkpoint.to_safetensors(run.network.state_dict(), about(run))
        files[CARD] = card(run, facts, {file: str(check) for file, check in checks.items()}).encode()
    if "hub" in formats:
        files[CONFIG] = json.dumps(config(run, facts), indent=2, ensure_ascii=False).encode()
    _write(out, files)
    written = [
        {"file": os.path.relpath(out / name), "bytes": len(content), "check": asdict(checks[name]) if name in checks else None}
        for name, content in files.items()
    ]
    return {**facts, "files": written}


def _make(
    form: str, kind: Format, deployed: Deployed, pictures: list[torch.Tensor]
) -> tuple[object, tuple[int, int] | None, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Export for images of any size or, if that cannot be done, for the size of the last picture.

    Returns:
        The model; the only size that it takes, or None for any; and its results for the pictures that it takes, the last ones.

    Raises:
        SdaError: PyTorch cannot export the network in this format.
    """
    fixed = (pictures[-1].shape[2], pictures[-1].shape[3])
    for size, tested in ((None, pictures), (fixed, pictures[-1:])):
        if size is None and branches_on_size(deployed):
            continue
        try:
            model = kind.make(deployed, size)
            return model, size, run_on(kind.load(kind.dump(model, {})), tested, form)
        except Exception as error:  # the exporters raise many kinds
            reason = error
    if isinstance(reason, SdaError):
        raise reason
    first = (str(reason).splitlines() or [type(reason).__name__])[0]
    raise SdaError(f"--as {form}: PyTorch cannot export this network ({first}); try another --as; nothing was written")


def about(run: Run) -> dict:
    """Return the metadata of model.safetensors, which `sda.load` needs; absolute paths lose their folders."""
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


def metadata(run: Run) -> dict:
    """Return the metadata of a file that can be run: plain values."""
    size = run.recipe.input_size
    return {
        "sda": __version__,
        "input": input_text(run),
        "output": "labels: uint8, (batch, height, width), indices into classes; confidence: float32, the same shape, 0 to 1",
        "size": list(size) if size else None,
        "fit": run.recipe.input_fit,
        "classes": run.table.colors,
        "preprocessing": {"where": "inside", **run.network.preprocessing.to_dict()},
        "checkpoint": run.which,
        "network": run.network_name,
        "step": run.step,
        "recipe": portable(run.recipe.model_dump()),
        "float32": None,
    }


def config(run: Run, facts: dict) -> dict:
    """Return the content of config.json, which pages and programs of the Hugging Face hub read."""
    names = dict(enumerate(run.table.names))
    return {
        "library_name": "sda",
        "architecture": run.recipe.network,
        "backbone": run.recipe.backbone,
        "num_labels": len(names),
        "id2label": {str(place): name for place, name in names.items()},
        "label2id": {name: place for place, name in names.items()},
        **{key: facts[key] for key in ("sda", "size", "classes", "preprocessing", "step")},
    }


def input_text(run: Run, size: tuple[int, int] | None = None) -> str:
    """Describe the input of an exported model. `size`: the only height and width that it takes; None: any."""
    if size:
        return f"image: uint8 RGB, (batch, 3, {size[0]}, {size[1]}), any batch; resize images to this height and width"
    return f"image: uint8 RGB, (batch, 3, height, width), any batch, height and width from {SMALLEST}; {resizing(run)}"


def portable(values: dict) -> dict:
    """Replace absolute paths in `values` by ./NAME, so that no folder of this machine is published."""

    def without_folder(value: object) -> object:
        if isinstance(value, list):
            return [without_folder(part) for part in value]
        return f"./{Path(value).name}" if isinstance(value, str) and os.path.isabs(value) else value

    return {key: without_folder(value) for key, value in values.items()}


def trained_size(run: Run) -> tuple[int, int]:
    """Return height and width of the images that the network was trained for."""
    return run.recipe.input_size or run.recipe.crop_size


def in_float32(run: Run) -> SegmentationNetwork:
    """Return a copy of the network of a run that computes in float32."""
    recipe = run.recipe.model_copy(update={"precision": "float32"})
    network = build_network(recipe, len(run.table.names), run.weights_format, run.network.preprocessing)
    network.load_state_dict(run.network.state_dict())
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Disable gradients, and suppress the exporters' warnings and logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            yield
    finally:
        logging.disable(before)


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Write all files, or none if there is an error."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for name, content in files.items():
                stack.enter_context(written_whole(out / name)).write(content)
    except OSError as error:
        raise SdaError(f"{out}: cannot write the export ({error.strerror})") from None
