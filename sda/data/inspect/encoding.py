"""Find out how label files are encoded, compare that with the descriptor, and count the pixels of each class."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from sda.data.descriptor import Descriptor
from sda.data.files import Legend, show_color
from sda.data.inspect.scan import Finding, scan, scanned
from sda.data.item import Item
from sda.data.listing import Listing
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.system.console import Progress, ignore_count

SAMPLE = 8  # number of labels that are read before training
PALETTES = 64  # the same if they have palettes, which differ from file to file
VOID_DOUBT = 0.3  # an encoding is doubtful if its share of void pixels exceeds the other encoding's by this, 0 to 1


class Meaning:
    """The meaning of label values under a descriptor, for the findings of a scan, exactly as `LabelCodec` decodes the files.

    Attributes:
        names: names of the classes.
        legends: encoding → the meaning of ids and colours.
        distinct: whether ids differ from train ids.
    """

    def __init__(self, descriptor: Descriptor):
        self.names = descriptor.table().names
        self.legends = {encoding: Legend(descriptor, encoding) for encoding in ("ids", "train_ids", "ids_in_red", "names")}
        self.distinct = bool(descriptor.ids)

    def fits(self, encoding: str, finding: Finding) -> set[str]:
        """Return the encodings in which every value of a label is known, given the `encoding` in the descriptor."""
        values = _numbers(finding.values)
        if finding.kind == "names":
            return set() if self.unknown(encoding, finding) else {"names"}
        if finding.kind == "rgb":
            fits = {"colours"} if len(self.legends[encoding].of_colors(values)) == len(values) else set()
            red_fits = encoding == "ids_in_red" and _numbers(finding.red).keys() <= self.legends["ids_in_red"].ids.keys()
            return fits | ({"ids_in_red"} if red_fits or self.legends["ids_in_red"].holds_ids_in_red(values) else set())
        how = self.read_palette(encoding, finding)
        if how != "ids":
            return {"colours"} if how == "colours" else set()
        possible = ("ids", "train_ids") if self.distinct else (encoding,)
        return {each for each in possible if values.keys() <= self.legends[each].ids.keys()}

    def read_palette(self, encoding: str, finding: Finding) -> str:
        """Return how a label is read by its palette: see `Legend.read_palette`. Labels without a palette are read by ids."""
        return self.legends[encoding].read_palette(_palette(finding), _numbers(finding.values)) if finding.palette else "ids"

    def unknown(self, encoding: str, finding: Finding) -> list[int]:
        """Return the values of a label that are unknown in an encoding."""
        values, train_ids = self.read(encoding, finding)
        return [value for value in values if value not in train_ids]

    def fault(self, encoding: str, finding: Finding) -> str:
        """Describe why the values of a label cannot be decoded, as `LabelCodec` does."""
        values, legend = _numbers(finding.values), self.legends[encoding]
        if finding.kind == "names":
            return legend.advise_name([_shown(finding)[value] for value in self.unknown(encoding, finding)])
        if self.read_palette(encoding, finding) == "contradiction":
            return legend.contradiction(_palette(finding), values)
        colors = values if finding.kind == "rgb" and encoding != "ids_in_red" else None
        return legend.advise(self.unknown(encoding, finding), colors, finding.lossy)

    def pixels(self, encoding: str, finding: Finding) -> dict[int, int]:
        """Return train id → pixels of one label, without void and unknown values."""
        values, train_ids = self.read(encoding, finding)
        pixels: Counter[int] = Counter()
        for value, count in values.items():
            if count and train_ids.get(value, IGNORE) != IGNORE:
                pixels[train_ids[value]] += count
        return dict(pixels)

    def read(self, encoding: str, finding: Finding) -> tuple[dict[int, int], dict[int, int]]:
        """Return the values of a label in an encoding (value → pixels), and the train ids of known values."""
        legend, values = self.legends[encoding], _numbers(finding.values)
        if finding.kind == "names":
            names = _shown(finding)
            return values, {value: legend.by_name[name] for value, name in names.items() if name in legend.by_name}
        if finding.kind == "rgb" and encoding == "ids_in_red":
            return _numbers(finding.red), legend.ids
        if finding.kind == "rgb":
            return values, legend.of_colors(values)
        how, palette = self.read_palette(encoding, finding), _palette(finding)
        if how == "colours":
            return values, {value: legend.colors[palette[value]] for value in values}
        return values, legend.ids if how == "ids" else {}


def _numbers(values: dict[str, int] | None) -> dict[int, int]:
    """Return the values of a finding as numbers: "#rrggbb" as 0xrrggbb, names by their places."""
    if any(value.startswith("=") for value in values or {}):
        return dict(enumerate((values or {}).values()))
    return {_number(value): count for value, count in (values or {}).items()}


def _number(value: str) -> int:
    return int(value[1:], 16) if value.startswith("#") else int(value)


def _shown(finding: Finding) -> dict[int, str]:
    """Return number → the value as people write it, for the values of a finding."""
    values = finding.values or {}
    return dict(zip(_numbers(values), (value.removeprefix("=") for value in values), strict=True))


def _palette(finding: Finding) -> list[int]:
    return [_number(color) for color in finding.palette.split()]


@dataclass(frozen=True)
class Encodings:
    """The encodings of the labels of a split, judged by their values.

    Attributes:
        ours: the `encoding` in the descriptor.
        other: the encoding that some labels have instead; empty if there are none.
        counts: encoding, or several that fit → number of labels.
        advice: what to change if the files contradict the descriptor or each other; else empty.
        palettes: whether one colour has different ids in the palettes of labels that are read by their ids.
    """

    ours: str
    other: str
    counts: Counter[str] = field(default_factory=Counter)
    advice: str = ""
    palettes: bool = False

    def accept(self, fits: set[str]) -> set[str]:
        """Return those of the encodings that a label fits that count: the descriptor's, colours, and the other one."""
        if self.ours == "ids_in_red" or self.ours in fits:
            return fits
        return fits & {"colours", self.other}


