"""What a network's images look like: the preprocessing that its weights expect."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sda.errors import SdaError


@dataclass(frozen=True)
class Preprocessing:
    """What a network's images look like: channel order, range, and mean and deviation per channel, in that order and range."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    order: str = "RGB"
    maximum: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W), uint8 or float in 0..1, RGB; returns a new float tensor of the same shape."""
        factor = self.maximum / 255 if images.dtype == torch.uint8 else self.maximum
        images = images.float() * factor
        if self.order == "BGR":
            images = images.flip(1)
        # Channel by channel with plain numbers: a tensor of means would be a copy to the device, which waits for it.
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            images[:, channel].sub_(mean).div_(std)
        return images

    def to_dict(self) -> dict:
        """Plain values, for a checkpoint."""
        return {"mean": list(self.mean), "std": list(self.std), "order": self.order, "maximum": self.maximum}

    @classmethod
    def from_dict(cls, values: dict) -> "Preprocessing":
        """The inverse of `to_dict`. Raises SdaError when `values` is nothing of the kind."""
        try:
            mean, std = (tuple(float(value) for value in values[key]) for key in ("mean", "std"))
            order, maximum = values["order"], float(values["maximum"])
        except (KeyError, TypeError, ValueError):
            mean, std, order, maximum = (), (), "", 0.0
        if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in (*std, maximum)) or order not in ("RGB", "BGR"):
            raise SdaError(
                "preprocessing: expected 'mean' and 'std' of three numbers each, std above 0, 'order' RGB or BGR and 'maximum' "
                f"above 0; found {values!r}"
            )
        return cls(mean, std, order, maximum)


IMAGENET_PREPROCESSING = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


# By the format of the weights. Caffe's networks, and their conversions, take BGR in 0..255 and only subtract the mean.
PREPROCESSING = {
    "torchvision": IMAGENET_PREPROCESSING,
    "caffe": Preprocessing((104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0), "BGR", 255.0),
}
