"""Segmentation networks: image → (logits, features)."""

import torch

from sda.errors import SdaError
from sda.models.backbones import BACKBONES, MOBILENETS, build_backbone
from sda.models.deeplab import DeepLabV2Head, DeepLabV3PlusHead, SegmentationNetwork
from sda.models.weights import Preprocessing, load_weights, preprocessing_for

# Name: the output stride of the backbone when none is asked for.
NETWORKS = {"deeplabv2": 8, "deeplabv3plus": 16}

__all__ = ["BACKBONES", "NETWORKS", "Preprocessing", "SegmentationNetwork", "build", "preprocessing_for"]


def build(
    network: str, backbone: str, classes: int, output_stride: int = 0, weights: str = "none", precision: str = "float32"
) -> SegmentationNetwork:
    """A segmentation network: normalised images (B, 3, H, W) → logits (B, classes, h, w), features (B, F, h, w).

    ==============  ===========================  ======================  ====================================
    network         h, w                         features                F
    ==============  ===========================  ======================  ====================================
    deeplabv2       stride 8 (`output_stride`)   the backbone's output   2048 for ResNets, 320, 576 or 960
    deeplabv3plus   stride 4                     the decoder's output    256, for MobileNets 128
    ==============  ===========================  ======================  ====================================

    `backbone` is one of BACKBONES; `output_stride` 8, 16, or 0 for the network's own; `weights` "none", "imagenet" or a
    path (see `sda.models.weights.load_weights`), for the backbone only; `precision` float32 or bfloat16.
    Raises SdaError for unknown names, fewer than two classes, another output stride, and weights that cannot be loaded.

    >>> import torch
    >>> logits, features = build("deeplabv3plus", "mobilenet_v3_small", classes=7)(torch.zeros(2, 3, 64, 96))
    >>> logits.shape, features.shape
    (torch.Size([2, 7, 16, 24]), torch.Size([2, 128, 16, 24]))
    """
    if network not in NETWORKS:
        raise SdaError(f"unknown network {network!r}: expected one of {', '.join(NETWORKS)}")
    if classes < 2:
        raise SdaError(f"a network for {classes!r} classes: expected at least 2")
    output_stride = output_stride or NETWORKS[network]
    body = build_backbone(backbone, output_stride)
    load_weights(body, backbone, weights)
    if network == "deeplabv2":
        head = DeepLabV2Head(body, classes, output_stride)
    else:
        head = DeepLabV3PlusHead(body, classes, output_stride, separable=backbone in MOBILENETS)
    return SegmentationNetwork(body, head, getattr(torch, precision))
