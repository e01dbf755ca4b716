"""A trained run read back: to score it, and to predict with it."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sda.data.assemble import Data
from sda.data.dataset import Dataset
from sda.data.descriptor import ClassTable
from sda.data.evaluation import all_images, evaluation_set
from sda.data.files import read_image
from sda.errors import SdaError
from sda.models.build import build_network
from sda.models.network import SegmentationNetwork
from sda.models.preprocessing import Preprocessing
from sda.pictures import resize_image, resize_nearest
from sda.protocol import Protocol, preset
from sda.recipe import Recipe
from sda.runs import checkpoint
from sda.scoring.inference import predict_logits
from sda.shelf import check
from sda.system.console import Count, ignore_count
from sda.system.devices import pick_device

LARGE = 2.0  # times the pixels of the training's images: such an image is taken in windows
VALUES = 2**29  # logits at a time (2 GiB); a photo of more pixels is decided at fewer, and enlarged


@dataclass(frozen=True)
class Prediction:
    """What a network makes of one image.

    Attributes:
        labels: (H, W) uint8 train ids, at the image's own size. confidence: (H, W) float32, probability of that class, 0 to 1.
        table: the classes, names and colours in the order of the train ids.
    """

    labels: np.ndarray
    confidence: np.ndarray
    table: ClassTable


@dataclass(frozen=True)
class Run:
    """A trained network in eval mode, and what it was trained as.

    Attributes:
        folder: of the run. which: "last" or "best" checkpoint. network_name: "student" or "teacher".
        table, table_name: the classes. weights_format: of the pretrained weights. step: of
            the checkpoint. splits: stream → the images it was trained and scored on.
    """

    folder: Path
    which: str
    network_name: str
    recipe: Recipe
    table: ClassTable
    table_name: str
    network: SegmentationNetwork
    weights_format: str
    step: int
    splits: dict[str, list[str]]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def protocol(self, name: str = "", scales: tuple[float, ...] = (1.0,), flip: bool = False) -> Protocol:
        """A preset for this run (see `sda.protocol.preset`); its own by default."""
        r = self.recipe
        return preset(name or r.protocol, r.network, r.target, r.input_size, r.crop_size, scales, flip)

    def labelled_images(
        self, protocol: Protocol, dataset: str = "", root: str = "", split: str = "val", progress: Count = ignore_count
    ) -> Data:
        """The labelled images of a split of any dataset, by default of the run's target, in its classes, at a protocol's input.

        Args:
            dataset: a name or a TOML path. root: its folder; "" for where the training had it, or the descriptor's own.
        """
        dataset = _as_in_recipes(dataset or self.recipe.target)
        val_list = self.recipe.val_list if dataset == self.recipe.target and split == "val" else ""
        place = root or self._root_of(dataset)
        return evaluation_set(self.table_name, self.table, protocol.input, dataset, place, split, val_list, progress)

    def all_images(
        self, dataset: str = "", root: str = "", split: str = "train", progress: Count = ignore_count
    ) -> tuple[Dataset, Path, list[str]]:
        """Every image of a split of any dataset, or of a folder, at the network's size: see `sda.data.evaluation.all_images`."""
        dataset = _as_in_recipes(dataset or self.recipe.target)
        place = root or self._root_of(dataset)
        return all_images(self.table_name, self.table, self.protocol().input, dataset, place, split, progress)

    def _root_of(self, dataset: str) -> str:
        """Where the training had a dataset; "" for one that it did not have."""
        r = self.recipe
        return {r.source: r.source_root, r.target: r.target_root}.get(dataset, "")

    def predict(
        self, image, size: str | tuple[int, int] = "fit", scales: tuple[float, ...] = (1.0,), flip: bool = False
    ) -> Prediction:
        """Segment one image of any size.

        Args:
            image: a path, a PIL image, or an array (H, W, 3) or (H, W), uint8 RGB or grey.
            size: of the network's input. "eval": as the run is scored, whatever the image's shape; "fit": the same for an image
                of about that shape, another keeps its own, with the shorter side of the training's images; "native": the
                image's own; or (height, width). What has more than twice the training's pixels then is taken in overlapping
                windows (but for "eval").
            scales, flip: average the probabilities over scales of it and over its mirror image.

        Raises:
            SdaError: no such file, or not an image.
        """
        image = as_picture(image)
        protocol = replace(self.fit(image.size[::-1], size), scales=scales, flip=flip)
        return self.segment(image, protocol)

    def fit(self, image: tuple[int, int], size: str | tuple[int, int] = "fit") -> Protocol:
        """How an image of (height, width) is taken (see `predict`)."""
        own = self.protocol()
        if size == "eval" or (size == "fit" and own.input and _alike(image, own.input)):
            return own
        trained = self.recipe.input_size or self.recipe.crop_size
        if size == "fit" and self.recipe.input_size:
            factor = min(trained) / min(image)
            size = tuple(max(32, round(side * factor)) for side in image)
        elif size in ("fit", "native"):
            size = image
        large = size[0] * size[1] > LARGE * trained[0] * trained[1]
        return Protocol(tuple(size), window=self.recipe.crop_size if large else None)

    def segment(self, image: Image.Image, protocol: Protocol) -> Prediction:
        """The prediction for an RGB picture, resized to the protocol's input, at the picture's own size."""
        return self.segment_all([image], protocol)[0]

    def segment_all(self, images: list[Image.Image], protocol: Protocol) -> list[Prediction]:
        """The same for several pictures of one size, at once."""
        own = images[0].size[::-1]
        inputs = [resize_image(image, protocol.input) for image in images] if protocol.input else images
        pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in inputs]).to(self.device)
        shrink = min(1.0, math.sqrt(VALUES / (len(self.table.names) * math.prod(own))))
        size = tuple(max(1, int(side * shrink)) for side in own)
        logits = predict_logits(self.network, pixels, size, protocol)
        return [Prediction(*(resize_nearest(part, own) for part in _decide(one)), self.table) for one in logits]


