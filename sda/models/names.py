"""The networks that a recipe may name, and torchvision's backbones. Without PyTorch, so that the command line stays fast."""

# name → title; `sda.models.build.HEADS` builds them
NETWORKS = {
    "deeplabv2": "DeepLabv2",
    "deeplabv3plus": "DeepLabv3+",
    "segformer": "SegFormer's all-MLP head",
    "linear": "linear head",
    "dpt": "DPT",
}
TORCHVISION = ["resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"]  # all other names are timm's
