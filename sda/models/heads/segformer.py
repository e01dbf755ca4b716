"""SegFormer's head: all maps, projected to one width, enlarged to the finest and fused by one linear layer.

Source: Xie et al., "SegFormer", NeurIPS 2021, section 3.2.
"""

import torch
from torch import Tensor, nn

from sda.models.backbones.base import Backbone
from sda.models.heads.base import Head, conv_block, initialise_classifier, initialise_convolutions


class SegFormerHead(Head):
    """The all-MLP head. The features are the fused maps, of 256 channels (128 for light backbones)."""

    output_stride = 32

    def __init__(self, backbone: Backbone, classes: int, released: bool = False):
        super().__init__()
        width = 128 if backbone.light else 256
        self.feature_channels, self.stride = width, backbone.strides[0]
        self.grid = backbone.grid
        self.projections = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in backbone.channels)
        self.fuse = conv_block(len(backbone.channels) * width, width, kernel=1)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(width, classes, 1)
        initialise_convolutions(self)
        initialise_classifier(self.classifier, inputs=width)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        size = maps[0].shape[-2:]
        projected = [self.grid.align(project(part), size) for project, part in zip(self.projections, maps, strict=True)]
        features = self.fuse(torch.cat(projected, dim=1))
        return self.classifier(self.dropout(features)), features