def _as_in_recipes(dataset: str) -> str:
    """A dataset as a run's recipe names it: a name, or the absolute path of a TOML file."""
    return os.path.abspath(dataset) if dataset.endswith(".toml") else dataset


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same shape, but for 5 %."""
    return abs(math.log(one[0] * other[1] / (one[1] * other[0]))) < math.log(1.05)


def _decide(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Train ids (uint8) and their probability (float32) from logits (C, H, W), by parts: what is big is the logits alone."""
    labels, confidence = [], []
    for rows in logits.split(256, dim=1):
        labels.append(rows.argmax(dim=0).byte())
        confidence.append(rows.softmax(dim=0).amax(dim=0))
    return torch.cat(labels).cpu().numpy(), torch.cat(confidence).cpu().numpy()


def as_picture(image) -> Image.Image:
    """An RGB picture of a path, a PIL image or an array (see `Run.predict`). SdaError when it is none."""
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise SdaError(f"an array {array.shape} of {array.dtype}: expected uint8, (H, W, 3) RGB or (H, W) grey")
    return Image.fromarray(array).convert("RGB")


def load(folder: str | Path, checkpoint: str = "last", network: str = "student", device: str = "auto") -> Run:
    """A trained run from its folder (or the path of one of its checkpoints), or a network that sda export wrote (its folder, or
    the .safetensors file).

    Args:
        checkpoint: "last", or "best" (see the recipe's best_by). network: "student", which scores are reported of, or "teacher".
        device: auto, cpu, cuda or mps.

    Raises:
        SdaError: no such run, or a checkpoint that cannot be read or has no teacher.
    """
    return load_run(Path(folder), checkpoint, pick_device(device), network)


def load_run(folder: Path, which: str, device: torch.device, network_name: str = "student") -> Run:
    """See `load`."""
    path = _file(folder, which)
    folder = path.parent
    if path.suffix == ".safetensors":
        state = checkpoint.load_alone(path)
        held = state.get("checkpoint", "last"), state.get("network", "student")
        for asked, default, holds in zip((which, network_name), ("last", "student"), held, strict=True):
            if asked not in (default, holds):
                raise SdaError(f"{path}: there is no {asked} network in it: it holds the {held[1]} of {held[0]}.pt alone")
        which, network_name = held
    else:
        which, state = path.stem, checkpoint.load(path)
    missing = {"recipe", "table", "classes", "student", "preprocessing", "weights_format", "step"} - state.keys()
    if missing:
        raise SdaError(f"{path}: not a checkpoint of a training: it lacks {', '.join(sorted(missing))}")
    recipe = check(Recipe, state["recipe"], f"{path}: recipe")
    table = check(ClassTable, {"colors": state["classes"]}, f"{path}: classes")
    weights = state["student"]
    if network_name == "teacher" and path.suffix == ".pt":
        prefix = "teacher.model."
        weights = {k.removeprefix(prefix): v for k, v in state.get("method", {}).items() if k.startswith(prefix)}
        if not weights:
            reason = "best.pt keeps the student alone" if which == "best" else f"method {recipe.method} has none"
            raise SdaError(f"{path}: there is no teacher in it: {reason}")
    preprocessing = Preprocessing.from_dict(state["preprocessing"])
    network = build_network(recipe, len(table.names), state["weights_format"], preprocessing)
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise SdaError(f"{path}: its weights do not fit its recipe: {str(error).splitlines()[0]}") from None
    network = network.to(device).eval().requires_grad_(False)
    return Run(
        *(folder, which, network_name, recipe, table, state["table"], network, state["weights_format"], state["step"]),
        splits=state.get("splits", {}),
    )


def _file(folder: Path, which: str) -> Path:
    """The file that a run's network is in. SdaError when there is no such folder."""
    if folder.is_file() and folder.suffix in (".pt", ".safetensors"):
        return folder
    if not folder.is_dir():
        raise SdaError(f"{folder}: no such run folder")
    exported = folder / checkpoint.ALONE
    return exported if exported.exists() and not (folder / "last.pt").exists() else folder / f"{which}.pt"
