"""Load a trained run, to evaluate it and to predict with it."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sda.data import descriptor as descriptors
from sda.data.assemble import Data, source_maps
from sda.data.dataset import Dataset
from sda.data.descriptor import ClassTable
from sda.data.evaluation import all_images, evaluation_set
from sda.data.files import FileError, read_image
from sda.errors import SdaError
from sda.models.build import build_network
from sda.models.network import SegmentationNetwork
from sda.models.preprocessing import Preprocessing
from sda.models.stored import fit
from sda.models.weights import hub
from sda.pictures import resize_image, resize_nearest
from sda.protocol import Protocol, preset
from sda.recipe import Recipe
from sda.runs import checkpoint as checkpoints
from sda.runs import copies
from sda.scoring.inference import predict_logits
from sda.shelf import check
from sda.sizes import SMALLEST, fitted
from sda.system.console import Count, ignore_count
from sda.system.devices import pick_device

LARGE = 2.0  # images with more than this many times the pixels of the training images are processed in windows
NARROW = 16  # images that would be enlarged to more than this many times the pixels of the training images are refused
VALUES = 2**29  # maximum number of logits per image (2 GiB); larger images are predicted at a smaller size and enlarged


@dataclass(frozen=True)
class Prediction:
    """A network's prediction for one image.

    Attributes:
        labels: (H, W) uint8 train ids, at the image's size. confidence: (H, W) float32, probability of that class, 0 to 1.
        table: names and colours of the classes, in the order of the train ids.
    """

    labels: np.ndarray
    confidence: np.ndarray
    table: ClassTable

    def __repr__(self) -> str:
        height, width = self.labels.shape
        present = [self.table.names[index] for index in np.unique(self.labels)]
        return f"Prediction({height}x{width}, mean confidence {self.confidence.mean():.2f}: {', '.join(present)})"


@dataclass(frozen=True)
class Run:
    """A trained network in eval mode, and how it was trained.

    Attributes:
        folder: the run folder. which: checkpoint, "last" or "best". network_name: "student" or "teacher".
        table, table_name: the class table and its name. weights_format: format of the pretrained weights.
        step: training step of the checkpoint. splits: stream → the images that it was trained or validated on.
        best_by: the criterion that chose it, if it is best.pt.
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
    best_by: str = ""

    def __repr__(self) -> str:
        r = self.recipe
        what = f"{self.network_name} of {self.which}.pt, step {self.step}"
        return f"Run({str(self.folder)!r}: {what}, {r.network} on {r.backbone}, {len(self.table.names)} classes, {self.device})"

    @property
    def device(self) -> torch.device:
        return self.network.device

    def protocol(self, name: str = "", scales: tuple[float, ...] = (1.0,), flip: bool = False) -> Protocol:
        """Return a preset protocol for this run (see `sda.protocol.preset`), by default that of its recipe."""
        r = self.recipe
        return preset(name or r.protocol, r.network, r.target, r.input_size, r.crop_size, scales, flip, r.input_fit)

    def labelled_images(
        self, protocol: Protocol, dataset: str = "", root: str = "", split: str = "val", progress: Count = ignore_count
    ) -> Data:
        """Return the labelled images of a dataset's split, with labels in the run's classes, at a protocol's input size.

        Args:
            dataset: a name or a TOML path; "" for the run's target.
            root: folder of the dataset; "" for the one used in training, or else the dataset's default.
        """
        dataset = self._as_in_recipe(dataset)
        own = dataset == self.recipe.target and split == "val"
        return evaluation_set(
            *(self.table_name, self.table, protocol.input, dataset, root or self._root_of(dataset), split, progress),
            maps=self._maps_of(dataset),
            fit=protocol.fit,
            held_out=self.splits.get("val", []) if own else (),
            of_train=own and bool(self.recipe.val_list),
        )

    def all_images(
        self, dataset: str = "", root: str = "", split: str = "train", progress: Count = ignore_count
    ) -> tuple[Dataset, Path, list[str]]:
        """Return all images of a dataset's split, or of a folder, at the network's input size.

        See `sda.data.evaluation.all_images`.
        """
        dataset = self._as_in_recipe(dataset)
        place = root or self._root_of(dataset)
        own, maps = self.protocol(), self._maps_of(dataset)
        return all_images(self.table_name, self.table, own.input, dataset, place, split, progress, maps=maps, fit=own.fit)

    def _as_in_recipe(self, dataset: str) -> str:
        """Return a dataset as the recipe names it: a name, or the absolute path of a TOML file. "": the target."""
        target = self.recipe.target
        if not dataset.endswith(".toml"):
            return dataset or target
        path = copies.find(self.folder, os.path.abspath(dataset))
        same = Path(path).name == Path(target).name and descriptors.load(path).meaning() == descriptors.load(target).meaning()
        return target if same else path

    def _maps_of(self, dataset: str) -> dict[str, dict[str, str]]:
        """Return the maps of a dataset's classes to those of the run (see `Classes.maps`)."""
        return {} if dataset == self.recipe.target else source_maps(self.recipe)

    def _root_of(self, dataset: str) -> str:
        """Return the folder of a dataset that was used in training; "" for other datasets."""
        r = self.recipe
        return {**{source.dataset: source.root for source in r.sources}, r.target: r.target_root}.get(dataset, "")

    def predict(
        self, image, size: str | tuple[int, int] = "fit", scales: tuple[float, ...] = (1.0,), flip: bool = False
    ) -> Prediction:
        """Segment one image of any size.

        Args:
            image: a path, a PIL image, or an array (H, W, 3) or (H, W), uint8 RGB or grey.
            size: size of the network's input, (height, width) or one of:
                "eval": as in the evaluation of the run, whatever the image's aspect ratio;
                "fit": the same if the image has nearly the aspect ratio of the evaluation's size, or if the recipe has
                fit = "inside"; otherwise the image keeps its aspect ratio, with the shorter side of that size;
                "native": the image's own size, but each side at least 32.
                Except with "eval", inputs with more than twice the pixels of the training images are processed in overlapping
                windows.
            scales, flip: average the probabilities over these scales of the input, and over its mirror image.

        Raises:
            SdaError: the file is missing or not an image, the array has another type or shape, or see `fit`.
        """
        picture = as_picture(image)
        width, height = picture.size
        protocol = replace(self.fit((height, width), size), scales=scales, flip=flip)
        return self.segment(picture, protocol)

    def fit(self, image: tuple[int, int], size: str | tuple[int, int] = "fit") -> Protocol:
        """Return the protocol for an image of size `image`, (height, width); for `size` see `predict`.

        Raises:
            FileError: the image is so narrow that its shorter side cannot be enlarged to that of the training images.
        """
        own = self.protocol()
        if size == "eval" or (size == "fit" and own.input and (own.fit == "inside" or _alike(image, own.input))):
            return own
        trained = self.recipe.input_size or self.recipe.crop_size
        if size == "fit" and self.recipe.input_size:
            factor = min(trained) / min(image)
            height, width = (max(SMALLEST, round(side * factor)) for side in image)
            if height * width > max(math.prod(image), NARROW * math.prod(trained)):
                raise FileError(
                    f"an image of {image[0]}x{image[1]} pixels (height x width) is too narrow: it would be enlarged to "
                    f"{height}x{width}; choose another size (--size native, eval or HEIGHTxWIDTH)"
                )
        elif size in ("fit", "native"):
            height, width = (max(SMALLEST, side) for side in image)
        else:
            assert not isinstance(size, str), size
            height, width = size
        large = height * width > LARGE * trained[0] * trained[1]
        return Protocol((height, width), window=self.recipe.crop_size if large else None)

    def segment(self, image: Image.Image, protocol: Protocol) -> Prediction:
        """Predict for an RGB picture of any size; the result has the size of the picture."""
        return self.segment_all([image], protocol)[0]

    def segment_all(self, images: list[Image.Image], protocol: Protocol) -> list[Prediction]:
        """Predict for several RGB pictures of the same size, as one batch."""
        own = images[0].size[::-1]
        inputs = [resize_image(image, fitted(own, protocol.input, protocol.fit)) for image in images]
        pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in inputs]).to(self.device)
        shrink = min(1.0, math.sqrt(VALUES / (len(self.table.names) * math.prod(own))))
        size = tuple(max(1, int(side * shrink)) for side in own)
        decided = [_decide(logits) for logits in predict_logits(self.network, pixels, size, protocol)]
        return [
            Prediction(resize_nearest(labels, own), resize_nearest(confidence, own), self.table) for labels, confidence in decided
        ]


