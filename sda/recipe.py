"""Recipes: each describes one experiment in a flat, strictly validated TOML file. The fields are also command-line options."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from sda import shelf
from sda.errors import SdaError
from sda.methods.settings import (
    SETTINGS,
    AllSettings,
    Count,
    NonNegative,
    Point,
    Reached,
    Steps,
    Streams,
    SupervisedSettings,
    Unit,
    in_steps,
)
from sda.models.names import NETWORKS, TORCHVISION
from sda.protocol import PRESETS, Protocol, preset
from sda.scoring.criteria import CRITERIA
from sda.sizes import LARGEST, Fit, check_size, parse_size, size_text


def _count_or_all(value: object) -> object:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 10**9):
        return value
    raise ValueError('expected a whole number from 0 to 10^9, or "all"')


def _stride(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value in (0, 8, 16, 32):
        return value
    raise ValueError("expected 0, 8, 16 or 32")


def _backbone(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", value):
        raise ValueError(f"expected {', '.join(TORCHVISION)}, or an encoder of timm (sda backbones lists them)")
    return value


def _temperature(value: float) -> float:
    if value and value < 1e-4:
        raise ValueError("expected 0, or at least 0.0001")
    return value


def _size(value: object) -> object:
    return check_size(value)


def _size_or_native(value: object) -> object:
    return check_size(value, ("native",))


def _text_or_texts(value: object) -> object:
    """Return a text, or the texts of a list: a list of one as its text, and one that is empty, or has only empty texts, as ""."""
    given = value if isinstance(value, list) else [value]
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given):
        raise ValueError("expected a text, or a list of texts")
    if any(len(text) > shelf.LONGEST_TEXT for text in texts):
        raise ValueError(f"expected texts of at most {shelf.LONGEST_TEXT} characters")
    if not any(texts):
        return ""
    return texts[0] if len(texts) == 1 else texts


def _one_of(names: Iterable[str]) -> AfterValidator:
    """Check that a value is one of `names`, which may grow later."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return value

    return AfterValidator(check)


