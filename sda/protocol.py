"""Evaluation protocols. Every score stores its protocol; scores of different protocols are never compared."""

from dataclasses import dataclass, replace

from sda.errors import SdaError
from sda.sizes import Fit

# Names that --protocol and recipes accept; see `preset`.
PRESETS = ("whole", "paper", "full-1024x2048", "half-512x1024", "slide")
MOST_SCALES = 20
FULL, HALF = (1024, 2048), (512, 1024)

Size = tuple[int, int] | None  # height, width; None: the native size of each image or label


@dataclass(frozen=True)
class Protocol:
    """Everything that determines a score besides the network and the images.

    Attributes:
        input: size that images are resized to.
        score: size at which the score is computed: labels are resized to it (nearest neighbour), and logits (bilinear).
        window: (height, width) of a sliding window in input pixels, with an overlap of one third; None: the whole image at once.
        scales: input scales whose probabilities are averaged, 0.1 to 10.
        flip: also average the probabilities of the mirrored image.
        fit: how images are resized to `input`: see `sda.sizes.fitted`.

    Raises:
        SdaError: no scales or too many, or a scale out of range.
    """

    input: Size = None
    score: Size = None
    window: Size = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fit: Fit = "stretch"

    def __post_init__(self):
        if not 1 <= len(self.scales) <= MOST_SCALES or any(not 0.1 <= scale <= 10 for scale in self.scales):
            shown = ", ".join(map(str, self.scales[:MOST_SCALES])) or "none"
            raise SdaError(f"scales {shown}: expected numbers from 0.1 to 10, such as 0.75,1,1.25, {MOST_SCALES} at most")

    @property
    def name(self) -> str:
        """Window, input size and score size in one name, such as `whole-512x1024-native`; also scales and flip if used.

        With fit "inside": `whole-inside512x1024-native`.
        """
        cut = f"slide{_size(self.window)}" if self.window else "whole"
        presets: dict[tuple[Size, Size], str] = {(FULL, FULL): "full-1024x2048", (HALF, HALF): "half-512x1024"}
        inside = "inside" if self.fit == "inside" else ""
        name = f"{cut}-{inside}{_size(self.input)}-{_size(self.score)}"
        if not self.window and not inside:
            name = presets.get((self.input, self.score), name)
        if self.scales != (1.0,):
            name += f"-scales{','.join(f'{scale:g}' for scale in self.scales)}"
        return name + ("-flip" if self.flip else "")

    @property
    def passes(self) -> int:
        """Number of forward passes per image; windows of one image count as one pass."""
        return len(self.scales) * (2 if self.flip else 1)

    @property
    def cost(self) -> str:
        """A phrase with the number of passes and the number of pixels that the network processes per image."""
        pixels = sum(scale**2 for scale in self.scales) * (2 if self.flip else 1)
        if self.passes == 1 and pixels == 1:
            return "1 pass per image"
        return (
            f"{self.passes} pass{'es' if self.passes > 1 else ''} per image, {pixels:.2g} times the pixels of one pass at scale 1"
        )

    def to_dict(self) -> dict:
        """Return plain values, for a file."""
        return {
            "name": self.name,
            "input": list(self.input) if self.input else "native size",
            "labels": list(self.score) if self.score else "native size",
            "window": list(self.window) if self.window else "whole image",
            "scales": list(self.scales),
            "flip": self.flip,
            "fit": self.fit,
        }

    @classmethod
    def from_dict(cls, values: dict) -> "Protocol":
        """Return the protocol that `to_dict` described."""
        size, score, window = (
            tuple(values[key]) if isinstance(values[key], list) else None for key in ("input", "labels", "window")
        )
        fit: Fit = "inside" if values.get("fit") == "inside" else "stretch"  # scores of earlier versions have no fit
        return cls(size, score, window, tuple(values["scales"]), values["flip"], fit)


def preset(
    name: str,
    network: str,
    target: str,
    size: Size,
    crop: tuple[int, int],
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    fit: Fit = "stretch",
) -> Protocol:
    """Return one of PRESETS for a trained network.

    ==============  ====================================================================================================
    whole           the whole image at `size`, scored at the native size of each label
    paper           on Cityscapes, half-512x1024 for deeplabv2 and full-1024x2048 for deeplabv3plus; elsewhere whole
    full-1024x2048  input and labels at 1024×2048
    half-512x1024   input and labels at 512×1024
    slide           windows of the size of `crop` that overlap by one third, over the image at `size`; whole if training
                    does not crop
    ==============  ====================================================================================================

    Args:
        network, target: as in the recipe.
        size: size of the network's input in evaluation. crop: size of training crops.
        scales, flip: see `Protocol`.
        fit: how images are resized to `size`; in the two protocols of fixed sizes, images are stretched, as in publications.

    Raises:
        SdaError: unknown preset.
    """
    if name == "paper":
        name = "whole" if target != "cityscapes" else "half-512x1024" if network == "deeplabv2" else "full-1024x2048"
    protocols = {
        "whole": Protocol(size, fit=fit),
        "full-1024x2048": Protocol(FULL, FULL),
        "half-512x1024": Protocol(HALF, HALF),
        "slide": Protocol(size, window=None if size and crop[0] >= size[0] and crop[1] >= size[1] else crop, fit=fit),
    }
    if name not in protocols:
        raise SdaError(f"unknown protocol {name!r}: expected one of {', '.join(PRESETS)}")
    return replace(protocols[name], scales=scales, flip=flip)


def why_not_comparable(scores: dict[str, dict]) -> str:
    """Return the reason why scores are not comparable, or "" if they are.

    Args:
        scores: title → fields of `sda.scoring.evaluate.evaluate`, at least `protocol` and `iou`.
    """
    (first, one), *others = scores.items()
    for title, other in others:
        for key, value in one["protocol"].items():
            found = other["protocol"].get(key, "stretch" if key == "fit" else None)  # earlier versions had no fit
            if key != "name" and found != value:
                return (
                    f"{first} and {title} were scored under different protocols, {one['protocol']['name']} and "
                    f"{other['protocol']['name']} ({key}: {_shown(value)} and {_shown(found)})"
                )
        if list(one["iou"]) != list(other["iou"]):
            mine, theirs = [c for c in one["iou"] if c not in other["iou"]], [c for c in other["iou"] if c not in one["iou"]]
            return (
                f"{first} and {title} were scored over different classes ({len(one['iou'])} and {len(other['iou'])}; "
                f"{', '.join((mine + theirs)[:4]) or 'in a different order'})"
            )
    return ""


def _size(size: Size) -> str:
    return "x".join(map(str, size)) if size else "native"


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
