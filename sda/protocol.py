"""How predictions and scores are made. Its name is stored with every score; scores of unequal protocols are not compared."""

from dataclasses import dataclass, replace

from sda.errors import SdaError

# A protocol for a network, by the name that a user asks for it by. "paper" is one of these two, by the network.
PRESETS = ("whole", "paper", "full-1024x2048", "half-512x1024", "slide")
FULL, HALF = (1024, 2048), (512, 1024)

Size = tuple[int, int] | None  # height, width; None: each image's or label's own


@dataclass(frozen=True)
class Protocol:
    """What decides a score besides the network and the images.

    Attributes:
        input: images are resized to it. score: labels are resized to it (nearest), and the logits (bilinear).
        window: of input pixels, (height, width), that slides with an overlap of a third; None: the whole image at once.
        scales: of the input, whose probabilities are averaged. flip: so are those of the mirrored image.
    """

    input: Size = None
    score: Size = None
    window: Size = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self):
        if not self.scales or any(not 0.1 <= scale <= 10 for scale in self.scales):
            raise SdaError(
                f"scales {', '.join(map(str, self.scales)) or 'none'}: expected numbers from 0.1 to 10, such as 0.75,1,1.25"
            )

    @property
    def name(self) -> str:
        """All of it in a word, such as `whole-512x1024-native`: window, input size, score size."""
        cut = f"slide{_size(self.window)}" if self.window else "whole"
        presets = {(FULL, FULL): "full-1024x2048", (HALF, HALF): "half-512x1024"}
        name = f"{cut}-{_size(self.input)}-{_size(self.score)}"
        if not self.window:
            name = presets.get((self.input, self.score), name)
        if self.scales != (1.0,):
            name += f"-scales{','.join(f'{scale:g}' for scale in self.scales)}"
        return name + ("-flip" if self.flip else "")

    @property
    def passes(self) -> int:
        """Forward passes per image, each counted as one of the whole image at scale 1."""
        return len(self.scales) * (2 if self.flip else 1)

    @property
    def cost(self) -> str:
        """The same in words, with the pixels that a network sees."""
        pixels = sum(scale**2 for scale in self.scales) * (2 if self.flip else 1)
        if self.passes == 1 and pixels == 1:
            return "1 pass per image"
        return f"{self.passes} pass{'es' if self.passes > 1 else ''} per image, {pixels:.2g} times the pixels of one"

    def to_dict(self) -> dict:
        """For a file: plain values."""
        return {
            "name": self.name,
            "input": list(self.input) if self.input else "native size",
            "labels": list(self.score) if self.score else "native size",
            "window": list(self.window) if self.window else "whole image",
            "scales": list(self.scales),
            "flip": self.flip,
        }

    @classmethod
    def from_dict(cls, values: dict) -> "Protocol":
        """The inverse of `to_dict`."""
        sizes = (tuple(values[key]) if isinstance(values[key], list) else None for key in ("input", "labels", "window"))
        return cls(*sizes, tuple(values["scales"]), values["flip"])


def preset(
    name: str,
    network: str,
    target: str,
    size: Size,
    crop: tuple[int, int],
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
) -> Protocol:
    """One of PRESETS, for one training.

    ==============  ====================================================================================================
    whole           the whole image at `size`, scored at each label's own size
    paper           on Cityscapes half-512x1024 for deeplabv2, full-1024x2048 for deeplabv3plus; elsewhere whole
    full-1024x2048  input and labels at 1024×2048
    half-512x1024   input and labels at 512×1024
    slide           windows of the training's `crop`, each overlapping the next by a third, over the image at `size`; whole
                    where the training crops nothing
    ==============  ====================================================================================================

    Args:
        network, target: the recipe's. size: of the network's input in evaluation. crop: that of training.

    Raises:
        SdaError: no such preset.
    """
    if name == "paper":
        name = "whole" if target != "cityscapes" else "half-512x1024" if network == "deeplabv2" else "full-1024x2048"
    protocols = {
        "whole": Protocol(size),
        "full-1024x2048": Protocol(FULL, FULL),
        "half-512x1024": Protocol(HALF, HALF),
        "slide": Protocol(size, window=None if size and crop[0] >= size[0] and crop[1] >= size[1] else crop),
    }
    if name not in protocols:
        raise SdaError(f"unknown protocol {name!r}: expected one of {', '.join(PRESETS)}")
    return replace(protocols[name], scales=scales, flip=flip)


def why_not_comparable(scores: dict[str, dict]) -> str:
    """Why scores cannot stand in one table, in words; "" when they can.

    Args:
        scores: title → the fields of `sda.scoring.evaluate.evaluate`: at least `protocol` and `iou`.
    """
    (first, one), *others = scores.items()
    for title, other in others:
        for key, value in one["protocol"].items():
            found = other["protocol"].get(key)
            if key != "name" and found != value:
                return (
                    f"{first} and {title} were scored under different protocols, {one['protocol']['name']} and "
                    f"{other['protocol']['name']} ({key}: {_shown(value)} and {_shown(found)})"
                )
        if list(one["iou"]) != list(other["iou"]):
            mine, theirs = [c for c in one["iou"] if c not in other["iou"]], [c for c in other["iou"] if c not in one["iou"]]
            return (
                f"{first} and {title} were scored over different classes ({len(one['iou'])} and {len(other['iou'])}; "
                f"{', '.join((mine + theirs)[:4]) or 'in another order'})"
            )
    return ""


def _size(size: Size) -> str:
    return "x".join(map(str, size)) if size else "native"


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)
