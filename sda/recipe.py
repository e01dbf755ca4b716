"""A recipe: one experiment, as a flat, strictly read TOML file. Its fields are the options of its own command."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, model_validator

from sda import shelf
from sda.errors import SdaError
from sda.protocol import Protocol, preset


def _count_or_all(value: object) -> object:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError('expected a whole number from 0, or "all"')


def _stride(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value in (0, 8, 16):
        return value
    raise ValueError("expected 0, 8 or 16")


Positive = Annotated[int, Field(gt=0)]
Natural = Annotated[int, Field(ge=0)]
Unit = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Size = Annotated[list[Annotated[int, Field(ge=32)]], Field(min_length=2, max_length=2)]


def _size_or_native(value: object) -> object:
    sides = isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) and side >= 32 for side in value)
    if value == "native" or sides:
        return value
    raise ValueError('expected [height, width], both at least 32, or "native"')


SizeOrNative = Annotated[list[int] | str, PlainValidator(_size_or_native)]


class Recipe(shelf.Strict):
    """All that defines a run. Which streams there are makes the setting:

    source-only: source, labels 0. target-only: no source, labels N. joint: source, labels N.
    SSL: no source, labels N, unlabelled. UDA: source, labels 0, unlabelled. Semi-supervised DA: all three.
    Oracle: no source, labels "all".
    """

    description: str = Field("", description="one line on what the run is for")
    expected: str = Field("", description="the score to expect, and where it comes from")

    # streams
    source: str = Field("", description="labelled source dataset: a name or a TOML path; empty for none")
    target: str = Field(description="target dataset: a name or a TOML path")
    classes: str = Field("", description="class table to train in; empty for the target's own")
    labels: Annotated[int | str, PlainValidator(_count_or_all)] = Field(description="labelled target images: a count, or all")
    split: str = Field("", description="text file of the labelled images, one relative path per line; replaces labels")
    split_seed: Natural = Field(0, description="seed of the rule that picks the labelled images")
    val_list: str = Field("", description="text file of target training images to validate on, for a target without a val split")
    unlabelled: str = Field(
        "", description="'target': the target's other training images; a folder: all images in it; empty: none"
    )
    doctor: bool = Field(True, description="leave out the pairs that sda doctor found bad")
    bad_files: Literal["error", "skip"] = Field("error", description="unusable images or labels: stop, or leave out and report")
    root: str = Field("", description="folder that holds the datasets, each as a folder (or pack) of its own name, and weights/")
    source_root: str = Field("", description="folder or pack of the source dataset, if it is not root/NAME")
    target_root: str = Field("", description="folder or pack of the target dataset, if it is not root/NAME")

    # images
    size: SizeOrNative = Field(description="height, width that target images are resized to, or native: not resized")
    source_size: SizeOrNative | None = Field(None, description="the same for source images; empty for size")
    crop: Size | None = Field(None, description="height, width of random crops; empty for whole images")
    batch_source: Positive = Field(4, description="source images per step")
    batch_labelled: Positive = Field(4, description="labelled target images per step")
    batch_unlabelled: Positive = Field(2, description="unlabelled target images per step")
    accumulate: Positive = Field(
        1, description="parts that a step's images are taken in, one after the other, to save memory; norms see one at a time"
    )
    alternate: bool = Field(False, description="source and labelled target images take turns, a step each; false: both in each")
    rare_class_sampling: NonNegative = Field(
        0.0, description="temperature at which labelled images are drawn by class, rare ones more often (DAFormer: 0.01); 0: not"
    )
    in_memory: bool = Field(False, description="decode each set once and keep it, resized, in memory")
    workers: Natural = Field(2, description="loader processes per stream")

    # network
    network: Literal["deeplabv2", "deeplabv3plus"] = Field("deeplabv3plus", description="segmentation network")
    backbone: Literal["resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"] = Field(
        description="torchvision backbone"
    )
    output_stride: Annotated[int, PlainValidator(_stride)] = Field(0, description="0 for the network's own: v2 8, v3+ 16")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the network's convolutions (autocast); float16 with scaled gradients, for older GPUs"
    )
    sync_norm: bool = Field(
        True,
        description="several processes: batch norms see the images of all, as one would; false: each its own, faster",
    )
    recompute: bool = Field(
        False, description="keep few activations and compute them again backwards: less memory, a third slower"
    )
    compile: bool = Field(False, description="torch.compile the networks: minutes at the start, faster steps on a GPU")
    freeze_norm: Literal["none", "affine", "all"] = Field(
        "none", description="the backbone's batch norms: train; keep scales and offsets (DeepLabv2); keep running statistics too"
    )
    weights: str = Field("imagenet", description="imagenet or coco (torchvision's), none, or a local .pth file")
    weights_format: Literal["auto", "torchvision", "caffe"] = Field(
        "auto", description="of a local file: decides preprocessing and strides; auto: by its names"
    )

    # schedule
    steps: Positive = Field(description="training steps")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="seed of initialisation, streams and augmentation")
    learning_rate: NonNegative = Field(2e-4, description="of the backbone, at step 0")
    head_rate_factor: NonNegative = Field(1.0, description="learning rate of the other layers, as a multiple")
    layer_decay: Unit = Field(1.0, description="learning rate of each stage of the backbone, as a multiple of the next one's")
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="a loss that is NaN or infinite: stop, or leave the step out and count it (waits for the device)"
    )
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd as in the paper; adamw learns faster in short runs")
    momentum: Unit = Field(0.9, description="of SGD")
    weight_decay: NonNegative = Field(5e-4, description="of the optimizer")
    poly_power: NonNegative = Field(0.9, description="rate (1 - step/steps)^power")

    # method: the names are those of docs and paper (Alonso et al. 2021)
    method: Literal["supervised", "mean_teacher", "class_bank", "dacs"] = Field(
        "supervised", description="supervised, mean_teacher (class_bank without its bank), class_bank (the paper), dacs"
    )
    balance_classes: bool = Field(False, description="weight classes by sqrt(median f / f)")
    class_statistics: bool = Field(
        False, description="count the classes of all labelled images first (once, then remembered); balancing starts from these"
    )
    classmix_labelled: Unit = Field(0.0, description="probability of ClassMix per labelled image")
    classmix_unlabelled: Unit = Field(0.75, description="probability of ClassMix per unlabelled view")
    views: Positive = Field(2, description="strong views per unlabelled image")
    teacher_momentum: Unit = Field(0.995, description="of the EMA teacher, at step 0")
    teacher_schedule: Literal["cosine", "constant"] = Field("cosine", description="of its momentum: to 1 at the end, or constant")
    strong_statistics: bool = Field(
        True, description="strong views enter the batch norms' running statistics; false: labelled images alone"
    )
    confidence_power: NonNegative = Field(6.0, description="pseudo-label weight: confidence to this power")
    confidence_threshold: Unit = Field(0.968, description="dacs: a pixel above is one that the teacher is sure of")
    ramp_steps: Natural = Field(2000, description="length of the pseudo-label ramp")
    weight_pseudo: NonNegative = Field(1.0, description="weight of the pseudo-label loss")
    weight_entropy: NonNegative = Field(0.01, description="weight of the entropy loss")
    unlabelled_start: Natural = Field(2000, description="step of the first contrast and unlabelled ClassMix")
    weight_contrast: NonNegative = Field(0.1, description="weight of the contrast; the paper: 0.1 SSL, 0.2 semi-supervised DA")
    contrast_on: Literal["both", "labelled", "unlabelled"] = Field("both", description="pixels that are contrasted with the bank")
    contrast_pixels: Positive = Field(512, description="pixels per class, stream and step that enter the contrast")
    attention_features: bool = Field(True, description="weigh pixels by the attention S_c; false: all alike")
    attention_bank: bool = Field(True, description="weigh bank entries by an attention of their own; false: all alike")
    bank_size: Positive = Field(256, description="vectors per class in the bank, ψ")
    bank_streams: Literal["source", "target", "both"] = Field("both", description="labelled streams that feed the bank")
    bank_selection: Literal["attention", "random", "recent"] = Field(
        "attention",
        description="candidates that enter: the highest by S_c, as many at random, or all (plain first in, first out)",
    )
    bank_confidence: Unit = Field(0.95, description="teacher confidence that admits a pixel, φ")
    bank_start: Natural = Field(1000, description="step at which the bank starts to fill")
    bank: str = Field("", description="file that the bank starts from (sda bank RUN --export FILE); empty: it starts empty")
    released: bool = Field(
        False,
        description="as the authors' released code does: no weights on bank entries, the lowest-scored candidates enter, v2 sums "
        "two of its four branches, the teacher follows no batch-norm statistics and stays in train mode, strong views enter the "
        "student's",
    )

    # evaluation
    eval_size: SizeOrNative | None = Field(None, description="size of the network's input in evaluation; empty for size")
    eval_every: Natural = Field(0, description="steps between evaluations; 0: only at the end")
    checkpoint_every: Natural = Field(500, description="steps between checkpoints to resume from; 0: only when it is evaluated")
    board: Literal["none", "tensorboard", "wandb"] = Field(
        "none", description="curves and pictures while it trains; Weights & Biases by its own environment variables"
    )
    protocol: Literal["whole", "paper", "full-1024x2048", "half-512x1024", "slide"] = Field(
        "whole", description="how it is scored: whole images at eval_size and labels at their own, or another preset"
    )
    hold_out: Natural = Field(0, description="labelled target images that are not trained on, to choose a checkpoint by")
    best_by: Literal["miou", "infomax", "entropy", "agreement", "held_out"] = Field(
        "miou", description="criterion of best.pt: miou reads validation labels, the others do not"
    )

    @model_validator(mode="after")
    def _streams_make_sense(self):
        if not self.source and self.labels == 0 and not self.split:
            raise ValueError("no labels at all: name a source, or ask for labels > 0")
        if self.labels == "all" and not self.split and self.unlabelled == "target":
            raise ValueError('labels = "all" leaves no unlabelled target images')
        if self.method == "supervised" and self.unlabelled:
            raise ValueError("method supervised cannot use unlabelled images; leave unlabelled empty")
        if self.method != "supervised" and not self.unlabelled:
            raise ValueError(f'method {self.method} needs unlabelled images: unlabelled = "target" or a folder')
        if self.method == "dacs" and (not self.source or self.alternate):
            raise ValueError(
                "method dacs pastes source classes onto target images in every step: name a source, and no alternate"
            )
        return self

    @model_validator(mode="after")
    def _method_makes_sense(self):
        fed = {"source": bool(self.source), "target": self.labels != 0 or bool(self.split), "both": True}
        if self.method == "class_bank" and not fed[self.bank_streams]:
            raise ValueError(f"bank_streams = {self.bank_streams}: there is no such labelled stream to fill the bank from")
        if self.bank and self.method != "class_bank":
            raise ValueError(f"bank = {self.bank}: method {self.method} has none")
        if self.weights_format != "auto" and self.weights in ("imagenet", "coco", "none"):
            raise ValueError(f"weights_format is for local files; weights = {self.weights} has its own")
        if self.alternate and not (self.source and fed["target"]):
            raise ValueError("alternate = true needs source and target labels, which take turns")
        if self.method == "class_bank" and self.bank_selection == "attention" and not self.attention_features:
            raise ValueError("bank_selection = attention ranks by S_c, which attention_features = false leaves untrained")
        return self

    @model_validator(mode="after")
    def _parts_are_whole(self):
        streams = {"batch_source": self.source, "batch_labelled": self.labels or self.split, "batch_unlabelled": self.unlabelled}
        for name, used in streams.items():
            if used and getattr(self, name) % self.accumulate:
                raise ValueError(f"accumulate = {self.accumulate} cannot part {name} = {getattr(self, name)} evenly")
        mixes = self.method in ("mean_teacher", "class_bank") and self.classmix_unlabelled
        if mixes and self.batch_unlabelled == self.accumulate:
            at_least = "" if self.accumulate == 1 else f" times accumulate = {self.accumulate}"
            raise ValueError(
                f"batch_unlabelled = {self.batch_unlabelled} leaves ClassMix no other image; ask for 2{at_least}, or "
                "classmix_unlabelled = 0"
            )
        return self

    @model_validator(mode="after")
    def _criterion_can_be_had(self):
        if self.best_by == "held_out" and not self.hold_out:
            raise ValueError("best_by = held_out needs labelled images for it: hold_out = N")
        if self.best_by == "agreement" and not (self.unlabelled and self.eval_every):
            raise ValueError("best_by = agreement compares student and teacher: it needs unlabelled images, and eval_every")
        if self.hold_out and self.labels != "all" and not self.split and self.hold_out >= self.labels:
            raise ValueError(f"hold_out = {self.hold_out} leaves none of {self.labels} labelled images to train on")
        return self

    @model_validator(mode="after")
    def _crops_fit(self):
        for name, size in (("size", self.size), ("source_size", self.source_size or self.size)):
            if size == "native" and not self.crop:
                raise ValueError(f'{name} = "native" leaves images unequal: ask for a crop')
            if size != "native" and any(crop > side for crop, side in zip(self.crop_size, size, strict=True)):
                raise ValueError(f"crop {list(self.crop_size)} does not fit into {name} {size}; source and target need one crop")
        return self

    def with_absolute_paths(self) -> "Recipe":
        """The same recipe, valid from any working directory: roots, lists and files as absolute paths.

        `root` is resolved into the roots of the datasets, and into `weights` where root/weights/BACKBONE_imagenet.pth (or
        BACKBONE_coco.pth) is.
        """
        values = {name: getattr(self, name) for name in (*_PATHS, *_NAMES)}
        for stream in ("source", "target"):
            if self.root and values[stream] and not values[f"{stream}_root"]:
                folder = Path(os.path.expanduser(self.root)) / Path(values[stream]).stem
                pack = folder.with_name(f"{folder.name}.h5")
                values[f"{stream}_root"] = str(pack if pack.is_file() and not folder.exists() else folder)
        local = Path(os.path.expanduser(self.root)) / "weights" / f"{self.backbone}_{self.weights}.pth"
        if self.root and self.weights in ("imagenet", "coco") and local.is_file():
            values["weights"] = str(local)
        paths = {name: value for name, value in values.items() if value and not _is_name(name, value)}
        return self.model_copy(update={name: os.path.abspath(os.path.expanduser(value)) for name, value in paths.items()})

    @property
    def crop_size(self) -> tuple[int, int]:
        return tuple(self.crop or self.size)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height, width that target images are resized to; None: they are not."""
        return _fixed(self.size)

    @property
    def source_image_size(self) -> tuple[int, int] | None:
        """The same for source images."""
        return _fixed(self.source_size or self.size)

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height, width of the network's input in evaluation; None: each image's own."""
        return _fixed(self.eval_size or self.size)

    @property
    def scoring(self) -> Protocol:
        """How its network is scored."""
        return preset(self.protocol, self.network, self.target, self.input_size, self.crop_size)

    @property
    def setting(self) -> str:
        """The field's name for the streams in use."""
        target = self.labels != 0 or bool(self.split)
        if self.unlabelled:
            return ("semi-supervised DA" if target else "UDA") if self.source else "SSL"
        if self.source:
            return "joint" if target else "source-only"
        return "oracle" if self.labels == "all" and not self.split else "target-only"