def _alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether the aspect ratios of two sizes differ by less than 5 %."""
    return abs(math.log(one[0] * other[1] / (one[1] * other[0]))) < math.log(1.05)


def _decide(logits: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Compute train ids (uint8) and their probability (float32) from logits (C, H, W), in strips of rows to save memory."""
    labels, confidence = [], []
    for rows in logits.split(256, dim=1):
        labels.append(rows.argmax(dim=0).byte())
        confidence.append(rows.softmax(dim=0).amax(dim=0))
    return torch.cat(labels).cpu().numpy(), torch.cat(confidence).cpu().numpy()


def as_picture(image) -> Image.Image:
    """Convert a path, a PIL image or an array (see `Run.predict`) to an RGB picture.

    Raises:
        SdaError: the file is missing or not an image, or the array has another type or shape.
    """
    if isinstance(image, str | os.PathLike):
        if not os.path.exists(image):
            raise SdaError(f"{os.fspath(image)}: no such file")
        try:
            return read_image(Path(image))
        except FileError as error:
            raise SdaError(error.fault) from None
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise SdaError(f"array of shape {array.shape} and type {array.dtype}: expected uint8, (H, W, 3) RGB or (H, W) grey")
    return Image.fromarray(array).convert("RGB")


def load(folder: str | Path, checkpoint: str = "last", network: str = "student", device: str | torch.device = "auto") -> Run:
    """Load a trained run, or a network written by sda export.

    Args:
        folder: a run folder or one of its checkpoints; the folder or .safetensors file of an exported network; or
            hf://OWNER/NAME, such a network on the Hugging Face hub.
        checkpoint: "last", or "best" (see the recipe's best_by).
        network: "student", the network that is evaluated in training, or "teacher".
        device: auto, cpu, cuda or mps.

    Raises:
        SdaError: no such run, or a checkpoint that cannot be read or has no teacher.
    """
    path = _file(hub.fetch(folder) if hub.is_on_hub(folder) else Path(folder), checkpoint)
    try:
        state = checkpoints.load(path)
    except SdaError as error:
        raise SdaError(f"{error}{checkpoints.others(path)}") from None
    if path.suffix == ".safetensors":
        held = state.get("checkpoint", "last"), state.get("network", "student")
        for asked, default, holds in zip((checkpoint, network), ("last", "student"), held, strict=True):
            if asked not in (default, holds):
                raise SdaError(f"{path}: cannot load the {asked} network: the file only has the {held[1]} of {held[0]}.pt")
        checkpoint, network = held
    else:
        checkpoint = path.stem
    recipe = copies.found(path.parent, check(Recipe, state["recipe"], f"{path}: recipe"))
    table = check(ClassTable, {"colors": state["classes"]}, f"{path}: classes")
    weights = state["student"]
    if network == "teacher" and path.suffix == ".pt":
        prefix = "teacher.model."
        weights = {k.removeprefix(prefix): v for k, v in state.get("method", {}).items() if k.startswith(prefix)}
        if not weights:
            reason = "best.pt only has the student" if checkpoint == "best" else f"method {recipe.method} has none"
            raise SdaError(f"{path}: the checkpoint has no teacher: {reason}")
    try:
        preprocessing = Preprocessing.from_dict(state["preprocessing"])
        model = build_network(recipe, len(table.names), state["weights_format"], preprocessing)
    except SdaError as error:
        raise SdaError(f"{path}: {error}") from None
    fit(model, weights, f"{path}: the weights do not fit the network of the recipe")
    model = model.to(pick_device(device) if isinstance(device, str) else device).eval().requires_grad_(False)
    return Run(
        *(path.parent, checkpoint, network, recipe, table, state["table"], model, state["weights_format"], state["step"]),
        splits=state.get("splits", {}),
        best_by=(state.get("best") or {}).get("by", "") if checkpoint == "best" else "",
    )


def _file(folder: Path, checkpoint: str) -> Path:
    """Return the file that contains a run's network. Raise SdaError if there is no such folder."""
    if folder.is_file() and folder.suffix in (".pt", ".safetensors"):
        return folder
    if folder.is_file():
        raise SdaError(f"{folder}: not a network of sda; give a run folder, a checkpoint (.pt) or an exported .safetensors file")
    if not folder.is_dir():
        raise SdaError(f"{folder}: no such run folder")
    exported = folder / checkpoints.MODEL_FILE
    return exported if exported.exists() and not (folder / "last.pt").exists() else folder / f"{checkpoint}.pt"
