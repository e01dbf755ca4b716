"""The formats of exported networks that compute."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sda.models.network import SegmentationNetwork
from sda.scoring.inference import SMALLEST

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


OPSET = 18  # of ONNX: older runtimes take it as well


TRACED = (2, 3, 72, 104)  # images that the exporters look at


class Deployed(nn.Module):
    """Images (B, 3, H, W), uint8 RGB, of any size from 32 → labels (B, H, W), uint8 train ids, and their probability, float32.

    Network (with its preprocessing), enlargement and softmax in one: `sda.runs.trained.Run.predict` without its resizing.
    """

    def __init__(self, network: SegmentationNetwork):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits, _ = self.network(image)
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