Size = Annotated[list[int], PlainValidator(_size)]
SizeOrNative = Annotated[list[int] | str, PlainValidator(_size_or_native)]
Images = Annotated[int, Field(ge=0, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
OneOrSeveral = Annotated[str | list[str], PlainValidator(_text_or_texts)]
Weight = Annotated[float, Field(gt=0, le=10**6, allow_inf_nan=False)]


@dataclass(frozen=True)
class Source:
    """One source dataset of a recipe.

    Attributes:
        dataset: a name or a TOML path. root: its folder or pack; "" for the descriptor's own.
        share: its share of the source images that are drawn, exact; the shares of all sources add up to 1.
        images: the name of the list of its images in a run: source, or source-NAME if there are several.
    """

    dataset: str
    root: str
    share: Fraction
    images: str

    @property
    def name(self) -> str:
        """The name of the dataset, or of its TOML file without the suffix."""
        return Path(self.dataset).stem


# The sections of a recipe, in the order in which files and --help show them: `SECTIONS`.


class _Streams(shelf.Strict):
    description: str = Field("", description="one line about the experiment")
    expected: str = Field("", description="expected score and its source")
    source: OneOrSeveral = Field("", description="labelled source dataset, or a list of them: names or TOML paths; empty: none")
    source_weights: list[Weight] = Field(
        [], description="how often to draw from each source, relative to the others; empty: equally often"
    )
    target: str = Field(description="target dataset: a name or a TOML path")
    classes: str = Field("", description="class table to train with; empty: the target's")
    source_map: dict[str, str] = Field(
        {}, max_length=1000, description='classes of the sources = classes to train, such as {tarmac = "road"}'
    )
    allow_missing_classes: bool = Field(
        False,
        description="train although most labelled pixels of a source are of classes without a counterpart, or the target's "
        "labels have less than half of the classes",
    )
    labels: Annotated[int | str, PlainValidator(_count_or_all)] = Field(description="number of labelled target images, or all")
    split: str = Field("", description="text file of labelled target images, one relative path per line; overrides labels")
    split_seed: Seed = Field(0, description="seed of the selection of labelled images")
    val_list: str = Field("", description="text file of target training images for validation, if the target has no val split")
    val_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2,
        description="share of the labelled target images to hold out for validation, if the target has no val split and there is "
        "no val_list; 0: an error instead",
    )
    unlabelled: str = Field(
        "", description="unlabelled images: target, for the target's other training images, or a folder; empty: none"
    )
    doctor: bool = Field(True, description="skip the pairs that sda doctor reported as bad")
    bad_files: Literal["error", "skip"] = Field("error", description="unusable images or labels: stop, or skip and report them")
    root: str = Field("", description="folder with the datasets, each a folder or pack named after the dataset, and weights/")
    source_root: OneOrSeveral = Field("", description="folder or pack of the source dataset, or of each, if not root/NAME")
    target_root: str = Field("", description="folder or pack of the target dataset, if not root/NAME")


class _Images(shelf.Strict):
    size: SizeOrNative = Field(description="HEIGHTxWIDTH to resize target images to; native: do not resize")
    source_size: SizeOrNative | None = Field(None, description="HEIGHTxWIDTH to resize source images to; empty: as size")
    fit: Fit = Field(
        "stretch",
        description="how images are resized to size, source_size and eval_size: stretch, to exactly this size, which squashes "
        "images of another aspect ratio; inside: as large as fits inside, without squashing them",
    )
    crop: Size | None = Field(None, description="HEIGHTxWIDTH of random crops; empty: whole images")
    batch_source: Count = Field(4, description="source images per step")
    batch_labelled: Count = Field(4, description="labelled target images per step")
    batch_unlabelled: Count = Field(2, description="unlabelled target images per step")
    accumulate: Count = Field(
        1, description="process each step's images in this many parts, to save memory; batch norms see one part at a time"
    )
    alternate: bool = Field(
        False, description="alternate between source and labelled target images from step to step; false: both in every step"
    )
    target_steps: Point = Field(0, description="last steps without source images, on the target's images alone")
    rare_class_sampling: Annotated[NonNegative, AfterValidator(_temperature)] = Field(
        0.0, description="temperature for drawing labelled images by class, rare classes more often (DAFormer: 0.01); 0: off"
    )
    rare_class_pixels: Annotated[int, Field(ge=0, le=LARGEST**2)] = Field(
        0,
        description="pixels that the drawn class should have in a crop, which is the best of up to ten (DAFormer: 1500)",
    )
    in_memory: bool = Field(False, description="decode and resize each image once and keep it in memory")
    workers: Annotated[int, Field(ge=0, le=512)] = Field(2, description="loader processes per stream")


class _Network(shelf.Strict):
    encoder: str = Field("", description="variant of the recipe with another encoder, such as dinov2; empty: as the recipe says")
    network: Annotated[str, _one_of(NETWORKS)] = Field("deeplabv3plus", description=", ".join(NETWORKS))
    backbone: Annotated[str, AfterValidator(_backbone)] = Field(
        description=f"encoder: torchvision's {', '.join(TORCHVISION)}, or any of timm (sda backbones lists them)"
    )
    output_stride: Annotated[int, PlainValidator(_stride)] = Field(
        0, description="output stride of the backbone, 8, 16 or 32, if it has a choice; 0: the network's default (v2: 8, v3+: 16)"
    )
    drop_path: Unit | None = Field(
        None, description="rate of stochastic depth of an encoder of timm, 0 to 1; empty: timm's default"
    )
    freeze: Literal["none", "encoder"] = Field(
        "none", description="encoder: train the head only, on fixed features of the backbone"
    )
    lora: Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        description="rank of low-rank adapters, which alone are trained in a vision transformer (LoRA); 0: train all its weights",
    )
    precision: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32",
        description="precision of the convolutions (autocast); auto: bfloat16 where the device is fast at it, else float32; "
        "float16 scales gradients, for older GPUs",
    )
    sync_norm: bool = Field(
        True,
        description="several processes: batch norms use the images of all processes; false: of their own process (faster)",
    )
    recompute: bool = Field(
        False, description="recompute most activations in the backward pass: less memory, about a third slower"
    )
    compile: bool = Field(False, description="torch.compile the networks: slow start (minutes), faster steps on a GPU")
    freeze_norm: Literal["none", "affine", "all"] = Field(
        "none", description="freeze the backbone's batch norms; affine: scales and offsets (DeepLabv2), all: statistics too"
    )
    weights: str = Field(
        "imagenet",
        description="pretrained weights: imagenet (or timm's default), coco (torchvision), none, or a file, run or folder",
    )
    weights_format: Literal["auto", "torchvision", "caffe"] = Field(
        "auto",
        description="format of a file for torchvision's backbones: preprocessing and strides; auto: detect by tensor names",
    )


