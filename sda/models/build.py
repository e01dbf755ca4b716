"""Build segmentation networks by name."""

import torch

from sda.errors import SdaError
from sda.models.backbones.by_name import build_backbone, patch_of
from sda.models.backbones.low_rank import add_adapters
from sda.models.heads.base import Head
from sda.models.heads.deeplab import DeepLabV2Head, DeepLabV3PlusHead
from sda.models.heads.dpt import DPTHead
from sda.models.heads.linear import LinearHead
from sda.models.heads.segformer import SegFormerHead
from sda.models.network import SegmentationNetwork
from sda.models.preprocessing import IMAGENET, Preprocessing
from sda.recipe import Recipe
from sda.sizes import size_text

# `sda.models.names` lists the names without PyTorch.
HEADS: dict[str, type[Head]] = {
    "deeplabv2": DeepLabV2Head,
    "deeplabv3plus": DeepLabV3PlusHead,
    "segformer": SegFormerHead,
    "linear": LinearHead,
    "dpt": DPTHead,
}


def build(
    network: str,
    backbone: str,
    classes: int,
    output_stride: int = 0,
    precision: str = "float32",
    caffe: bool = False,
    released: bool = False,
    preprocessing: Preprocessing = IMAGENET,
    drop_path: float | None = None,
    adapters: int = 0,
) -> SegmentationNetwork:
    """Build a segmentation network: images (B, 3, H, W) → logits (B, classes, h, w), features (B, F, h, w).

    =============  =============================  =========================  ============================================
    network        h, w                           features                   F
    =============  =============================  =========================  ============================================
    deeplabv2      stride 8 (`output_stride`)     the backbone's last map    its channels: 2048 (ResNets), 320, 576, 384…
    deeplabv3plus  stride 4                       the decoder's output       256, or 128 for light backbones
    segformer      stride of the finest map       the fused maps             256, or 128 for light backbones
    linear         stride 16 (`output_stride`)    the last map, normalised   its channels
    dpt            a quarter of a patch           the fused maps             64, 128 or 256
    =============  =============================  =========================  ============================================

    The output stride is a choice with convolutional backbones; vision transformers have that of their patches.
    The weights are random: `sda.models.weights` loads pretrained ones.

    Args:
        network: a name in `sda.models.names`. backbone: a name there, or of timm. classes: C, at least 2.
        output_stride: 8, 16, 32, or 0 for the network's default. precision: float32, bfloat16 or float16.
        caffe: build the ResNet of the original release in Caffe, for weights in that format.
        released: v2 sums two of its four branches, as the authors' released code does.
        preprocessing: how the first layer normalises images, as the weights expect.
        drop_path: rate of stochastic depth of an encoder of timm; None: timm's default.
        adapters: rank of low-rank adapters in the attention of a vision transformer; 0: none.

    Raises:
        SdaError: unknown name, fewer than two classes, another output stride, a backbone that does not fit the network, or an
            option that it does not have.

    >>> import torch
    >>> logits, features = build("deeplabv3plus", "mobilenet_v3_small", classes=7)(torch.zeros(2, 3, 64, 96))
    >>> logits.shape, features.shape
    (torch.Size([2, 7, 16, 24]), torch.Size([2, 128, 16, 24]))
    """
    if network not in HEADS:
        raise SdaError(f"unknown network {network!r}: expected one of {', '.join(HEADS)}")
    if classes < 2:
        raise SdaError(f"a network for {classes!r} classes: expected at least 2")
    body = build_backbone(backbone, output_stride or HEADS[network].output_stride, caffe, drop_path)
    if adapters:
        add_adapters(body.body, adapters, backbone)
    head = HEADS[network](body, classes, released)
    return SegmentationNetwork(preprocessing, body, head, getattr(torch, precision))


def build_network(recipe: Recipe, classes: int, weights_format: str, preprocessing: Preprocessing) -> SegmentationNetwork:
    """Build a recipe's network with random weights.

    Args:
        weights_format: format of the weights that will be loaded, a key of `sda.models.preprocessing.PREPROCESSING`.
    """
    return build(
        recipe.network,
        recipe.backbone,
        classes,
        recipe.output_stride,
        recipe.precision,
        caffe=weights_format == "caffe",
        released=recipe.released,
        preprocessing=preprocessing,
        drop_path=recipe.drop_path,
        adapters=recipe.lora,
    )


def check_recipe(recipe: Recipe) -> None:
    """Raise SdaError if a recipe's network cannot be built, or cannot be trained on its crops. Needs no data and no weights."""
    with torch.device("meta"):
        build_network(recipe, 2, "caffe" if recipe.weights_format == "caffe" else "torchvision", IMAGENET)
    patch, crop = patch_of(recipe.backbone), recipe.crop_size
    if patch and any(side % patch for side in crop):
        smaller, larger = ([max(1, -(-side // patch) - less) * patch for side in crop] for less in (1, 0))
        smaller = [side if side % patch == 0 else less for side, less in zip(crop, smaller, strict=True)]
        name = "crop" if recipe.crop else "size"
        raise SdaError(
            f"{name} = {size_text(crop)} is not a multiple of {patch}, the patch size of {recipe.backbone}: set crop = "
            f"{size_text(smaller)}, or {name} = {size_text(larger)}"
        )
