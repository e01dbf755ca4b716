"""The parts of a training run, built from its recipe and, to resume, restored from a checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from sda.data.assemble import Data
from sda.data.streams import Stream, open_streams
from sda.errors import SdaError
from sda.methods.base import Method, Task
from sda.methods.by_name import METHODS
from sda.methods.parts import bank_file
from sda.models.build import build_network
from sda.models.network import recompute_activations, synchronise_norms
from sda.models.preprocessing import Preprocessing
from sda.models.stored import fit
from sda.models.weights.load import load_head, load_weights
from sda.models.weights.read import read_weights
from sda.recipe import Recipe
from sda.system import distributed
from sda.training.optimizer import make_optimizer, restore_optimizer
from sda.training.resume import Resumed


@dataclass
class Training:
    """The state of a training run.

    Attributes:
        streams: the open streams, by name.
        weights_format: format of the pretrained weights.
        weights_report: which of their tensors were loaded; empty for a resumed run.
        step: number of steps taken.
        best: criterion, value, step and mIoU of best.pt; None before the first evaluation.
        seconds: time spent on training, without evaluation.
        evaluated: False if an evaluation is due at `step` and has not been made.
        skipped: number of steps skipped because their loss was not finite.
        inputs, machine: see `sda.training.resume.inputs_of` and `machine_of`; checkpoints record them.
    """

    recipe: Recipe
    data: Data
    device: torch.device
    method: Method
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    streams: dict[str, Stream]
    weights_format: str
    weights_report: str = ""
    step: int = 0
    best: dict | None = None
    seconds: float = 0.0
    evaluated: bool = True
    skipped: int = 0
    inputs: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)

    def close(self) -> None:
        """End the loader processes of the streams."""
        for stream in self.streams.values():
            stream.close()


def prepare(recipe: Recipe, data: Data, device: torch.device, resumed: Resumed | None = None) -> Training:
    """Build the network with its weights, the method, the optimizer and the streams of a recipe.

    Args:
        resumed: a checkpoint of the same training to restore (see `sda.training.resume.check`).

    Raises:
        SdaError: weights or a bank that cannot be used, or a checkpoint that does not fit the method.
    """
    torch.manual_seed(recipe.seed)
    method, weights_format, weights_report = _new_method(recipe, data, resumed)
    method = method.to(device)
    if resumed is None:
        _start(method, recipe, data)
    if distributed.world_size() > 1 and recipe.sync_norm:
        synchronise_norms(method.student)
    if recipe.recompute:
        recompute_activations(method.student)
    if recipe.compile:
        for network in method.networks():
            network.compile()
    optimizer = make_optimizer(method, recipe)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
    streams = open_streams(recipe, data, resumed.step if resumed else 0)
    training = Training(recipe, data, device, method, optimizer, scaler, streams, weights_format, weights_report)
    if resumed is not None:
        try:
            _restore(training, resumed)
        except BaseException:
            training.close()
            raise
    return training


def _new_method(recipe: Recipe, data: Data, resumed: Resumed | None) -> tuple[Method, str, str]:
    """Build a method, with the recipe's pretrained weights unless a checkpoint will be restored.

    Returns:
        The method, the format of its network's weights, and a report on the loaded weights.
    """
    names, report = data.table.names, ""
    if resumed is not None:
        weights_format = resumed.state["weights_format"]
        network = build_network(recipe, len(names), weights_format, Preprocessing.from_dict(resumed.state["preprocessing"]))
    else:
        pretrained = read_weights(recipe.backbone, recipe.weights, recipe.weights_format)
        weights_format = pretrained.format
        network = build_network(recipe, len(names), weights_format, pretrained.preprocessing)
        loaded = load_weights(network.backbone, recipe.backbone, pretrained)
        head = load_head(network.head, recipe.network, names, pretrained)
        report = "\n".join(filter(None, [head, loaded.details() if loaded else ""]))
    if recipe.freeze == "encoder":
        network.freeze_encoder()
    if recipe.freeze_norm != "none":
        network.freeze_norms(statistics=recipe.freeze_norm == "all")
    labelled_images = sum(len(part) for part in (data.source, data.labelled) if part is not None)
    method = METHODS[recipe.method](network, recipe.method_settings, Task(len(names), recipe.steps, labelled_images))
    return method, weights_format, report


def _start(method: Method, recipe: Recipe, data: Data) -> None:
    """Start class balancing from class statistics, and the bank from a file, if the recipe asks for it."""
    if recipe.class_statistics and method.balance is not None:
        method.balance.start(torch.from_numpy(sum(pixels.sum(axis=0) for pixels in data.pixels.values())).float())
    if recipe.bank and method.bank is not None:
        bank_file.fill(method.bank, Path(recipe.bank), data.table.names)


def _restore(training: Training, resumed: Resumed) -> None:
    """Restore a checkpoint's state."""
    state = resumed.state
    fit(training.method, state["method"], f"{resumed.path}: its state does not fit method {training.recipe.method}")
    try:
        restore_optimizer(training.optimizer, state["optimizer"])
        training.scaler.load_state_dict(state["scaler"])
    except Exception as error:  # PyTorch raises many kinds for state of another structure
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SdaError(f"{resumed.path}: its state does not fit optimizer {training.recipe.optimizer} ({reason})") from None
    for name in ("step", "best", "seconds", "evaluated", "skipped"):
        setattr(training, name, state[name])
    for name, faults in state["faults"].items():
        if name in training.streams:
            training.streams[name].faults.update(dict.fromkeys(faults))
