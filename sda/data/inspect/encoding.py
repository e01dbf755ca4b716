"""What label files hold: whether it is what the descriptor says, and how many pixels of each class."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sda.data.descriptor import Descriptor, label_values
from sda.data.inspect.scan import Finding, scan
from sda.data.item import Item
from sda.data.listing import Listing
from sda.errors import SdaError
from sda.labels import IGNORE

Progress = Callable[[int, int], None]


SAMPLE = 8  # labels looked at before a training


VOID_DOUBT = 0.3  # so much more of void pixels, 0 to 1, makes one encoding less likely than another


class Meaning:
    """What a descriptor makes of the values in label files; worked out once for all of them.

    Attributes:
        names: the classes. ids: encoding → value as text → train id. colours: "#rrggbb" → train id, 255 for void.
        distinct: whether ids are other numbers than train ids.
    """

    def __init__(self, descriptor: Descriptor):
        table = descriptor.table()
        self.names = table.names
        self.ids = {
            encoding: {str(value): train_id for value, train_id in label_values(descriptor, encoding).items()}
            for encoding in ("ids", "train_ids", "ids_in_red")
        }
        colours = [*((color, IGNORE) for color in descriptor.void_colors)]
        colours += [(color, train_id) for train_id, color in enumerate(table.colors.values())]
        self.colours = {f"#{r << 16 | g << 8 | b:06x}": train_id for (r, g, b), train_id in colours}
        self.distinct = bool(descriptor.ids)

    def of(self, encoding: str, finding: Finding) -> tuple[dict[str, int], dict[str, int]]:
        """The values of a label that count under an encoding (value → pixels), and the meaning of values (→ train id)."""
        if finding.kind == "rgb" and encoding != "ids_in_red":
            return finding.values, self.colours
        return (finding.red if finding.kind == "rgb" else finding.values) or {}, self.ids[encoding]

    def fits(self, encoding: str, finding: Finding) -> set[str]:
        """The encodings under which every value of a label has a meaning, where the descriptor speaks of `encoding`."""
        if finding.kind != "rgb":
            possible = ("ids", "train_ids") if self.distinct else (encoding,)
            return {each for each in possible if finding.values.keys() <= self.ids[each].keys()}
        fits = {"colours"} if finding.values.keys() <= self.colours.keys() else set()
        return fits | ({"ids_in_red"} if finding.red.keys() <= self.ids["ids_in_red"].keys() else set())

    def unknown(self, encoding: str, finding: Finding) -> list[str]:
        """The values of a label that have no meaning under an encoding."""
        values, meaning = self.of(encoding, finding)
        return [value for value in values if value not in meaning]

    def pixels(self, encoding: str, finding: Finding) -> dict[int, int]:
        """Train id → pixels of one label, void and unknown values left out."""
        values, meaning = self.of(encoding, finding)
        pixels = Counter()
        for value, count in values.items():
            if meaning.get(value, IGNORE) != IGNORE:
                pixels[meaning[value]] += count
        return dict(pixels)


class Encodings:
    """What the labels of a split are, by their values.

    Attributes:
        told: what they are → how many.
        sure: whether a label that could be either is what the descriptor says: not if others are surely something else.
        advice: what to change, where the files speak for another encoding; else empty.
    """

    def __init__(self, dataset: str, meaning: Meaning, encoding: str, findings: list[Finding]):
        self.advice, self.told = "", Counter()
        for finding in findings:
            if finding.values and not finding.label_fault:
                self.told[" or ".join(sorted(meaning.fits(encoding, finding))) or "unknown values"] += 1
        other = "train_ids" if encoding == "ids" else "ids"
        self.sure = encoding == "ids_in_red" or not self.told[other]
        ours, theirs = encoding.replace("_", " "), other.replace("_", " ")
        copy = f'copy of the descriptor (sda datasets {dataset} > mine.toml), set encoding = "{other}" in its [[layout]]'
        if encoding == "ids_in_red":
            return
        if self.told[other] and self.told[encoding]:
            self.advice = "some labels are ids and some are train ids: a conversion that stopped half-way? Restore the originals"
        elif self.told[other]:
            self.advice = f"the labels are {theirs}, not {ours} as the descriptor says: in a {copy}, and use mine.toml"
        elif self.told.keys() == {"ids or train_ids"}:
            void, void_else = (_void(meaning, each, findings) for each in (encoding, other))
            if void > void_else + VOID_DOUBT:
                self.advice = (
                    f"every label could be ids or train ids. Read as {ours}, {void:.0%} of the pixels are void, as {theirs} "
                    f"{void_else:.0%}: look at the contact sheet; if they are {theirs}, in a {copy}, and use mine.toml"
                )


def _void(meaning: Meaning, encoding: str, findings: list[Finding]) -> float:
    """The share of void pixels, 0 to 1, under an encoding."""
    known = sum(sum(meaning.pixels(encoding, finding).values()) for finding in findings)
    return 1 - known / max(sum(sum((finding.values or {}).values()) for finding in findings), 1)


def check_encoding(name: str, descriptor: Descriptor, listing: Listing, root: Path) -> str:
    """Look at SAMPLE labels from all over a listing, before anything is trained on them.

    Returns:
        What to doubt; empty when they are what the descriptor says.

    Raises:
        SdaError: none is in the encoding that the descriptor says, and some surely are in another.
    """
    items = [item for item in listing.items if item.label is not None]
    sample = scan(items[:: max(1, -(-len(items) // SAMPLE))], root, processes=1)
    read = Encodings(name, Meaning(descriptor), listing.encoding, sample)
    found = {encoding for words in read.told for encoding in words.split(" or ")}
    if read.advice and listing.encoding not in found:
        raise SdaError(f"{descriptor.title} in {root}: {read.advice}; sda doctor tells more")
    return read.advice


def class_pixels(
    descriptor: Descriptor, encoding: str, items: list[Item], root: Path, progress: Progress = lambda done, total: None
) -> dict[str, list[int]]:
    """Statistics: item → pixels of each class of the descriptor's own table, (C,) per item; made when first asked for."""
    meaning, counted = Meaning(descriptor), {}
    for item, finding in zip(items, scan(items, root, progress), strict=True):
        pixels = meaning.pixels(encoding, finding)
        counted[item.key] = [pixels.get(index, 0) for index in range(len(meaning.names))]
    return counted
