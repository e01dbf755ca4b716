"""Pretrained weights for a backbone, and their format, which decides preprocessing and the position of strides."""

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sda.errors import SdaError
from sda.models.backbones import Backbone, build_backbone
from sda.models.preprocessing import PREPROCESSING
from sda.models.stored import read_pt, read_safetensors
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

WRAPPERS = ("state_dict", "model", "student")  # "student" is in the checkpoints of sda
PREFIXES = ("module.", "backbone.", "Scale.")  # "Scale." is in ResNet-101 files converted from DeepLabv2's Caffe model
CLASSIFIERS = ("fc.", "classifier.", "aux_classifier.", "layer5.", "head.")  # "head." is in the networks of sda

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
        weights: "none"; "imagenet" or "coco" (downloaded by torchvision, or in its cache); or the path of a state dict, .pth or
            .safetensors, with torchvision's names or with the names of files converted from DeepLabv2's Caffe model
            ("Scale.layer1.…"). It may be nested under "state_dict" or "model", and names may have the prefixes "module." or
            "backbone.". Of a network of sda (last.pt, best.pt, student.safetensors), the backbone is read.
        form: format of the file, "torchvision" or "caffe"; "auto" detects it: networks of sda state it, other files show it by
            the tensor names.

    Raises:
        SdaError: the file is missing or unreadable, torchvision has no such weights, or the download fails.
    """
    if weights == "none":
        return Pretrained(weights, {})
    raw, stated = (download(name, weights), "") if weights in DOWNLOADS else read_state_dict(weights, name)
    names = {key: strip(key) for key in raw}
    if name.startswith("mobilenet") and any(key[:1].isdigit() for key in names.values()):
        # torchvision's DeepLabv3 numbers a MobileNet's blocks without the prefix `features.`
        names = {key: f"features.{plain}" if plain[:1].isdigit() else plain for key, plain in names.items()}
    if form == "auto":
        converted = any("Scale." in key or plain.startswith("layer5.") for key, plain in names.items())
        form = stated or ("caffe" if converted else "torchvision")
    renamed = next((f"{key} → {plain}" for key, plain in names.items() if key != plain), "")
    return Pretrained(weights, {names[key]: value for key, value in raw.items()}, form, renamed)


def load_weights(backbone: Backbone, name: str, pretrained: Pretrained) -> LoadReport | None:
    """Copy weights into `backbone`, the result of `build_backbone(name, ...)`. Return a report, or None for weights "none".

    Log how many tensors were loaded, renamed and skipped, as a warning if some did not match; the report has the details.
    Raise SdaError if the weights belong to another network.
    """
    weights = pretrained.where
    if weights == "none":
        return None
    report = load_state(backbone, pretrained.state)
    expected = len(report.matched) + len(report.missing) + len(report.unfit)
    if len(report.matched) < MATCH_AT_LEAST * expected:
        raise SdaError(
            f"weights {weights}: only {len(report.matched)} of the {expected} tensors of {name} match; expected names such as "
            f"{examples(list(backbone.state_dict()))}, found {examples(list(pretrained.state))}; "
            f"give weights of {name}, or change backbone"
        )
    broken = [key for key in report.matched if not pretrained.state[key].isfinite().all()]
    if broken:
        raise SdaError(f"weights {weights}: {examples(broken)} have values that are NaN or infinite; give other weights")
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


def read_state_dict(path: str, name: str) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of a file for the backbone `name`, without their wrapper. Never runs code from the file.

    Returns:
        The tensors by name, and the format of the weights if the file states it, as networks of sda do, else "".

    Raises:
        SdaError: the file is missing, damaged, unreadable, or has no named tensors.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        runs = [str(file / other) for other in ("last.pt", "model.safetensors") if (file / other).is_file()]
        found = f"this is a folder; give {runs[0]}" if runs else "no such file"
        raise SdaError(f"weights {path}: {found}; expected 'none', 'imagenet', 'coco' or the path of a .pth file")
    try:
        if file.suffix == ".safetensors":
            tensors, about = read_safetensors(file)
            facts = json.loads(about or "{}")
            content: object = {**facts, "student": tensors} if isinstance(facts, dict) else tensors
        else:
            content = read_pt(file, old=True)
    except (ValueError, OSError, RecursionError) as error:
        raise SdaError(
            f"weights {path}: cannot be read as a state dict of tensors ({error}): the file is truncated or damaged, not a "
            "PyTorch file, or contains other objects, which are not loaded because that could run code"
        ) from None
    stated = content.get("weights_format") if isinstance(content, dict) else None
    state, keys = {}, []
    if isinstance(content, dict):
        inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
        keys = [str(key) for key in inner]
        state = {key: value for key, value in inner.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not state:
        found = f"a dict without tensors, with the keys {examples(keys) or '(none)'}" if keys else type(content).__name__
        with torch.device("meta"):
            wanted = examples(list(build_backbone(name, 16).state_dict()))
        raise SdaError(f"weights {path}: expected a state dict (name → tensor) with names such as {wanted}, found {found}")
    return state, stated if stated in PREPROCESSING else ""


def strip(key: str) -> str:
    """Return `key` without the prefixes of wrappers, in any order."""
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def download(name: str, weights: str) -> dict[str, Tensor]:
    """Return torchvision's weights for the backbone `name`, from its cache or by download.

    Raise SdaError if torchvision has no such weights or the download fails.
    """
    if name not in DOWNLOADS[weights]:
        raise SdaError(
            f"torchvision has no {weights} weights for {name}, only for {', '.join(DOWNLOADS[weights])}; give a local file, "
            "--weights PATH.pth"
        )
    entry = DOWNLOADS[weights][name]
    _check_cached(entry.url)
    try:
        return entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # No network, no disk; or a damaged download, which fails its checksum.
        raise SdaError(
            f"cannot download {entry.url} ({error}); without network access, give a local file, --weights PATH.pth"
        ) from error


def _check_cached(url: str) -> None:
    """Compare the hash of a download that is in torchvision's cache with the one in its name; torchvision does so only once.

    Raise SdaError if they differ.
    """
    name = Path(url).name
    cached, expected = Path(torch.hub.get_dir(), "checkpoints", name), torch.hub.HASH_REGEX.search(name)
    if expected and cached.is_file():
        with cached.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(expected.group(1)):
            raise SdaError(f"{cached}: damaged: its SHA-256 is wrong; remove this file, and it is downloaded again")


def examples(names: list[str]) -> str:
    """Return up to three names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
