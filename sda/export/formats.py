"""File formats of exported models that can be run without sda."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sda.models.network import SegmentationNetwork
from sda.sizes import SMALLEST

if TYPE_CHECKING:
    import onnx

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18  # old enough for older ONNX runtimes
TRACED = (2, 3, 72, 104)  # shape of the images that the exporters trace with

Segment = Callable[[Tensor], tuple[Tensor, Tensor]]  # images → labels, confidence; see `Deployed`


class Deployed(nn.Module):
    """Images (B, 3, H, W), uint8 RGB, sides from 32 → labels (B, H, W), uint8 train ids, and their probability, float32.

    Includes preprocessing, upsampling to the input size, and softmax, like `sda.runs.trained.Run.predict` without resizing.
    """

    network: SegmentationNetwork

    def __init__(self, network: SegmentationNetwork):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits, _ = self.network(image)
        confidence, labels = self.network.grid.enlarge(logits, image.shape[2:]).softmax(dim=1).max(dim=1)
        return labels.to(torch.uint8), confidence


@dataclass(frozen=True)
class Format:
    """One file format.

    Attributes:
        file: name of the file. make: `Deployed`, and the only size (height, width) to take or None for any → exported model.
        dump: exported model, metadata → bytes. load: bytes → function.
    """

    file: str
    make: Callable[[Deployed, tuple[int, int] | None], Any]
    dump: Callable[[Any, dict], bytes]
    load: Callable[[bytes], Segment]


def as_program(deployed: Deployed, size: tuple[int, int] | None = None) -> torch.export.ExportedProgram:
    """Return the graph, for any number of images, of one size or of any."""
    sides = {place: torch.export.Dim(name, min=SMALLEST) for place, name in ((2, "height"), (3, "width"))}
    shapes = {"image": {0: torch.export.Dim("batch"), **({} if size else sides)}}
    program = torch.export.export(
        deployed,
        (torch.zeros(*TRACED[:2], *(size or TRACED[2:]), dtype=torch.uint8),),
        dynamic_shapes=shapes,
        # PyTorch cannot prove all conditions on sizes after a division, such as that 32 pixels are more than one patch
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains paths of this machine
    return program


def as_onnx(deployed: Deployed, size: tuple[int, int] | None = None) -> "onnx.ModelProto":
    """Return the graph as ONNX."""
    program = torch.onnx.export(
        as_program(deployed, size),
        input_names=["image"],
        output_names=["labels", "confidence"],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        sides = value.type.tensor_type.shape.dim
        sides[0].dim_param = "batch"
        if size is None:
            sides[-2].dim_param, sides[-1].dim_param = "height", "width"
    model.graph.ClearField("value_info")  # shapes of intermediate values, which use other names
    for node in model.graph.node:
        node.ClearField("metadata_props")  # contains paths of this machine
    return model


def onnx_bytes(model: "onnx.ModelProto", facts: dict) -> bytes:
    """Serialize with `facts` in metadata_props: strings as they are, everything else as JSON."""
    from onnx.helper import set_model_props

    set_model_props(model, {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()})
    return model.SerializeToString()


def load_onnx(content: bytes) -> Segment:
    """Load with onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def segment(images: Tensor) -> tuple[Tensor, Tensor]:
        labels, confidence = session.run(["labels", "confidence"], {"image": images.numpy()})
        return torch.from_numpy(labels), torch.from_numpy(confidence)

    return segment


def as_torchscript(deployed: Deployed, size: tuple[int, int] | None = None) -> torch.jit.ScriptModule:
    """Trace the network; the trace stays valid for other sizes, because it records every operation that depends on the size."""
    return torch.jit.trace(deployed, torch.zeros(*TRACED[:2], *(size or TRACED[2:]), dtype=torch.uint8), check_trace=False)


def torchscript_bytes(module: torch.jit.ScriptModule, facts: dict) -> bytes:
    """Serialize with `facts` as JSON in the extra file sda.json, without debug files, which contain paths of this machine."""
    file, plain = io.BytesIO(), io.BytesIO()
    torch.jit.save(module, file, _extra_files={"sda.json": json.dumps(facts)})
    with zipfile.ZipFile(file) as full, zipfile.ZipFile(plain, "w") as stripped:
        for entry in full.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                stripped.writestr(entry, full.read(entry))
    return plain.getvalue()


def program_bytes(program: torch.export.ExportedProgram, facts: dict) -> bytes:
    """Serialize with `facts` as JSON in the extra file sda.json."""
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