def _fixed(size: list[int] | str) -> tuple[int, int] | None:
    return None if size == "native" else tuple(size)


# Fields that decide neither the network nor its score.
IDLE = {"description", "expected", "workers", "in_memory", "checkpoint_every", "board"}

# Fields that hold a path, and those that hold a name or a path.
_PATHS = ("root", "source_root", "target_root", "split", "val_list", "bank")
_NAMES = ("source", "target", "classes", "unlabelled", "weights")


def _is_name(field: str, value: str) -> bool:
    if field in ("unlabelled", "weights"):
        return value in ("target", "imagenet", "coco", "none")
    return field in _NAMES and not value.endswith(".toml")


def load(name: str, changes: dict | None = None) -> Recipe:
    """The recipe on the shelf (or at a TOML path), with `changes` (field → value) laid over it.

    A table `[when.FIELD.VALUE]` in the file holds values for when FIELD ends up as VALUE: they go over the file's own, and
    under `changes`.

    Raises:
        SdaError: unknown recipe, unknown key, mistyped or impossible value; names the file and the key.
    """
    path, changes = shelf.find("recipes", name), changes or {}
    values = shelf.parse(path)
    when = variants(values, path)
    values.pop("when", None)
    recipe = shelf.check(Recipe, values, str(path))  # a fault in the file is the file's, not the flags'
    for field, value, variant in when:
        shelf.check(Recipe, {**values, field: value, **variant}, f"{path}: when.{field}.{value}")
    chosen = {**recipe.model_dump(), **changes}
    for field, value, variant in when:
        if chosen[field] == value:
            values = {**values, **variant}
    return shelf.check(Recipe, {**values, **changes}, f"recipe {name}")


