"""Pretrained weights for a backbone, and what belongs to them: the preprocessing that they expect, and where they stride."""

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
    # The first edition for the ResNets too: the published figures start from weights of that recipe, not of the newer one.
    "imagenet": {
        "resnet50": models.ResNet50_Weights.IMAGENET1K_V1,
        "resnet101": models.ResNet101_Weights.IMAGENET1K_V1,
        "mobilenet_v2": models.MobileNet_V2_Weights.IMAGENET1K_V1,
        "mobilenet_v3_small": models.MobileNet_V3_Small_Weights.IMAGENET1K_V1,
        "mobilenet_v3_large": models.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
    },
    # The backbones of torchvision's DeepLabv3, trained on the images of COCO that show VOC's classes.
    "coco": {
        "resnet50": _SEGMENTATION.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1,
        "resnet101": _SEGMENTATION.DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1,
        "mobilenet_v3_large": _SEGMENTATION.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1,
    },
}

WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "backbone.", "Scale.")  # the last is that of the ResNet-101 files that DeepLabv2's followers share
CLASSIFIERS = ("fc.", "classifier.", "aux_classifier.", "layer5.")

# Not a half: a resnet50 file covers 51 % of a resnet101 by name and shape, and leaves 17 of its 33 blocks random.
MATCH_AT_LEAST = 0.9


@dataclass(frozen=True)
class Pretrained:
    """Weights that were read: tensors under the backbone's names, and their format, a key of PREPROCESSING.

    Attributes:
        where: "none", "imagenet", "coco" or the path they come from.
        renamed: one example of a name that was changed, for the eyes of the user.
    """

    where: str
    state: dict[str, Tensor]
    format: str = "torchvision"
    renamed: str = ""