class _Schedule(shelf.Strict):
    steps: Annotated[Steps, Field(gt=0)] = Field(description="training steps")
    seed: Seed = Field(0, description="seed of initialisation, streams and augmentation")
    learning_rate: NonNegative = Field(2e-4, description="learning rate of the backbone at step 0")
    head_rate_factor: NonNegative = Field(1.0, description="learning rate of all other layers, as a multiple of the backbone's")
    layer_decay: Unit = Field(1.0, description="learning rate of each backbone stage, as a multiple of that of the next stage")
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="if the loss is NaN or infinite: stop, or skip the step and count it (waits for the device)"
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd as in the paper; adamw learns faster in short runs")
    momentum: Unit = Field(0.9, description="momentum of SGD")
    weight_decay: NonNegative = Field(5e-4, description="weight decay of the optimizer")
    warmup_steps: Point = Field(0, description="steps in which the learning rates rise linearly from 0; 0: no warm-up")
    clip_gradient: NonNegative = Field(0.0, description="largest norm of the gradient, which is scaled down to it; 0: any")
    poly_power: NonNegative = Field(0.9, description="power p of the learning-rate schedule, (1 - step/steps) ^ p")
    method: Annotated[str, _one_of(SETTINGS)] = Field(
        "supervised", description=f"{', '.join(SETTINGS)}; class_bank is the paper's, mean_teacher the same without the bank"
    )


class _Evaluation(shelf.Strict):
    eval_size: SizeOrNative | None = Field(
        None, description="HEIGHTxWIDTH of the network's input in evaluation, or native; empty: as size"
    )
    eval_every: Steps = Field(0, description="steps between evaluations; 0: only at the end")
    checkpoint_every: Steps = Field(500, description="steps between checkpoints; 0: only at evaluations")
    board: Literal["none", "tensorboard", "wandb"] = Field(
        "none", description="log curves and pictures during training; wandb is configured by its environment variables"
    )
    protocol: Annotated[str, _one_of(PRESETS)] = Field(
        "whole", description="evaluation protocol; whole: whole images at eval_size, labels at their original size"
    )
    hold_out: Images = Field(0, description="labelled target images to hold out of training, to choose a checkpoint with")
    best_by: Annotated[str, _one_of(["miou", *CRITERIA])] = Field(
        "miou", description=f"criterion that selects best.pt: {', '.join(CRITERIA)}, or miou, which uses the validation labels"
    )


SECTIONS: dict[str, type[shelf.Strict]] = {
    "Data": _Streams,
    "Images and batches": _Images,
    "Network": _Network,
    "Schedule": _Schedule,
    "Method": AllSettings,
    "Evaluation": _Evaluation,
}