def newer_fields(values: dict) -> list[str]:
    """The fields that the recipe of a run, which names all there were, lacks: an older version of sda trained it, and what it did
    in their place nobody knows."""
    return sorted(name for name, field in Recipe.model_fields.items() if name not in values and field.default is not None)


def variants(values: dict, where: Path) -> list[tuple[str, object, dict]]:
    """The tables [when.FIELD.VALUE] in a recipe's file, as (field, value, changes). SdaError for a table of another form."""
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
    """The value of a `key=value` flag, read as TOML (`1.5`, `true`, `[128, 256]`); strings without quotes.

    Raises:
        SdaError: `field` is not a field of a recipe.
    """
    if field not in Recipe.model_fields:
        raise SdaError(f"unknown key {field!r}{shelf.hint(field, list(Recipe.model_fields))}")
    if Recipe.model_fields[field].annotation is str and not text.startswith('"'):
        return text
    if text.strip().lower() in ("none", "") and Recipe.model_fields[field].default is None:
        return None
    try:
        return shelf.tomllib.loads(f"value = {text}")["value"]
    except shelf.tomllib.TOMLDecodeError:
        pass
    try:
        return float(text)  # TOML has no .5
    except ValueError:
        return text


def parse_pair(pair: str, flag: str) -> tuple[str, object]:
    """The field and the value of `KEY=VALUE`, as `flag` had it; SdaError when there is no such field, or no `=`."""
    key, equals, text = pair.partition("=")
    if not equals:
        raise SdaError(f"{flag} {pair}: expected KEY=VALUE")
    return key, parse_value(key, text)


def parse_values(pair: str, flag: str) -> tuple[str, list[object]]:
    """The same for `KEY=VALUE,VALUE,…`; commas inside brackets and quotes belong to a value."""
    key, _, text = pair.partition("=")
    values = re.split(r""",(?=(?:[^\[\]"]|\[[^\]]*\]|"[^"]*")*$)""", text)
    return key, [parse_pair(f"{key}={value}" if "=" in pair else pair, flag)[1] for value in values]