@dataclass(frozen=True)
class LoadReport:
    """What became of each name: of the backbone's (`matched`, `missing`), of the file's (`unexpected`), of both (`unfit`).

    `missing` leaves out batch norms' step counters, which old files lack and nothing here reads. `left_out` are the file's
    classifier and the blocks that the backbone does not use. `unfit` names tensors of another shape, or of integers where
    floats are expected, as in a quantised file.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    unfit: list[str]
    left_out: list[str]
    summary: str = ""

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.unfit)

    def details(self) -> str:
        """The summary, and every name under what became of it."""
        lists = {"missing": self.missing, "unexpected": self.unexpected, "of another shape or type": self.unfit}
        lists |= {"left out": self.left_out, "matched": self.matched}
        parts = [f"\n{what}:\n" + "\n".join(f"  {name}" for name in names) for what, names in lists.items() if names]
        return "\n".join([self.summary, *parts]) + "\n"

    def __str__(self) -> str:
        lists = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape or type": self.unfit,
            "of the classifier left out": self.left_out,
        }
        parts = [f"{len(names)} {what} ({examples(names)})" for what, names in lists.items() if names]
        return ", ".join([f"{len(self.matched)} tensors matched", *parts])


def read_weights(name: str, weights: str, form: str = "auto") -> Pretrained:
    """The weights for the backbone `name`.

    Args:
        weights: "none"; "imagenet" or "coco" (downloaded by torchvision, or found in its cache); or the path of a state dict
            under torchvision's names or those of DeepLabv2's followers ("Scale.layer1.…"), perhaps wrapped under "state_dict"
            or "model", perhaps with "module." or "backbone." in front.
        form: "torchvision" or "caffe", what a file is; "auto": caffe if it has the names of DeepLabv2's followers.

    Raises:
        SdaError: the file is missing or unreadable, there are no such weights, or the download fails.
    """
    if weights == "none":
        return Pretrained(weights, {})
    raw = download(name, weights) if weights in DOWNLOADS else read_state_dict(weights)
    names = {key: strip(key) for key in raw}
    if name.startswith("mobilenet") and any(key[:1].isdigit() for key in names.values()):
        # torchvision's DeepLabv3 numbers a MobileNet's blocks without saying `features`
        names = {key: f"features.{plain}" if plain[:1].isdigit() else plain for key, plain in names.items()}
    if form == "auto":
        followers = any("Scale." in key or plain.startswith("layer5.") for key, plain in names.items())
        form = "caffe" if followers else "torchvision"
    renamed = next((f"{key} → {plain}" for key, plain in names.items() if key != plain), "")
    return Pretrained(weights, {names[key]: value for key, value in raw.items()}, form, renamed)


def load_weights(backbone: Backbone, name: str, pretrained: Pretrained) -> LoadReport | None:
    """Copy weights into `backbone`, which `build_backbone(name, ...)` made; None for "none".

    What was loaded, renamed and skipped is logged in short, as a warning where something did not match; the report has all of
    it. Raises SdaError when the weights are those of another network.
    """
    weights = pretrained.where
    if weights == "none":
        return None
    report = load_state(backbone, pretrained.state)
    expected = len(report.matched) + len(report.missing) + len(report.unfit)
    if len(report.matched) < MATCH_AT_LEAST * expected:
        raise SdaError(
            f"weights {weights}: only {len(report.matched)} of the {expected} tensors of {name} are there; the file has for "
            f"example {examples(list(pretrained.state))}, expected for example {examples(list(backbone.state_dict()))}"
        )
    facts = f"{report}; {pretrained.format} format" + (f", names as in {pretrained.renamed}" if pretrained.renamed else "")
    logger.log(logging.INFO if report.complete else logging.WARNING, "weights %s for %s: %s", weights, name, facts)
    return replace(report, summary=facts)


def load_state(backbone: Backbone, state: dict[str, Tensor]) -> LoadReport:
    """Copy into `backbone` what fits by name and shape, and say what did not."""
    own = backbone.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and fits(value, own[key])}
    backbone.load_state_dict(fitting, strict=False)
    ignored = (*CLASSIFIERS, *backbone.unused)
    return LoadReport(
        matched=[key for key in fitting if not is_counter(key)],
        missing=[key for key in own if key not in state and not is_counter(key)],
        unexpected=[key for key in state if key not in own and not key.startswith(ignored)],
        unfit=[key for key in state if key in own and key not in fitting],
        left_out=[key for key in state if key not in own and key.startswith(ignored)],
    )


def fits(value: Tensor, own: Tensor) -> bool:
    """Whether `value` can be copied to `own` and mean the same there."""
    same_kind = value.layout == own.layout and value.is_floating_point() == own.is_floating_point()
    return same_kind and value.shape == own.shape


def is_counter(key: str) -> bool:
    """Whether `key` is a batch norm's step counter."""
    return key.endswith("num_batches_tracked")


def read_state_dict(path: str) -> dict[str, Tensor]:
    """The tensors of a state dict file, unwrapped. Never runs code from the file.

    Raises SdaError when it is missing, unreadable, or holds no tensors by name.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise SdaError(f"weights {path}: no such file; expected 'none', 'imagenet', 'coco' or the path of a .pth file")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged or hostile file can fail anywhere in zip, pickle or tensor code.
        raise SdaError(
            f"weights {path}: cannot be read as a state dict of tensors; truncated, not a PyTorch file, or holding other "
            f"objects, which are refused since loading them could run code ({type(error).__name__})"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    state = {}
    if isinstance(content, dict):
        state = {key: value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not state:
        raise SdaError(f"weights {path}: expected a state dict, names to tensors; found {type(content).__name__} without any")
    return state


def strip(key: str) -> str:
    """`key` without the prefixes that wrappers put in front, in any order."""
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def download(name: str, weights: str) -> dict[str, Tensor]:
    """torchvision's weights for the backbone `name`, from its cache if they are there.

    Raises SdaError offline, and where torchvision has none.
    """
    if name not in DOWNLOADS[weights]:
        raise SdaError(
            f"torchvision has no {weights} weights for {name}, only for {', '.join(DOWNLOADS[weights])}; give a local file, "
            "weights=/path/file.pth"
        )
    entry = DOWNLOADS[weights][name]
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # No network, no disk; or a damaged download, which fails its checksum.
        raise SdaError(
            f"cannot download {entry.url} ({error}); without a network give a local file, weights=/path/file.pth"
        ) from error


def examples(names: list[str]) -> str:
    """Up to three names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