def find_encodings(dataset: str, meaning: Meaning, encoding: str, findings: list[Finding]) -> Encodings:
    """Find the encodings that the labels of a split fit, and compare them with the `encoding` in the descriptor.

    Args:
        dataset: its name or TOML path, for the advice.
    """
    usable = [finding for finding in findings if finding.values and not finding.label_fault]
    fits = [meaning.fits(encoding, finding) for finding in usable]
    read = Encodings(encoding, other := _other_encoding(meaning, encoding, usable, fits))
    read.counts.update(" or ".join(sorted(read.accept(fitting))) or "unknown values" for fitting in fits)
    if other:
        ours, theirs = encoding.replace("_", " "), other.replace("_", " ")
        advice = f"the labels are {theirs}, not {ours} as the descriptor says: {_change(dataset, other)}"
        if other == "ids_in_red":
            advice = f"the labels are RGB files with ids in their red channel: {_change(dataset, other)}"
        elif read.counts[encoding]:
            advice = "some labels are ids and some are train ids: did a conversion stop half-way? Restore the originals"
        return replace(read, advice=advice)
    permuted, advice = compare_palettes(meaning, ((encoding, finding) for finding in usable))
    return replace(read, advice=advice or _doubt(dataset, meaning, encoding, usable, read.counts), palettes=permuted)


def _change(dataset: str, encoding: str) -> str:
    if dataset.endswith(".toml"):
        return f'set encoding = "{encoding}" in the [[layout]] of {dataset}'
    return f'sda datasets {dataset} > mine.toml, set encoding = "{encoding}" in its [[layout]], and use mine.toml'


def _other_encoding(meaning: Meaning, encoding: str, findings: list[Finding], fits: list[set[str]]) -> str:
    """Return the encoding that some labels clearly have instead of the descriptor's; empty if there are none.

    A value that was forgotten in the descriptor does not make another encoding, although labels without it may fit one.
    """
    if encoding in ("ids_in_red", "names"):
        return ""
    if any(fitting == {"ids_in_red"} for fitting in fits):
        return "ids_in_red"
    other = "train_ids" if encoding == "ids" else "ids"
    strange = [finding for finding, fitting in zip(findings, fits, strict=True) if fitting == {other}]
    values = {value for finding in strange for value in _numbers(finding.values)}
    known = meaning.legends[encoding].ids
    unknown = {value for value in values if value not in known}
    classes = {value for value in values if known.get(value, IGNORE) != IGNORE}
    if len(unknown) > 1 and (unknown & {250, 255} or len(unknown) > len(classes)):
        return other
    return other if strange and _void(meaning, encoding, strange) > _void(meaning, other, strange) + VOID_DOUBT else ""


