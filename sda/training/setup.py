"""What a training consists of, built from its recipe and restored from a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch

from sda.data.assemble import Data
from sda.data.streams import Stream, open_streams
from sda.errors import SdaError
from sda.methods.base import Method, Task
from sda.methods.build import METHODS
from sda.methods.parts import bank_file
from sda.models.build import build_network
from sda.models.network import recompute_activations, synchronise_norms
from sda.models.preprocessing import PREPROCESSING
from sda.models.weights import load_weights, read_weights
from sda.recipe import Recipe
from sda.system import distributed
from sda.training.optimizer import make_optimizer


@dataclass
class Training:
    """A recipe that is being trained.

    Attributes:
        method, optimizer, scaler: what learns. streams: the open ones, by name.
        weights_format: of the pretrained weights. weights_report: which of their tensors were loaded; empty for a resumed run.
        step: how many were taken. best: criterion, value, step and mIoU of best.pt, once there is one.
        seconds: of training, without evaluation. evaluated: whether the network at `step` has been scored, if it is due.
        skipped: steps without a finite loss.
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


def prepare(recipe: Recipe, data: Data, device: torch.device, resumed: dict | None = None) -> Training:
    """Build the network with its weights, the method, the optimizer and the streams of a recipe.

    Args:
        resumed: the state in a `last.pt` of the same training (see `sda.training.resume`), to restore.

    Raises:
        SdaError: weights or a bank that cannot be used, or a checkpoint that does not fit.
    """
    torch.manual_seed(recipe.seed)
    method, weights_format, weights_report = _new_method(recipe, data, resumed and resumed["weights_format"])
    method = method.to(device)
    if resumed is None:
        _start(method, recipe, data)
    if distributed.size() > 1 and recipe.sync_norm:
        synchronise_norms(method.student)
    if recipe.recompute:
        recompute_activations(method.student)
    if recipe.compile:
        for network in method.networks():
            network.compile()
    optimizer = make_optimizer(method, recipe)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
    streams = open_streams(recipe, data, resumed["step"] if resumed else 0)
    training = Training(recipe, data, device, method, optimizer, scaler, streams, weights_format, weights_report)
    if resumed is not None:
        _restore(training, resumed)
    return training


def _new_method(recipe: Recipe, data: Data, weights_format: str | None) -> tuple[Method, str, str]:
    """Build a method, the format of its network's weights, and a report on them.

    Args:
        weights_format: of a network whose weights are restored from a checkpoint; None loads the recipe's weights.
    """
    classes = len(data.table.names)
    pretrained = None
    if weights_format is None:
        pretrained = read_weights(recipe.backbone, recipe.weights, recipe.weights_format)
        weights_format = pretrained.format
    network = build_network(recipe, classes, weights_format, PREPROCESSING[weights_format])
    loaded = load_weights(network.backbone, recipe.backbone, pretrained) if pretrained else None
    if recipe.freeze_norm != "none":
        network.freeze_norms(statistics=recipe.freeze_norm == "all")
    labelled_images = sum(len(part) for part in (data.source, data.labelled) if part is not None)
    method = METHODS[recipe.method](network, recipe.method_settings, Task(classes, recipe.steps, labelled_images))
    return method, weights_format, loaded.details() if loaded else ""


def _start(method: Method, recipe: Recipe, data: Data) -> None:
    """Start class balancing and bank from what the recipe names."""
    if recipe.class_statistics and method.balance is not None:
        method.balance.start(torch.from_numpy(sum(pixels.sum(axis=0) for pixels in data.pixels.values())).float())
    if recipe.bank and method.bank is not None:
        bank_file.fill(method.bank, Path(recipe.bank), data.table.names)


def _restore(training: Training, state: dict) -> None:
    """Continue from a checkpoint's state."""
    try:
        training.method.load_state_dict(state["method"])
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise SdaError(
            f"the checkpoint does not fit method {training.recipe.method} of this version ({' '.join(lines[1:2]).strip()}): "
            "start again in another --out"
        ) from None
    training.optimizer.load_state_dict(state["optimizer"])
    training.scaler.load_state_dict(state["scaler"])
    for name in ("step", "best", "seconds", "evaluated", "skipped"):
        setattr(training, name, state[name])
    for name, faults in state["faults"].items():
        training.streams[name].faults.update(dict.fromkeys(faults))