class Recipe(_Evaluation, AllSettings, _Schedule, _Network, _Images, _Streams):
    """Everything that defines a run. Its streams decide the setting:

    source-only: source, labels 0. target-only: no source, labels N. joint: source, labels N.
    SSL: no source, labels N, unlabelled. UDA: source, labels 0, unlabelled. semi-supervised DA: all three.
    oracle: no source, labels "all".
    """

    advice: ClassVar[dict[str, str]] = {
        **{
            name: f"not a field of recipes but an option of the command: --{name.replace('_', '-')} {value}".rstrip()
            for name, value in {"device": "cuda", "out": "DIR", "resume": "auto", "stop_at": "STEP", "json": ""}.items()
        },
        **{name: f"an option of sda ablate: --{name}" for name in ("seeds", "jobs")},
        **{
            name: f"write {field} instead"
            for field, names in {
                "steps": ("epochs", "iterations", "iters", "max_iters", "max_steps"),
                "learning_rate": ("lr", "base_lr"),
                "batch_source, batch_labelled or batch_unlabelled": ("batch_size", "batch"),
                "workers": ("num_workers",),
                "precision": ("amp", "mixed_precision", "dtype", "fp16"),
                "size": ("image_size", "img_size", "input_size", "resize"),
                "crop": ("crop_size",),
                "network": ("model", "arch", "architecture"),
                "target": ("dataset",),
                "weights": ("pretrained",),
            }.items()
            for name in names
        },
    }

    @property
    def streams(self) -> Streams:
        """The streams in use."""
        labelled = self.labels != 0 or bool(self.split)
        return Streams(bool(self.source), labelled, bool(self.unlabelled), self.alternate, self.target_steps > 0)

    @property
    def method_settings(self) -> SupervisedSettings:
        """The settings of the recipe's method."""
        kind = SETTINGS[self.method]
        return kind.model_construct(**{name: self.in_steps(name) for name in kind.model_fields})

    def in_steps(self, name: str) -> Any:
        """Return the value of a field. A share of all steps becomes a number of steps."""
        value = getattr(self, name)
        return in_steps(value, self.steps) if name in POINTS else value

    @property
    def sources(self) -> list[Source]:
        """The source datasets, in order."""
        names = _listed(self.source)
        roots = _listed(self.source_root) or [""] * len(names)
        weights = [Fraction(weight) for weight in self.source_weights] or [Fraction(1)] * len(names)
        return [
            Source(name, root, weight / sum(weights), "source" if len(names) == 1 else f"source-{Path(name).stem}")
            for name, root, weight in zip(names, roots, weights, strict=False)  # the recipe may have a root and no source
        ]

    @model_validator(mode="after")
    def _sources_fit(self) -> "Recipe":
        names = [Path(source).stem for source in _listed(self.source)]
        if "" in names:
            raise ValueError(f"source = {self.source}: a name is empty; write each dataset's name or the path of its TOML file")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"source has {twice[0]} twice: name each dataset once; source_weights sets how often each is drawn, and two TOML "
                "files need different names"
            )
        for field, values, each in (
            ("source_root", _listed(self.source_root), '"DIR/{}"'),
            ("source_weights", self.source_weights, "1"),
        ):
            if names and values and len(values) != len(names):
                example = ", ".join(each.format(name) for name in names)
                raise ValueError(
                    f"{field} and source differ in length, {len(values)} and {len(names)} ({', '.join(names)}): give a value for "
                    f"each source, in the same order, such as {field} = [{example}], or leave it empty"
                )
        return self

    @model_validator(mode="after")
    def _streams_fit(self) -> "Recipe":
        streams = self.streams
        if not streams.source and not streams.labelled:
            raise ValueError("no labelled images: set source, or labels > 0")
        if self.labels == "all" and not self.split and self.unlabelled == "target":
            raise ValueError(
                'labels = "all" leaves no unlabelled target images: set labels to a number, or leave unlabelled empty'
            )
        if self.alternate and not (streams.source and streams.labelled):
            raise ValueError("alternate = true needs both source images and labelled target images")
        if self.target_steps and streams.source and not streams.labelled:
            raise ValueError(f"target_steps = {self.target_steps}: the last steps would have no labels; set labels > 0")
        if self.in_steps("target_steps") >= self.steps and streams.source:
            raise ValueError(
                f"target_steps = {self.target_steps} leaves no step with source images (steps = {self.steps}): lower it, or set "
                'source = ""'
            )
        if self.freeze == "encoder" and self.lora:
            raise ValueError(
                f"freeze = encoder leaves no adapters to train: set lora = 0 instead of {self.lora}, or freeze = none"
            )
        if self.weights_format != "auto" and self.weights in ("imagenet", "coco", "none"):
            raise ValueError(f"weights_format is only for weights files, not for weights = {self.weights}: omit it")
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> "Recipe":
        settings = self.method_settings
        settings.check(self.method, self.streams)
        if self.bank and "bank" not in type(settings).model_fields:
            raise ValueError(f"bank = {self.bank}: method {self.method} has no bank: omit it, or set method = class_bank")
        if settings.mixes_unlabelled and self.batch_unlabelled == self.accumulate:
            at_least = "" if self.accumulate == 1 else f" times accumulate = {self.accumulate}"
            raise ValueError(
                f"batch_unlabelled = {self.batch_unlabelled} is too small for ClassMix, which needs two images; set at least "
                f"2{at_least}, or classmix_unlabelled = 0"
            )
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> "Recipe":
        streams = self.streams
        used = {"batch_source": streams.source, "batch_labelled": streams.labelled, "batch_unlabelled": streams.unlabelled}
        for name in (name for name, there in used.items() if there):
            if getattr(self, name) % self.accumulate:
                raise ValueError(f"accumulate = {self.accumulate} must divide {name} = {getattr(self, name)}")
        return self

    @model_validator(mode="after")
    def _criterion_can_be_measured(self) -> "Recipe":
        if self.best_by == "held_out" and not self.hold_out:
            raise ValueError("best_by = held_out needs held-out images: set hold_out > 0")
        if self.best_by == "agreement" and not (self.unlabelled and self.eval_every):
            raise ValueError("best_by = agreement compares student and teacher: it needs unlabelled images and eval_every > 0")
        if self.hold_out and isinstance(self.labels, int) and not self.split and self.hold_out >= self.labels:
            raise ValueError(
                f"hold_out = {self.hold_out} leaves none of the {self.labels} labelled images to train on: reduce it"
            )
        return self

    @model_validator(mode="after")
    def _crops_fit(self) -> "Recipe":
        for name, size in (("size", self.size), ("source_size", self.source_size or self.size)):
            if not self.crop and not isinstance(size, list):
                raise ValueError(f'{name} = "native" leaves images of different sizes: set crop')
            if isinstance(size, list) and any(crop > side for crop, side in zip(self.crop_size, size, strict=True)):
                raise ValueError(
                    f"crop = {size_text(self.crop_size)} does not fit into {name} = {size_text(size)}: reduce it; source and "
                    "target share one crop"
                )
        height, width = self.crop_size
        if self.rare_class_pixels > height * width:
            raise ValueError(
                f"rare_class_pixels = {self.rare_class_pixels}: a crop of {size_text(self.crop_size)} has only {height * width} "
                "pixels: reduce it"
            )
        return self

    def ignored_fields(self, names: Iterable[str]) -> list[str]:
        """Return the given fields that this recipe ignores, because of its method or its other settings."""
        settings = self.method_settings
        # the network reads `released` with every method
        idle = AllSettings.model_fields.keys() - type(settings).model_fields.keys() - {"released"}
        idle |= settings.ignored()
        if self.optimizer != "sgd":
            idle.add("momentum")
        if len(self.sources) < 2:
            idle.add("source_weights")
        if not self.sources:
            idle.add("target_steps")
        if not self.rare_class_sampling:
            idle.add("rare_class_pixels")
        if not (self.image_size or self.source_image_size or self.input_size):
            idle.add("fit")
        return [name for name in names if name in idle]

    def unreached(self) -> list[str]:
        """Return a sentence about each setting of the method that takes effect only after the last step."""
        settings, found = self.method_settings, []
        for name in type(settings).model_fields.keys() - settings.ignored():
            for mark in type(settings).model_fields[name].metadata:
                if isinstance(mark, Reached) and self.in_steps(name) >= self.steps:
                    where = f"{name} = {getattr(self, name)} is not before the end of the run (steps = {self.steps})"
                    found.append(f"warning: {where}, so {mark.otherwise}: raise steps, or lower {name}")
        return sorted(found)

    def with_absolute_paths(self) -> "Recipe":
        """Return a copy with absolute paths, which is valid in any working directory.

        `root` is resolved into `source_root` and `target_root`, and into `weights` if root/weights/BACKBONE_imagenet.pth (or
        BACKBONE_coco.pth) exists.

        Raises:
            SdaError: the working directory's name is not UTF-8.
        """
        values: dict[str, str | list[str]] = {name: getattr(self, name) for name in (*_PATHS, *_NAMES)}
        values["target_root"] = self._place(self.target, self.target_root)
        values["source_root"] = [self._place(each.dataset, each.root) for each in self.sources] or self.source_root
        local = Path(os.path.expanduser(self.root)) / "weights" / f"{self.backbone}_{self.weights}.pth"
        if self.root and self.weights in ("imagenet", "coco") and local.is_file():
            values["weights"] = str(local)
        paths = {name: _absolute(name, value) for name, value in values.items()}
        return shelf.check(Recipe, {**self.model_dump(), **paths}, "recipe")

    def _place(self, dataset: str, given: str) -> str:
        """Return the folder or pack of a dataset: the given one, else root/NAME; "" if there is no root."""
        if given or not self.root:
            return given
        folder = Path(os.path.expanduser(self.root)) / Path(dataset).stem
        pack = folder.with_name(f"{folder.name}.h5")
        return str(pack if pack.is_file() and not folder.exists() else folder)

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height, width of the training images."""
        size = self.crop or self.size
        assert isinstance(size, list)
        return size[0], size[1]

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height, width to resize target images to; None: do not resize."""
        return _fixed(self.size)

    @property
    def source_image_size(self) -> tuple[int, int] | None:
        """Height, width to resize source images to; None: do not resize."""
        return _fixed(self.source_size or self.size)

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height, width of the network's input in evaluation; None: each image's own size."""
        return _fixed(self.eval_size or self.size)

    @property
    def input_fit(self) -> Fit:
        """How images are resized to `input_size`."""
        return self.fit if self.input_size else "stretch"

    @property
    def scoring(self) -> Protocol:
        """The evaluation protocol."""
        return preset(self.protocol, self.network, self.target, self.input_size, self.crop_size, fit=self.input_fit)

    @property
    def setting(self) -> str:
        """The usual name for the combination of streams in use."""
        streams = self.streams
        if streams.unlabelled:
            return ("semi-supervised DA" if streams.labelled else "UDA") if streams.source else "SSL"
        if streams.source:
            return "joint" if streams.labelled else "source-only"
        return "oracle" if self.labels == "all" and not self.split else "target-only"


def _fixed(size: list[int] | str) -> tuple[int, int] | None:
    return (size[0], size[1]) if isinstance(size, list) else None


SIZES = {"size", "source_size", "crop", "eval_size"}

# Fields that affect neither the trained network nor its score.
IDLE = {"description", "expected", "workers", "in_memory", "checkpoint_every", "board"}

# Fields with a path, and fields with a name or a path.
_PATHS = ("root", "source_root", "target_root", "split", "val_list", "bank")
_NAMES = ("source", "target", "classes", "unlabelled", "weights")


# Fields with a value for each source.
_PER_SOURCE = ("source", "source_root", "source_weights")


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value] if value else []


def _absolute(field: str, value: str | list[str]) -> object:
    """Return the value of a field with absolute paths; names stay names."""
    if isinstance(value, list):
        return [_absolute(field, each) for each in value]
    return value if not value or _is_name(field, value) else os.path.abspath(os.path.expanduser(value))


def _is_name(field: str, value: str) -> bool:
    if field in ("unlabelled", "weights"):
        return value in ("target", "imagenet", "coco", "none") or value.startswith("hf://")
    return field in _NAMES and not value.endswith(".toml")


def load(name: str, changes: dict | None = None) -> Recipe:
    """Load a recipe by name or TOML path, and apply `changes` (field → value).

    A table `[when.FIELD.VALUE]` in the file has values that apply if FIELD is VALUE after the changes. They override the file's
    other values; `changes` override them.

    Raises:
        SdaError: unknown recipe, unknown key, or invalid value; names the file and the key.
    """
    path, changes = shelf.find("recipes", name), changes or {}
    values = shelf.parse(path)
    when = variants(values, path)
    values.pop("when", None)
    recipe = shelf.check(Recipe, values, str(path))  # without `changes`, to report errors in the file as such
    for field, value, variant in when:
        shelf.check(Recipe, {**values, field: value, **variant}, f"{path}: when.{field}.{value}")
    chosen = {**recipe.model_dump(), **changes}
    _check_variant(changes.get("encoder", ""), [value for field, value, _ in when if field == "encoder"], name)
    for field, value, variant in when:
        if chosen[field] == value:
            values = {**values, **variant}
    return shelf.check(Recipe, {**values, **changes}, f"recipe {name}")


def _check_variant(encoder: object, known: list[object], name: str) -> None:
    """Raise SdaError if a recipe has no variant for an encoder that is asked for."""
    if encoder and encoder not in known:
        found = f"its variants: {', '.join(map(str, known))}" if known else "it has none"
        raise SdaError(f"recipe {name}: no variant encoder = {encoder} ({found}); to choose any encoder: --backbone NAME")


def variants(values: dict, where: Path) -> list[tuple[str, object, dict]]:
    """Return the tables [when.FIELD.VALUE] of a recipe file as (field, value, changes).

    Raises:
        SdaError: `when` has another structure.
    """
    when, variants = values.get("when", {}), []
    for field, values in when.items() if isinstance(when, dict) else [("", when)]:
        if field not in Recipe.model_fields or not isinstance(values, dict):
            raise SdaError(f"{where}: when: expected tables [when.FIELD.VALUE]{shelf.hint(field, list(Recipe.model_fields))}")
        for value, changes in values.items():
            if not isinstance(changes, dict):
                raise SdaError(f"{where}: when.{field}: expected tables [when.{field}.VALUE]")
            variants.append((field, parse_value(field, value), changes))
    return variants


def parse_value(field: str, text: str) -> object:
    """Parse the value in `KEY=VALUE` as TOML (`1.5`, `true`, `[128, 256]`); strings need no quotes.

    In a field with a value for each source, commas separate the values, unless the text is the path of a file or folder.

    Raises:
        SdaError: `field` is not a field of a recipe.
    """
    if field not in Recipe.model_fields:
        raise SdaError(shelf.unknown(Recipe, field))
    if field in _PER_SOURCE and not text.startswith(("[", '"')):
        return _parse_per_source(field, text)
    if Recipe.model_fields[field].annotation is str and not text.startswith('"'):
        return text
    if text.strip().lower() in ("none", "") and Recipe.model_fields[field].default is None:
        return None
    if field in SIZES and (size := parse_size(text)):
        return size
    return _parse_toml(text)


def _parse_per_source(field: str, text: str) -> object:
    if field == "source_weights":
        return [_parse_toml(part) for part in text.split(",") if part]
    if "," not in text or os.path.lexists(os.path.expanduser(text)):
        return text
    return [part.strip() for part in text.split(",")]


def _parse_toml(text: str) -> object:
    """Parse a value in TOML. Return a text that is none as it is."""
    try:
        values = shelf.tomllib.loads(f"value = {text}")
        if values.keys() == {"value"}:
            return values["value"]
    except (ValueError, RecursionError):  # also a number of thousands of digits
        pass
    try:
        return float(text)  # such as .5, which is not valid in TOML
    except ValueError:
        return text


def parse_pair(pair: str, flag: str) -> tuple[str, object]:
    """Parse `KEY=VALUE`, the argument of `flag`, into field and value.

    Raises:
        SdaError: there is no `=`, or no such field.
    """
    key, equals, text = pair.partition("=")
    if not equals:
        raise SdaError(f"{flag} {pair}: expected KEY=VALUE")
    return key, parse_value(key, text)


def parse_values(pair: str, flag: str) -> tuple[str, list[object]]:
    """Parse `KEY=VALUE,VALUE,…`, the argument of `flag`, into field and values.

    Commas inside brackets and quotes do not separate values.

    Raises:
        SdaError: there is no `=`, or no such field.
    """
    key, _, text = pair.partition("=")
    values = re.split(r""",(?=(?:[^\[\]"]|\[[^\]]*\]|"[^"]*")*$)""", text)
    return key, [parse_pair(f"{key}={value}" if "=" in pair else pair, flag)[1] for value in values]


POINTS = {name for name, field in Recipe.model_fields.items() if field.annotation == int | float}  # may be shares of all steps