def compare_palettes(meaning: Meaning, findings: Iterable[tuple[str, Finding]]) -> tuple[bool, str]:
    """Compare the palettes of labels that are read by their ids although these palettes are not those of the class table.

    Args:
        findings: the `encoding` in the descriptor, and the finding, of each label.

    Returns:
        Whether a colour has different ids in different labels, and advice if it has or if an id has different colours.
    """
    seen: dict[tuple[int, int], str] = {}  # (id, colour) → the first label that shows it
    for encoding, finding in findings:
        if finding.palette and meaning.read_palette(encoding, finding) == "ids":
            palette = _palette(finding)
            shown = [(value, palette[value]) for value in _numbers(finding.values) if value < len(palette)]
            repeated = Counter(color for _, color in shown)
            for value, color in shown:
                if repeated[color] == 1:
                    seen.setdefault((value, color), finding.key)
    colors: dict[int, int] = {}
    ids: dict[int, int] = {}
    changed = {value for value, color in seen if colors.setdefault(value, color) != color}
    moved = [(value, color) for value, color in seen if ids.setdefault(color, value) != value and {value, ids[color]} & changed]
    if not changed:
        return False, ""
    if moved:
        value, color = moved[0]
        first = ids[color]
        what = f"{show_color(color)} is {first} in {seen[first, color]} and {value} in {seen[value, color]}"
    else:
        value = min(changed)
        (_, first), (_, color) = [pair for pair in seen if pair[0] == value][:2]
        what = f"{value} is {show_color(first)} in {seen[value, first]} and {show_color(color)} in {seen[value, color]}"
    return bool(moved), (
        f"the palettes of the labels differ: {what}, so an id may mean another class in each file; give the classes the colours "
        "of the palettes (sda init-dataset proposes them), and the labels are read by their colours"
    )


def _doubt(dataset: str, meaning: Meaning, encoding: str, findings: list[Finding], counts: Counter[str]) -> str:
    """Return advice if every label fits two encodings and the other one is more plausible; else empty."""
    other = "train_ids" if encoding == "ids" else "ids"
    if counts.keys() != {"ids or train_ids"}:
        return ""
    ours, theirs = encoding.replace("_", " "), other.replace("_", " ")
    void, void_else = (_void(meaning, each, findings) for each in (encoding, other))
    if void <= void_else + VOID_DOUBT:
        return ""
    return (
        f"every label could be ids or train ids: {void:.0%} of the pixels are void if they are {ours}, {void_else:.0%} "
        f"if they are {theirs}. Look at the contact sheet; if they are {theirs}: {_change(dataset, other)}"
    )


def _void(meaning: Meaning, encoding: str, findings: list[Finding]) -> float:
    """Return the share of void among the known pixels in an encoding, 0 to 1."""
    void = sum(sum(_void_values(meaning, encoding, finding).values()) for finding in findings)
    known = sum(sum(meaning.pixels(encoding, finding).values()) for finding in findings)
    return void / max(void + known, 1)


def _void_values(meaning: Meaning, encoding: str, finding: Finding) -> dict[int, int]:
    """Return the void values of a label → pixels."""
    values, train_ids = meaning.read(encoding, finding)
    return {value: count for value, count in values.items() if train_ids.get(value) == IGNORE}


def find_single_class(meaning: Meaning, encoding: str, findings: list[Finding]) -> str:
    """Describe the labels if all show the same single class, apart from void; else return an empty text."""
    counted = [meaning.pixels(encoding, finding) for finding in findings]
    classes = {train_id for pixels in counted for train_id in pixels}
    if len(classes) != 1 or any(meaning.unknown(encoding, finding) for finding in findings):
        return ""
    name = meaning.names[classes.pop()]
    void: Counter[str] = Counter()
    for finding in findings:
        shown = _shown(finding) if encoding != "ids_in_red" else {}
        for value, count in _void_values(meaning, encoding, finding).items():
            if count:
                void[shown.get(value, str(value)) or "what no object covers"] += count
    total = sum(void.values()) + sum(sum(pixels.values()) for pixels in counted)
    if not void:
        return f"every pixel of the labels is {name!r}: a network needs at least two classes"
    shares = ", ".join(f"{value} ({count / total:.0%} of the pixels)" for value, count in void.most_common(3))
    return (
        f"every pixel of the labels is {name!r} or void, but a network needs at least two classes; if {shares} is a class and "
        f"not void, add it to [classes] and {'set background, or add it to [names]' if encoding == 'names' else '[ids]'}"
    )


