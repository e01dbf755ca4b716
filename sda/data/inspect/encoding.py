"""Find out how label files are encoded, compare that with the descriptor, and count the pixels of each class."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sda.data.descriptor import Descriptor, label_values
from sda.data.inspect.scan import Finding, scan
from sda.data.item import Item
from sda.data.listing import Listing
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.system.console import Progress, ignore_count

SAMPLE = 8  # number of labels that are read before training
VOID_DOUBT = 0.3  # an encoding is doubtful if its share of void pixels exceeds the other encoding's by this, 0 to 1


class Meaning:
    """The meaning of label values under a descriptor.

    Attributes:
        names: names of the classes.
        ids: encoding → value as text → train id.
        colours: "#rrggbb" → train id, 255 for void.
        distinct: whether ids differ from train ids.
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

    def fits(self, encoding: str, finding: Finding) -> set[str]:
        """Return the encodings in which every value of a label is known, given the `encoding` in the descriptor."""
        values, red = finding.values or {}, finding.red or {}
        if finding.kind != "rgb":
            possible = ("ids", "train_ids") if self.distinct else (encoding,)
            return {each for each in possible if values.keys() <= self.ids[each].keys()}
        fits = {"colours"} if values.keys() <= self.colours.keys() else set()
        return fits | ({"ids_in_red"} if red.keys() <= self.ids["ids_in_red"].keys() else set())

    def unknown(self, encoding: str, finding: Finding) -> list[str]:
        """Return the values of a label that are unknown in an encoding."""
        values, train_ids = self._read(encoding, finding)
        return [value for value in values if value not in train_ids]

    def pixels(self, encoding: str, finding: Finding) -> dict[int, int]:
        """Return train id → pixels of one label, without void and unknown values."""
        values, train_ids = self._read(encoding, finding)
        pixels: Counter[int] = Counter()
        for value, count in values.items():
            if train_ids.get(value, IGNORE) != IGNORE:
                pixels[train_ids[value]] += count
        return dict(pixels)

    def _read(self, encoding: str, finding: Finding) -> tuple[dict[str, int], dict[str, int]]:
        """Return the values of a label in an encoding (value → pixels), and the train ids of known values."""
        if finding.kind == "rgb" and encoding != "ids_in_red":
            return finding.values or {}, self.colours
        return (finding.red if finding.kind == "rgb" else finding.values) or {}, self.ids[encoding]


@dataclass(frozen=True)
class Encodings:
    """The encodings of the labels of a split, judged by their values.

    Attributes:
        counts: encoding, or several that fit → number of labels.
        trusted: whether a label that fits several encodings counts as the descriptor's; false if others clearly differ.
        advice: what to change if the files contradict the descriptor; else empty.
    """

    counts: Counter[str]
    trusted: bool
    advice: str


def find_encodings(dataset: str, meaning: Meaning, encoding: str, findings: list[Finding]) -> Encodings:
    """Find the encodings that the labels of a split fit, and compare them with the `encoding` in the descriptor.

    Args:
        dataset: its name or TOML path, for the advice.
    """
    counts: Counter[str] = Counter()
    for finding in findings:
        if finding.values and not finding.label_fault:
            counts[" or ".join(sorted(meaning.fits(encoding, finding))) or "unknown values"] += 1
    if encoding == "ids_in_red":
        return Encodings(counts, True, "")
    other = "train_ids" if encoding == "ids" else "ids"
    ours, theirs = encoding.replace("_", " "), other.replace("_", " ")
    change = f'sda datasets {dataset} > mine.toml, set encoding = "{other}" in its [[layout]], and use mine.toml'
    advice = ""
    if counts[other] and counts[encoding]:
        advice = "some labels are ids and some are train ids: did a conversion stop half-way? Restore the originals"
    elif counts[other]:
        advice = f"the labels are {theirs}, not {ours} as the descriptor says: {change}"
    elif counts.keys() == {"ids or train_ids"}:
        void, void_else = (_void(meaning, each, findings) for each in (encoding, other))
        if void > void_else + VOID_DOUBT:
            advice = (
                f"every label could be ids or train ids: {void:.0%} of the pixels are void if they are {ours}, {void_else:.0%} "
                f"if they are {theirs}. Look at the contact sheet; if they are {theirs}: {change}"
            )
    return Encodings(counts, not counts[other], advice)


def _void(meaning: Meaning, encoding: str, findings: list[Finding]) -> float:
    """Return the share of void pixels in an encoding, 0 to 1."""
    known = sum(sum(meaning.pixels(encoding, finding).values()) for finding in findings)
    return 1 - known / max(sum(sum((finding.values or {}).values()) for finding in findings), 1)


def check_encoding(name: str, descriptor: Descriptor, listing: Listing, root: Path) -> str:
    """Read SAMPLE labels, spread over a listing, before training on them.

    Returns:
        Advice if the encoding is doubtful; else empty.

    Raises:
        SdaError: none of these labels fits the descriptor's encoding, and some clearly have another.
    """
    items = [item for item in listing.items if item.label is not None]
    sample = scan(items[:: max(1, -(-len(items) // SAMPLE))], root, processes=1)
    read = find_encodings(name, Meaning(descriptor), listing.encoding, sample)
    found = {encoding for fitting in read.counts for encoding in fitting.split(" or ")}
    if read.advice and listing.encoding not in found:
        raise SdaError(f"{descriptor.title} in {root}: {read.advice}; for details run sda doctor")
    return read.advice


def class_pixels(
    descriptor: Descriptor, encoding: str, items: list[Item], root: Path, progress: Progress = ignore_count
) -> dict[str, list[int]]:
    """Count pixels per class: key → counts of the C classes of the descriptor's own table. Use the scan's cache."""
    meaning, counted = Meaning(descriptor), {}
    for item, finding in zip(items, scan(items, root, progress), strict=True):
        pixels = meaning.pixels(encoding, finding)
        counted[item.key] = [pixels.get(index, 0) for index in range(len(meaning.names))]
    return counted
