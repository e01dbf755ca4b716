"""Whether an exported network computes what the network of the run does."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sda.errors import SdaError
from sda.export.formats import Segment
from sda.protocol import Protocol
from sda.scoring.inference import predict_logits

CHECKED = ((1, 33, 47), (2, 65, 129))  # images, height, width of pictures that are checked, besides one of the training's size


TOLERANCE = 2e-3  # of a probability. Sums in another order differ by less than 1e-3, another resizing by 1e-2 and more


@dataclass(frozen=True)
class Agreement:
    """How far two networks call the same pixels the same.

    Attributes:
        pictures: their sizes, as in "2x65x129". equal: share of pixels with the same label. confidence: largest difference.
        probability: the most by which the second network prefers its label to that of the first; 0 where all are equal.
    """

    pictures: list[str]
    equal: float
    confidence: float
    probability: float

    def __str__(self) -> str:
        return f"{100 * self.equal:.4f} % of the labels equal, confidence within {self.confidence:.1g}"


def picture(count: int, height: int, width: int, seed: int) -> Tensor:
    """Made-up images (count, 3, height, width), uint8: patches of colour that flow into each other, with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 7, generator=generator)
    noise = torch.randn(count, 3, height, width, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return (255 * smooth + 8 * noise).clamp(0, 255).to(torch.uint8)


def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) of images (B, 3, H, W), as sda predicts."""
    return predict_logits(network, images, tuple(images.shape[2:]), Protocol()).softmax(dim=1)


def agreement(found: list[tuple[Tensor, Tensor]], expected: list[Tensor]) -> Agreement:
    """Labels and confidence (B, H, W) of one network, per picture, and the probabilities (B, C, H, W) of another."""
    equal, pixels, confidence, probability = 0, 0, [], []
    for (labels, sure), p in zip(found, expected, strict=True):
        most, own = p.max(dim=1)
        theirs = p.gather(1, labels.long().clamp(max=p.shape[1] - 1)[:, None])[:, 0] * (labels < p.shape[1])
        equal, pixels = equal + (labels == own).sum().item(), pixels + own.numel()
        confidence.append((sure - most).abs().amax().item())
        probability.append((most - theirs).amax().item())
    sizes = ["x".join(map(str, (len(p), *p.shape[2:]))) for p in expected]
    return Agreement(sizes, equal / pixels, *(torch.tensor(values).max().item() for values in (confidence, probability)))


def run_on(segment: Segment, pictures: list[Tensor], form: str) -> list[tuple[Tensor, Tensor]]:
    """What was exported on every picture. SdaError when it cannot take one of them."""
    found = []
    for images in pictures:
        shape = (len(images), *images.shape[2:])
        wanted = [(torch.uint8, shape), (torch.float32, shape)]
        try:
            outputs = tuple(segment(images))
            kinds = [(output.dtype, tuple(output.shape)) for output in outputs]
            reason = "" if kinds == wanted else f"it gives {kinds}"
        except Exception as error:  # each runtime has errors of its own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if reason:
            raise SdaError(f"--as {form}: what was exported does not take images of {shape}: {reason}; nothing is written")
        found.append(outputs)
    return found


def refuse_unlike(check: Agreement, form: str) -> None:
    """SdaError when what was exported is another network."""
    if not (check.confidence <= TOLERANCE and check.probability <= TOLERANCE):  # NaN is no agreement either
        raise SdaError(
            f"--as {form}: what was exported does not compute what the network does: {check} (at most {TOLERANCE} is due to "
            f"rounding), on pictures of {', '.join(check.pictures)}; nothing is written"
        )
