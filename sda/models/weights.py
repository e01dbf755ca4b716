"""Pretrained weights for a backbone, and their format, which decides preprocessing and the position of strides."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sda.errors import SdaError
from sda.models.backbones import Backbone
from sda.models.torchvision_shim import models

logger = logging.getLogger(__name__)

_SEGMENTATION = models.segmentation
DOWNLOADS = {
    # V1 for the ResNets too, because the published results start from weights trained this way, not from V2.
    "imagenet": {
        "resnet50": models.ResNet50_Weights.IMAGENET1K_V1,
        "resnet101": models.ResNet101_Weights.IMAGENET1K_V1,
        "mobilenet_v2": models.MobileNet_V2_Weights.IMAGENET1K_V1,
        "mobilenet_v3_small": models.MobileNet_V3_Small_Weights.IMAGENET1K_V1,
        "mobilenet_v3_large": models.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
    },
    # The backbones of torchvision's DeepLabv3, trained on COCO images with VOC's classes.
    "coco": {
        "resnet50": _SEGMENTATION.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1,
        "resnet101": _SEGMENTATION.DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1,
        "mobilenet_v3_large": _SEGMENTATION.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1,
    },
}

WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "backbone.", "Scale.")  # "Scale." is in ResNet-101 files converted from DeepLabv2's Caffe model
CLASSIFIERS = ("fc.", "classifier.", "aux_classifier.", "layer5.")

# Share of the backbone's tensors. 0.5 is too low: a resnet50 file matches 51 % of resnet101 by name and shape, and would leave
# 17 of its 33 blocks random.
MATCH_AT_LEAST = 0.9


@dataclass(frozen=True)
class Pretrained:
    """Weights from a file or download, under the backbone's parameter names.

    Attributes:
        where: "none", "imagenet", "coco" or the path of the file.
        format: a key of PREPROCESSING.
        renamed: one example of a renamed parameter, to show to the user.
    """

    where: str
    state: dict[str, Tensor]
    format: str = "torchvision"
    renamed: str = ""


@dataclass(frozen=True)
class LoadReport:
    """Which tensors were loaded.

    Attributes:
        matched: names of loaded tensors.
        missing: names that only the backbone has, except the batch norms' step counters, which old files lack and nothing reads.
        unexpected: names that only the file has, except those in `skipped`.
        unfit: names of tensors of another shape, or of integers instead of floats, as in a quantised file.
        skipped: names of the file's classifier and of blocks that the backbone does not use.
        summary: one line for the log.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    unfit: list[str]
    skipped: list[str]
    summary: str = ""

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.unfit)

    def details(self) -> str:
        """Return the summary and all names, grouped."""
        lists = {"missing": self.missing, "unexpected": self.unexpected, "of another shape or type": self.unfit}
        lists |= {"skipped": self.skipped, "matched": self.matched}
        parts = [f"\n{what}:\n" + "\n".join(f"  {name}" for name in names) for what, names in lists.items() if names]
        return "\n".join([self.summary, *parts]) + "\n"

    def __str__(self) -> str:
        lists = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape or type": self.unfit,
            "skipped": self.skipped,
        }
        parts = [f"{len(names)} {what} ({examples(names)})" for what, names in lists.items() if names]
        return ", ".join([f"{len(self.matched)} tensors matched", *parts])


def read_weights(name: str, weights: str, form: str = "auto") -> Pretrained:
    """Read weights for the backbone `name`.

    Args:
        weights: "none"; "imagenet" or "coco" (downloaded by torchvision, or in its cache); or the path of a state dict with
            torchvision's names or with the names of files converted from DeepLabv2's Caffe model ("Scale.layer1.…"). It may be
            nested under "state_dict" or "model", and names may have the prefixes "module." or "backbone.".
        form: format of the file, "torchvision" or "caffe"; "auto" detects it by the tensor names.

    Raises:
        SdaError: the file is missing or unreadable, torchvision has no such weights, or the download fails.
    """
    if weights == "none":
        return Pretrained(weights, {})
    raw = download(name, weights) if weights in DOWNLOADS else read_state_dict(weights)
    names = {key: strip(key) for key in raw}
    if name.startswith("mobilenet") and any(key[:1].isdigit() for key in names.values()):
        # torchvision's DeepLabv3 numbers a MobileNet's blocks without the prefix `features.`
        names = {key: f"features.{plain}" if plain[:1].isdigit() else plain for key, plain in names.items()}
    if form == "auto":
        converted = any("Scale." in key or plain.startswith("layer5.") for key, plain in names.items())
        form = "caffe" if converted else "torchvision"
    renamed = next((f"{key} → {plain}" for key, plain in names.items() if key != plain), "")
    return Pretrained(weights, {names[key]: value for key, value in raw.items()}, form, renamed)


