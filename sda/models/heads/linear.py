"""The linear head: a batch norm and a 1x1 convolution on the last map.

Source: Oquab et al., "DINOv2", TMLR 2024, section 7.4 (linear segmentation).
"""

from torch import Tensor, nn

from sda.models.backbones.base import Backbone
from sda.models.heads.base import Head, initialise_classifier


class LinearHead(Head):
    """Logits from the last map alone. The features are this map after the batch norm."""

    output_stride = 16

    def __init__(self, backbone: Backbone, classes: int, released: bool = False):
        super().__init__()
        self.feature_channels, self.stride = backbone.channels[-1], backbone.strides[-1]
        self.norm = nn.BatchNorm2d(self.feature_channels)
        self.classifier = nn.Conv2d(self.feature_channels, classes, 1)
        initialise_classifier(self.classifier, inputs=self.feature_channels)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        features = self.norm(maps[-1])
        return self.classifier(features), features
