"""The networks and backbones that a recipe may name. This module does not import PyTorch, so that the command line stays fast."""

NETWORKS = {"deeplabv2": "DeepLabv2", "deeplabv3plus": "DeepLabv3+"}  # name → title; `sda.models.build.HEADS` builds them
BACKBONES = ["resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"]  # `backbones.BUILDERS`