def load_weights(backbone: Backbone, name: str, pretrained: Pretrained) -> LoadReport | None:
    """Copy weights into `backbone`, the result of `build_backbone(name, ...)`. Return a report, or None for weights "none".

    Log a summary of what was loaded, renamed and skipped, as a warning if something did not match; the report has the details.
    Raises SdaError if the weights belong to another network.
    """
    weights = pretrained.where
    if weights == "none":
        return None
    report = load_state(backbone, pretrained.state)
    expected = len(report.matched) + len(report.missing) + len(report.unfit)
    if len(report.matched) < MATCH_AT_LEAST * expected:
        raise SdaError(
            f"weights {weights}: only {len(report.matched)} of the {expected} tensors of {name} match; expected names such as "
            f"{examples(list(backbone.state_dict()))}, found {examples(list(pretrained.state))}"
        )
    facts = f"{report}; {pretrained.format} format" + (f", renamed like {pretrained.renamed}" if pretrained.renamed else "")
    logger.log(logging.INFO if report.complete else logging.WARNING, "weights %s for %s: %s", weights, name, facts)
    return replace(report, summary=facts)


def load_state(backbone: Backbone, state: dict[str, Tensor]) -> LoadReport:
    """Copy the tensors that match by name and shape into `backbone`, and report the others."""
    own = backbone.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and fits(value, own[key])}
    backbone.load_state_dict(fitting, strict=False)
    ignored = (*CLASSIFIERS, *backbone.unused)
    return LoadReport(
        matched=[key for key in fitting if not is_counter(key)],
        missing=[key for key in own if key not in state and not is_counter(key)],
        unexpected=[key for key in state if key not in own and not key.startswith(ignored)],
        unfit=[key for key in state if key in own and key not in fitting],
        skipped=[key for key in state if key not in own and key.startswith(ignored)],
    )


def fits(value: Tensor, own: Tensor) -> bool:
    """Return whether `value` can replace `own`: same shape and layout, and both floats or both integers."""
    same_kind = value.layout == own.layout and value.is_floating_point() == own.is_floating_point()
    return same_kind and value.shape == own.shape


def is_counter(key: str) -> bool:
    """Return whether `key` names a batch norm's step counter."""
    return key.endswith("num_batches_tracked")


def read_state_dict(path: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict file, without its wrapper. Never runs code from the file.

    Raises SdaError if it is missing, unreadable, or has no named tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise SdaError(f"weights {path}: no such file; expected 'none', 'imagenet', 'coco' or the path of a .pth file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged or malicious file can fail anywhere in zip, pickle or tensor code.
        raise SdaError(
            f"weights {path}: cannot be read as a state dict of tensors ({type(error).__name__}): the file is truncated, not a "
            "PyTorch file, or has other objects, which are not loaded because that could run code"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    state = {}
    if isinstance(content, dict):
        state = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not state:
        raise SdaError(f"weights {path}: expected a state dict (name → tensor), found {type(content).__name__} without tensors")
    return state


def strip(key: str) -> str:
    """Return `key` without the prefixes of wrappers, in any order."""
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def download(name: str, weights: str) -> dict[str, Tensor]:
    """Return torchvision's weights for the backbone `name`, from its cache or by download.

    Raises SdaError if torchvision has no such weights or the download fails.
    """
    if name not in DOWNLOADS[weights]:
        raise SdaError(
            f"torchvision has no {weights} weights for {name}, only for {', '.join(DOWNLOADS[weights])}; give a local file, "
            "--weights PATH.pth"
        )
    entry = DOWNLOADS[weights][name]
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # No network, no disk; or a damaged download, which fails its checksum.
        raise SdaError(
            f"cannot download {entry.url} ({error}); without network access, give a local file, --weights PATH.pth"
        ) from error


def examples(names: list[str]) -> str:
    """Return up to three names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
