"""A trained network for use elsewhere: as ONNX, TorchScript or torch.export, checked against the network of the run before it is
written; or its weights, with a model card."""

import contextlib
import importlib.util
import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sda import __version__, checkpoint
from sda.atomic import written_whole
from sda.errors import SdaError
from sda.inference import SMALLEST, predict_logits
from sda.model_card import card
from sda.models import SegmentationNetwork
from sda.models.weights import Preprocessing
from sda.progress import Bars
from sda.protocol import Protocol
from sda.train import build_network
from sda.trained import Run

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
CARD = "README.md"
OPSET = 18  # of ONNX: older runtimes take it as well
TRACED = (2, 3, 72, 104)  # images that the exporters look at
CHECKED = ((1, 33, 47), (2, 65, 129))  # images, height, width of pictures that are checked, besides one of the training's size
TOLERANCE = 2e-3  # of a probability. Sums in another order differ by less than 1e-3, another resizing by 1e-2 and more


@dataclass(frozen=True)
class Agreement:
    """How far two networks call the same pixels the same.

    Attributes:
        pictures: their sizes, as in "2x65x129". equal: share of pixels with the same label. confidence: largest difference.
        probability: the most by which the second network prefers its label to that of the first; 0 where all are equal.
    """

    pictures: list[str]
    equal: float
    confidence: float
    probability: float

    def __str__(self) -> str:
        return f"{100 * self.equal:.4f} % of the labels equal, confidence within {self.confidence:.1g}"


class Deployed(nn.Module):
    """Images (B, 3, H, W), uint8 RGB, of any size from 32 → labels (B, H, W), uint8 train ids, and their probability, float32.

    Preprocessing, network, enlargement and softmax in one, as `sda.trained.Run.predict` does without its resizing.
    """

    def __init__(self, network: SegmentationNetwork, normalise: Preprocessing):
        super().__init__()
        self.network = network
        self.factor = normalise.maximum / 255
        self.flip = normalise.order == "BGR"
        self.register_buffer("mean", torch.tensor(normalise.mean)[None, :, None, None])
        self.register_buffer("std", torch.tensor(normalise.std)[None, :, None, None])

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = image.float() * self.factor
        if self.flip:
            x = x.flip(1)
        logits, _ = self.network((x - self.mean) / self.std)
        confidence, labels = self.network.grid.enlarge(logits, image.shape[2:]).softmax(dim=1).max(dim=1)
        return labels.to(torch.uint8), confidence


Segment = Callable[[Tensor], tuple[Tensor, Tensor]]  # what `Deployed` does


@dataclass(frozen=True)
class Format:
    """One way to store a network that computes.

    Attributes:
        file: its name. make: from a `Deployed`. dump: what was made, and what is to be said of it, as bytes. load: the opposite.
    """

    file: str
    make: Callable[[Deployed], object]
    dump: Callable[[object, dict], bytes]
    load: Callable[[bytes], Segment]


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
        expected = [probabilities(exact, run.normalise, images) for images in pictures]
        if run.recipe.precision != "float32":
            trained = [probabilities(run.network, run.normalise, images).max(dim=1) for images in pictures]
            change = agreement([(p.indices, p.values) for p in trained], expected)
            facts["float32"] = {"trained in": run.recipe.precision, **asdict(change)}
            bars.say(f"float32 instead of {run.recipe.precision}, on made-up pictures: {change}")
        deployed = Deployed(with_plain_pooling(exact), run.normalise).eval()
    for form, kind in FORMATS.items():
        if form in formats:
            bars.say(f"{kind.file}: exporting")
            with _quiet():
                made = kind.make(deployed)
                found = _run(kind.load(kind.dump(made, facts)), pictures, form)
                checks[kind.file] = agreement(found, expected)
                _refuse(checks[kind.file], form)
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
        "preprocessing": run.normalise.to_dict(),
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
        "preprocessing": {"where": "inside", **run.normalise.to_dict()},
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
    network = build_network(recipe, len(run.table.names), run.weights_format)
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