def find_large_ids(findings: list[Finding]) -> str:
    """Describe the ids of labels that are outside of 0 to 255; empty if there are none."""
    outside = {one.key: beyond for one in findings if (beyond := _outside(one))}
    if not outside:
        return ""
    values = sorted(set().union(*outside.values()))
    shown = ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")
    instances = "; values from 1000 are often instances: look for files of class ids" if values[-1] >= 1000 else ""
    return (
        f"ids must be from 0 to 255, but {len(outside)} of {len(findings)} labels that were read hold {shown}, such as that of "
        f"{next(iter(outside))}: convert the labels{instances}"
    )


def _outside(finding: Finding) -> set[int]:
    """Return the ids of a label that are outside of 0 to 255."""
    if finding.kind != "index" or finding.lossy:
        return set()
    return {value for value in _numbers(finding.values) if not 0 <= value <= 255}


def check_encoding(name: str, descriptor: Descriptor, listing: Listing, root: Path) -> str:
    """Read labels that are spread over a listing before training on them: SAMPLE, or more if they have palettes.

    Returns:
        Advice if the encoding is doubtful, if ids are above 255, or if the labels show a single class; else empty.

    Raises:
        SdaError: none of these labels can be read, none fits the descriptor's encoding and some clearly have another, or their
            palettes contradict each other.
    """
    meaning = Meaning(descriptor)
    sample = _sample(meaning, listing, root)
    read = find_encodings(name, meaning, listing.encoding, sample)
    found = {encoding for fitting in read.counts for encoding in fitting.split(" or ")}
    large = find_large_ids(sample)
    if sample and found <= {"unknown values"}:
        item = next(item for item in listing.items if item.key == sample[0].key)
        fault = sample[0].label_fault or f"{item.label}: {meaning.fault(listing.encoding, sample[0])}"
        raise SdaError(f"{descriptor.title} in {root}: {large}" if large else fault)
    if read.palettes or (read.other and not found & {listing.encoding, "colours"}):
        raise SdaError(f"{descriptor.title} in {root}: {read.advice}; for details run sda doctor")
    return read.advice or large or find_single_class(meaning, listing.encoding, sample)


def check_palettes(descriptor: Descriptor, listings: Iterable[Listing], root: Path) -> None:
    """Raise SdaError if palettes of labels of one listing contradict those of another listing of the dataset.

    As many labels are read as by `check_encoding`. If the first listing has no palettes, the others are not listed.
    """
    meaning, findings = Meaning(descriptor), []
    for listing in listings:
        sample = _sample(meaning, listing, root)
        findings += [(listing.encoding, finding) for finding in sample]
        if not _has_palettes(meaning, listing.encoding, sample):
            break
    contradict, advice = compare_palettes(meaning, findings)
    if contradict:
        raise SdaError(f"{descriptor.title} in {root}: {advice}; for details run sda doctor")


def _sample(meaning: Meaning, listing: Listing, root: Path) -> list[Finding]:
    """Read labels that are spread over a listing; if they have palettes, more of them and all that are in the scan's cache."""
    items = [item for item in listing.items if item.label is not None]
    few, more = (items[:: max(1, -(-len(items) // count))] for count in (SAMPLE, PALETTES))
    sample = scan(few, root, processes=1)
    if not _has_palettes(meaning, listing.encoding, sample):
        return sample
    every = {finding.key: finding for finding in [*sample, *scan(more, root, processes=1), *scanned(items, root)]}
    return list(every.values())


def _has_palettes(meaning: Meaning, encoding: str, findings: list[Finding]) -> bool:
    """Return whether labels have palettes although they are read by their ids."""
    return any(one.palette and meaning.read_palette(encoding, one) == "ids" for one in findings)


def class_pixels(
    descriptor: Descriptor, encoding: str, items: list[Item], root: Path, progress: Progress = ignore_count
) -> dict[str, list[int]]:
    """Count pixels per class: key → counts of the C classes of the descriptor's own table. Use the scan's cache."""
    meaning, counted = Meaning(descriptor), {}
    for item, finding in zip(items, scan(items, root, progress), strict=True):
        pixels = meaning.pixels(encoding, finding)
        counted[item.key] = [pixels.get(index, 0) for index in range(len(meaning.names))]
    return counted
