"""Pretrained weights for a backbone, and the preprocessing that they expect."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sda.errors import SdaError
from sda.models.torchvision_shim import models

logger = logging.getLogger(__name__)

# The first edition for the ResNets too: the published figures start from weights of that recipe, not of the newer one.
IMAGENET = {
    "resnet50": models.ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": models.ResNet101_Weights.IMAGENET1K_V1,
    "mobilenet_v2": models.MobileNet_V2_Weights.IMAGENET1K_V1,
    "mobilenet_v3_small": models.MobileNet_V3_Small_Weights.IMAGENET1K_V1,
    "mobilenet_v3_large": models.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
}

WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "backbone.")
CLASSIFIERS = ("fc.", "classifier.")

# Not a half: a resnet50 file covers 51 % of a resnet101 by name and shape, and leaves 17 of its 33 blocks random.
MATCH_AT_LEAST = 0.9


@dataclass(frozen=True)
class Preprocessing:
    """Mean and standard deviation per RGB channel, for images in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W), uint8 or float in 0..1, RGB; returns a new float tensor of the same shape."""
        images = images.float() / 255 if images.dtype == torch.uint8 else images.clone()
        # Channel by channel with plain numbers: a tensor of means would be a copy to the device, which waits for it.
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            images[:, channel].sub_(mean).div_(std)
        return images

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists, for a checkpoint."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, list[float]]) -> "Preprocessing":
        """The inverse of `to_dict`. Raises SdaError when `values` is not three means and three positive deviations."""
        try:
            mean, std = (tuple(float(value) for value in values[key]) for key in ("mean", "std"))
        except (KeyError, TypeError, ValueError):
            mean, std = (), ()
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
            raise SdaError(f"preprocessing: expected 'mean' and 'std' of three numbers each, std above 0; found {values!r}")
        return cls(mean, std)


IMAGENET_PREPROCESSING = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def preprocessing_for(weights: str) -> Preprocessing:
    """The preprocessing that belongs to `weights` ("none", "imagenet" or a path).

    It is the same for everything that can be loaded here, since a file must hold a torchvision network. Weights trained on
    other inputs, such as the BGR Caffe ones, get their own answer here and nowhere else.
    """
    return IMAGENET_PREPROCESSING


@dataclass(frozen=True)
class LoadReport:
    """What became of each name: of the backbone's (`matched`, `missing`), of the file's (`unexpected`), of both (`unfit`).

    `missing` leaves out batch norms' step counters, which old files lack and nothing here reads. `unexpected` leaves out the
    classifier and the blocks that the backbone does not use. `unfit` names tensors of another shape, or of integers where
    floats are expected, as in a quantised file.
    """

    matched: list[str]
    missing: list[str]
    unexpected: list[str]
    unfit: list[str]

    def __str__(self) -> str:
        lists = {"missing": self.missing, "unexpected": self.unexpected, "of another shape or type": self.unfit}
        parts = [f"{len(names)} {what} ({examples(names)})" for what, names in lists.items() if names]
        return ", ".join([f"{len(self.matched)} tensors matched", *parts])


def load_weights(backbone: nn.Module, name: str, weights: str) -> LoadReport | None:
    """Load `weights` into `backbone`, which `build_backbone(name, ...)` made; None for "none".

    `weights` is "none", "imagenet" (downloaded by torchvision, or found in its cache) or the path of a state dict under
    torchvision's names, perhaps wrapped under "state_dict" or "model", perhaps with "module." or "backbone." in front.
    What did not match is logged as a warning. Raises SdaError when the file is missing, unreadable or of another network,
    or when the download fails.
    """
    if weights == "none":
        return None
    state = download_imagenet(name) if weights == "imagenet" else read_state_dict(weights)
    report = load_state(backbone, state)
    expected = len(report.matched) + len(report.missing) + len(report.unfit)
    if len(report.matched) < MATCH_AT_LEAST * expected:
        raise SdaError(
            f"weights {weights}: only {len(report.matched)} of the {expected} tensors of {name} are there; the file has for "
            f"example {examples(list(state))}, expected for example {examples(list(backbone.state_dict()))}"
        )
    if len(report.matched) < expected or report.unexpected:
        logger.warning("weights %s for %s: %s", weights, name, report)
    return report


def load_state(backbone: nn.Module, state: dict[str, Tensor]) -> LoadReport:
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
    )


def fits(value: Tensor, own: Tensor) -> bool:
    """Whether `value` can be copied to `own` and mean the same there."""
    same_kind = value.layout == own.layout and value.is_floating_point() == own.is_floating_point()
    return same_kind and value.shape == own.shape


def is_counter(key: str) -> bool:
    """Whether `key` is a batch norm's step counter."""
    return key.endswith("num_batches_tracked")


def read_state_dict(path: str) -> dict[str, Tensor]:
    """The tensors of a state dict file, unwrapped and without prefixes. Never runs code from the file.

    Raises SdaError when it is missing, unreadable, or holds no tensors by name.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise SdaError(f"weights {path}: no such file; expected 'none', 'imagenet' or the path of a .pth file")
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
        state = {strip(key): value for key, value in content.items() if isinstance(value, Tensor) and isinstance(key, str)}
    if not state:
        raise SdaError(f"weights {path}: expected a state dict, names to tensors; found {type(content).__name__} without any")
    return state


def strip(key: str) -> str:
    """`key` without the prefixes that wrappers put in front, in any order."""
    while key.startswith(PREFIXES):
        key = key.partition(".")[2]
    return key


def download_imagenet(name: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights for the backbone `name`, from its cache if they are there. Raises SdaError offline."""
    weights = IMAGENET[name]
    try:
        return weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # No network, no disk; or a damaged download, which fails its checksum.
        raise SdaError(
            f"cannot download {weights.url} ({error}); without a network give a local file, weights=/path/file.pth"
        ) from error


def examples(names: list[str]) -> str:
    """Up to three names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