def picture(count: int, height: int, width: int, seed: int) -> Tensor:
    """Made-up images (count, 3, height, width), uint8: patches of colour that flow into each other, with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 7, generator=generator)
    noise = torch.randn(count, 3, height, width, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return (255 * smooth + 8 * noise).clamp(0, 255).to(torch.uint8)


def probabilities(network: nn.Module, normalise: Preprocessing, images: Tensor) -> Tensor:
    """(B, C, H, W) of images (B, 3, H, W), as sda predicts."""
    return predict_logits(network, normalise, images, tuple(images.shape[2:]), Protocol()).softmax(dim=1)


def agreement(found: list[tuple[Tensor, Tensor]], expected: list[Tensor]) -> Agreement:
    """Labels and confidence (B, H, W) of one network, per picture, and the probabilities (B, C, H, W) of another."""
    equal, pixels, confidence, probability = 0, 0, [], []
    for (labels, sure), p in zip(found, expected, strict=True):
        most, own = p.max(dim=1)
        theirs = p.gather(1, labels.long().clamp(max=p.shape[1] - 1)[:, None])[:, 0] * (labels < p.shape[1])
        equal, pixels = equal + (labels == own).sum().item(), pixels + own.numel()
        confidence.append((sure - most).abs().amax().item())
        probability.append((most - theirs).amax().item())
    sizes = ["x".join(map(str, (len(p), *p.shape[2:]))) for p in expected]
    return Agreement(sizes, equal / pixels, *(torch.tensor(values).max().item() for values in (confidence, probability)))


def _run(segment: Segment, pictures: list[Tensor], form: str) -> list[tuple[Tensor, Tensor]]:
    """What was exported on every picture. SdaError when it cannot take one of them."""
    found = []
    for images in pictures:
        shape = (len(images), *images.shape[2:])
        wanted = [(torch.uint8, shape), (torch.float32, shape)]
        try:
            outputs = tuple(segment(images))
            kinds = [(output.dtype, tuple(output.shape)) for output in outputs]
            reason = "" if kinds == wanted else f"it gives {kinds}"
        except Exception as error:  # each runtime has errors of its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if reason:
            raise SdaError(f"--as {form}: what was exported does not take images of {shape}: {reason}; nothing is written")
        found.append(outputs)
    return found


def _refuse(check: Agreement, form: str) -> None:
    """SdaError when what was exported is another network."""
    if not (check.confidence <= TOLERANCE and check.probability <= TOLERANCE):  # NaN is no agreement either
        raise SdaError(
            f"--as {form}: what was exported does not compute what the network does: {check} (at most {TOLERANCE} is due to "
            f"rounding), on pictures of {', '.join(check.pictures)}; nothing is written"
        )


# Formats


def as_program(deployed: Deployed) -> torch.export.ExportedProgram:
    """The graph, for images of any number and size."""
    sides = {name: torch.export.Dim(name, min=SMALLEST) for name in ("height", "width")}
    shapes = {"image": {0: torch.export.Dim("batch"), 2: sides["height"], 3: sides["width"]}}
    program = torch.export.export(deployed, (torch.zeros(TRACED, dtype=torch.uint8),), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the folders of this machine
    return program


def as_onnx(deployed: Deployed):
    """An onnx.ModelProto."""
    program = torch.onnx.export(
        as_program(deployed), input_names=["image"], output_names=["labels", "confidence"], opset_version=OPSET, verbose=False
    )
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        sides = value.type.tensor_type.shape.dim
        for side, name in (sides[0], "batch"), (sides[-2], "height"), (sides[-1], "width"):
            side.dim_param = name
    model.graph.ClearField("value_info")  # shapes in between, by other names
    for node in model.graph.node:
        node.ClearField("metadata_props")  # they name the folders of this machine
    return model


def onnx_bytes(model, facts: dict) -> bytes:
    """With `facts` in metadata_props: texts, and JSON of everything else."""
    from onnx.helper import set_model_props

    set_model_props(model, {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()})
    return model.SerializeToString()


def load_onnx(content: bytes) -> Segment:
    """By onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(map(torch.from_numpy, session.run(["labels", "confidence"], {"image": images.numpy()})))


def as_torchscript(deployed: Deployed) -> torch.jit.ScriptModule:
    """Traced: nothing in the networks depends on sizes but by operations that the trace keeps."""
    return torch.jit.trace(deployed, torch.zeros(TRACED, dtype=torch.uint8), check_trace=False)


def torchscript_bytes(module: torch.jit.ScriptModule, facts: dict) -> bytes:
    """With `facts` as JSON in the extra file sda.json; without positions in sources: these name folders of this machine."""
    file, plain = io.BytesIO(), io.BytesIO()
    torch.jit.save(module, file, _extra_files={"sda.json": json.dumps(facts)})
    with zipfile.ZipFile(file) as before, zipfile.ZipFile(plain, "w") as after:
        for entry in before.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                after.writestr(entry, before.read(entry))
    return plain.getvalue()


def program_bytes(program: torch.export.ExportedProgram, facts: dict) -> bytes:
    """With `facts` as JSON in the extra file sda.json."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"sda.json": json.dumps(facts)})
    return file.getvalue()


FORMATS = {
    "onnx": Format("model.onnx", as_onnx, onnx_bytes, load_onnx),
    "torchscript": Format(
        "model.torchscript", as_torchscript, torchscript_bytes, lambda content: torch.jit.load(io.BytesIO(content))
    ),
    "torch-export": Format(
        "model.pt2", as_program, program_bytes, lambda content: torch.export.load(io.BytesIO(content)).module()
    ),
}


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
