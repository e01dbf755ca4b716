"""Build segmentation networks by name."""

import torch

from sda.errors import SdaError
from sda.models.backbones import build_backbone
from sda.models.heads import DeepLabV2Head, DeepLabV3PlusHead, Head
from sda.models.network import SegmentationNetwork
from sda.models.preprocessing import IMAGENET, Preprocessing
from sda.recipe import Recipe

# `sda.models.names` lists the names without PyTorch.
HEADS: dict[str, type[Head]] = {"deeplabv2": DeepLabV2Head, "deeplabv3plus": DeepLabV3PlusHead}


def build(
    network: str,
    backbone: str,
    classes: int,
    output_stride: int = 0,
    precision: str = "float32",
    caffe: bool = False,
    released: bool = False,
    preprocessing: Preprocessing = IMAGENET,
) -> SegmentationNetwork:
    """Build a segmentation network: images (B, 3, H, W) → logits (B, classes, h, w), features (B, F, h, w).

    ==============  ===========================  ======================  ====================================
    network         h, w                         features                F
    ==============  ===========================  ======================  ====================================
    deeplabv2       stride 8 (`output_stride`)   the backbone's output   2048 (ResNets), 320, 576 or 960
    deeplabv3plus   stride 4                     the decoder's output    256 (ResNets), 128 (MobileNets)
    ==============  ===========================  ======================  ====================================

    The weights are random: `sda.models.weights` loads pretrained ones.

    Args:
        network, backbone: names in `sda.models.names`. classes: C, at least 2.
        output_stride: 8, 16, or 0 for the network's default. precision: float32, bfloat16 or float16.
        caffe: build the ResNet of the original release in Caffe, for weights in that format.
        released: v2 sums two of its four branches, as the authors' released code does.
        preprocessing: how the first layer normalises images, as the weights expect.

    Raises:
        SdaError: unknown name, fewer than two classes, another output stride, or `caffe` with a MobileNet.

    >>> import torch
    >>> logits, features = build("deeplabv3plus", "mobilenet_v3_small", classes=7)(torch.zeros(2, 3, 64, 96))
    >>> logits.shape, features.shape
    (torch.Size([2, 7, 16, 24]), torch.Size([2, 128, 16, 24]))
    """
    if network not in HEADS:
        raise SdaError(f"unknown network {network!r}: expected one of {', '.join(HEADS)}")
    if classes < 2:
        raise SdaError(f"a network for {classes!r} classes: expected at least 2")
    body = build_backbone(backbone, output_stride or HEADS[network].output_stride, caffe)
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
    )
