"""Preprocessing: how the network's first layer normalises images. It depends on the weights and is stored with them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sda.errors import SdaError


@dataclass(frozen=True)
class Preprocessing:
    """The normalisation that weights expect.

    Attributes:
        order: channel order, RGB or BGR. maximum: the images' values are in 0..maximum.
        mean, std: mean and standard deviation per channel, in that order and range.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: str = "RGB"
    maximum: float = 1.0

    def to_dict(self) -> dict:
        """Return plain values for a checkpoint."""
        return {"mean": list(self.mean), "std": list(self.std), "order": self.order, "maximum": self.maximum}

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        """Restore the result of `to_dict`. Raise SdaError for invalid values."""
        try:
            mean, std = (tuple(float(value) for value in values[key]) for key in ("mean", "std"))
            order, maximum = values["order"], float(values["maximum"])
        except (KeyError, TypeError, ValueError):
            mean, std, order, maximum = (), (), "", 0.0
        finite = all(map(math.isfinite, (*mean, *std, maximum)))
        positive = all(value > 0 for value in (*std, maximum))
        if len(mean) != 3 or len(std) != 3 or not finite or not positive or order not in ("RGB", "BGR"):
            raise SdaError(
                "preprocessing: expected 'mean' and 'std' of three numbers each, std above 0, 'order' RGB or BGR and 'maximum' "
                f"above 0; found {values!r}"
            )
        return cls(mean, std, order, maximum)


IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

# Format of the weights → preprocessing. Networks trained in Caffe take BGR in 0..255 and only subtract the mean.
PREPROCESSING = {
    "torchvision": IMAGENET,
    "caffe": Preprocessing((104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0), "BGR", 255.0),
}


def as_float(images: Tensor) -> Tensor:
    """Convert images of any shape to float32 in 0..1: divide uint8 images by 255, return float images unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


class Normalise(nn.Module):
    """The first layer of every network: images (B, 3, H, W), RGB, uint8 or float in 0..1 → float32 as the weights expect.

    It has no entries in the state dict: a checkpoint stores the preprocessing as plain values.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        self.preprocessing = preprocessing
        self.register_buffer("mean", torch.tensor(preprocessing.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std)[:, None, None], persistent=False)

    @property
    def mean_color(self) -> Tensor:
        """The colour, RGB (3, 1, 1) in 0..1, that becomes 0."""
        color = self.mean / self.preprocessing.maximum
        return color.flip(0) if self.preprocessing.order == "BGR" else color

    def forward(self, images: Tensor) -> Tensor:
        x = as_float(images)
        if self.preprocessing.maximum != 1:
            x = x * self.preprocessing.maximum
        if self.preprocessing.order == "BGR":
            x = x.flip(1)
        return (x - self.mean) / self.std
