"""Compare exported models with the network of the run."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sda.errors import SdaError
from sda.export.formats import Segment
from sda.models.network import SegmentationNetwork
from sda.protocol import Protocol
from sda.scoring.inference import predict_logits

CHECKED = ((1, 33, 47), (2, 65, 129))  # (count, height, width) of test images, in addition to one of the training size
TOLERANCE = 2e-3  # of probabilities: rounding changes them by less than 1e-3, a different interpolation by 1e-2 or more


@dataclass(frozen=True)
class Agreement:
    """How well an exported model agrees with the network, on test images.

    Attributes:
        pictures: sizes of the test images, such as "2x65x129". equal: share of pixels with the same label, 0 to 1.
        confidence: largest difference in confidence.
        probability: largest difference between the network's probabilities of its own label and of the model's label.
    """

    pictures: list[str]
    equal: float
    confidence: float
    probability: float

    def __str__(self) -> str:
        return f"{100 * self.equal:.4f} % of the labels equal, confidence within {self.confidence:.1g}"


def picture(count: int, height: int, width: int, seed: int) -> Tensor:
    """Return synthetic images (count, 3, height, width), uint8: smooth patches of colour with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 7, generator=generator)
    noise = torch.randn(count, 3, height, width, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return (255 * smooth + 8 * noise).clamp(0, 255).to(torch.uint8)


def probabilities(network: SegmentationNetwork, images: Tensor) -> Tensor:
    """Return the probabilities (B, C, H, W) that sda predicts for images (B, 3, H, W)."""
    height, width = images.shape[2:]
    return predict_logits(network, images, (height, width), Protocol()).softmax(dim=1)


def agreement(found: list[tuple[Tensor, Tensor]], expected: list[Tensor]) -> Agreement:
    """Compare a model with the network, on the same test images.

    Args:
        found: labels and confidence (B, H, W) of the model. expected: probabilities (B, C, H, W) of the network.
    """
    equal, pixels, confidence, probability = 0, 0, [], []
    for (labels, sure), p in zip(found, expected, strict=True):
        most, own = p.max(dim=1)
        theirs = p.gather(1, labels.long().clamp(max=p.shape[1] - 1)[:, None])[:, 0] * (labels < p.shape[1])
        equal, pixels = equal + int((labels == own).sum()), pixels + own.numel()
        confidence.append((sure - most).abs().amax().item())
        probability.append((most - theirs).amax().item())
    sizes = ["x".join(map(str, (len(p), *p.shape[2:]))) for p in expected]
    return Agreement(sizes, equal / pixels, *(torch.tensor(values).max().item() for values in (confidence, probability)))


def run_on(segment: Segment, pictures: list[Tensor], form: str) -> list[tuple[Tensor, Tensor]]:
    """Return the labels and confidence (B, H, W) of an exported model for each test image.

    Raises:
        SdaError: the model fails on an image, or its outputs have the wrong shape or type.
    """
    found = []
    for images in pictures:
        shape = (len(images), *images.shape[2:])
        wanted = [(torch.uint8, shape), (torch.float32, shape)]
        try:
            outputs = tuple(segment(images))
            kinds = [(output.dtype, tuple(output.shape)) for output in outputs]
            reason = "" if kinds == wanted else f"its outputs are {kinds}"
        except Exception as error:  # every runtime raises its own errors
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if reason:
            raise SdaError(f"--as {form}: the exported model fails on images of {shape}: {reason}; nothing was written")
        found.append((outputs[0], outputs[1]))
    return found


def require_agreement(check: Agreement, form: str) -> None:
    """Raise SdaError if an exported model does not compute the same as the network."""
    if not (check.confidence <= TOLERANCE and check.probability <= TOLERANCE):  # NaN is also an error
        raise SdaError(
            f"--as {form}: the exported model does not compute the same as the network: {check} (rounding explains at most "
            f"{TOLERANCE}), on images of {', '.join(check.pictures)}; nothing was written"
        )
