"""`sda doctor`: whether a dataset's files are what its descriptor says, and which pairs training must leave out."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sda.data.descriptor import Descriptor
from sda.data.inspect.bad_pairs import write_bad
from sda.data.inspect.encoding import Encodings, Meaning, Progress
from sda.data.inspect.scan import Finding, scan
from sda.data.item import Item
from sda.data.listing import Listing, find_orphans, list_splits
from sda.data.pack import list_packed_splits


@dataclass(frozen=True)
class Problem:
    """Something wrong with one file.

    Attributes:
        kind: a key of KINDS.
        bad: training must leave the pair out; otherwise it is worth knowing.
    """

    kind: str
    split: str
    key: str
    detail: str
    bad: bool


KINDS = {
    "unreadable image": "images that cannot be read",
    "unreadable label": "labels that cannot be read",
    "size mismatch": "images and labels of unequal size",
    "unknown values": "labels with values that the descriptor does not name",
    "other encoding": "labels in another encoding than the descriptor's",
    "black image": "images that are all black",
    "void label": "labels without a single pixel of a class",
    "no label": "images without a label file",
    "no image": "label files without an image",
    "duplicate": "images that are copies of another",
}


@dataclass
class Report:
    """What was found.

    Attributes:
        splits: split → images, labelled images, bad pairs, and the labels' encoding as the descriptor has it.
        encodings: what the label files hold → how many.
        advice: what to change, where something is wrong with a whole split.
        frequencies: class → share of labelled pixels and share of labelled images it occurs in, 0 to 1; images count alike.
        sizes: "WxH" → images.
    """

    dataset: str
    root: str
    splits: dict[str, dict] = field(default_factory=dict)
    encodings: dict[str, int] = field(default_factory=dict)
    advice: str = ""
    problems: list[Problem] = field(default_factory=list)
    frequencies: dict[str, dict[str, float]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def bad(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.bad]

    @property
    def never(self) -> list[str]:
        """Classes that do not occur."""
        return [name for name, share in self.frequencies.items() if share["images"] == 0]

    def to_dict(self) -> dict:
        return {**asdict(self), "never": self.never, "bad": len({(problem.split, problem.key) for problem in self.bad})}


def examine(
    name: str,
    descriptor: Descriptor,
    root: Path,
    splits: tuple[str, ...] = ("train", "val"),
    progress: Progress = lambda done, total: None,
    processes: int | None = None,
) -> tuple[Report, dict[str, Listing]]:
    """Read everything, judge it, and list the bad pairs, which training then leaves out.

    Splits that the dataset does not have are passed over, so long as it has one.

    Args:
        root: the dataset's folder, or a pack of it.

    Returns:
        The report, and the images of each split.

    Raises:
        SdaError: no images at all.
    """
    listings = list_packed_splits(root, descriptor, splits) if root.is_file() else list_splits(descriptor, root, splits)
    items = [item for listing in listings.values() for item in listing.items]
    findings = dict(zip((item.key for item in items), scan(items, root, progress, processes), strict=True))
    report, meaning, advice = Report(name, str(root.resolve())), Meaning(descriptor), {}
    first: dict[str, tuple[str, str]] = {}  # content → split and key of the first image that has it
    for split, listing in listings.items():
        read = Encodings(name, meaning, listing.encoding, [findings[item.key] for item in listing.items])
        report.encodings = dict((Counter(report.encodings) + read.told).most_common())
        labelled = sum(item.label is not None for item in listing.items)
        advice[read.advice or ("" if labelled else _advice_without_labels(listing))] = None
        for item in listing.items:
            report.problems += _judge(meaning, read, split, item, findings[item.key], listing)
        for path in find_orphans(descriptor, root, split, listing):
            report.problems.append(Problem("no image", split, path, f"{root / path}: no image goes with this label file", False))
        report.problems += _duplicates(split, listing.items, findings, first)
        report.splits[split] = {
            "images": len(listing.items),
            "labelled": labelled,
            "bad": len({problem.key for problem in report.bad if problem.split == split}),
            "encoding": listing.encoding,
        }
    report.advice = "; ".join(filter(None, advice))
    _count_classes(report, meaning, listings, findings)
    report.sizes = dict(Counter(f"{f.size[0]}x{f.size[1]}" for f in findings.values() if f.size).most_common())
    write_bad(
        root,
        descriptor,
        {item.key: item for item in items},
        [(problem.key, f"{problem.kind}: {problem.detail}") for problem in report.bad],
    )
    return report, listings


def _advice_without_labels(listing: Listing) -> str:
    pattern = listing.label_pattern
    return f"not one image has a label file: is the pattern {pattern} right?" if pattern else ""


def _judge(meaning: Meaning, read: Encodings, split: str, item: Item, finding: Finding, listing: Listing) -> list[Problem]:
    encoding = listing.encoding

    def problem(kind: str, detail: str, bad: bool = True) -> Problem:
        return Problem(kind, split, item.key, detail, bad)

    if finding.image_fault:
        return [problem("unreadable image", finding.image_fault)]
    found = []
    if finding.black:
        found.append(problem("black image", f"{item.image}: no pixel is brighter than 7 of 255"))
    if item.label is None:
        looked = f": looked for {listing.label_pattern}" if listing.label_pattern else ""
        return [*found, problem("no label", f"{item.image}: there is no label file for it{looked}", bad=False)]
    if finding.label_fault:
        return [*found, problem("unreadable label", finding.label_fault)]
    if finding.label_size != finding.size:
        sizes = f"the label is {finding.label_size[0]}x{finding.label_size[1]}, its image {finding.size[0]}x{finding.size[1]}"
        found.append(problem("size mismatch", f"{item.label}: {sizes}"))
    fits = meaning.fits(encoding, finding)
    expected = {encoding, "colours"} if encoding != "ids_in_red" else {"ids_in_red", "ids"}
    if fits and (not fits & expected or (not read.sure and len(fits) > 1)):
        found.append(problem("other encoding", f"{item.label}: holds {' or '.join(sorted(fits))}, not surely {encoding}"))
    elif not fits & expected:
        unknown = meaning.unknown(encoding, finding)
        found.append(problem("unknown values", f"{item.label}: {', '.join(unknown[:8])} are not in the descriptor"))
    elif not meaning.pixels(encoding, finding):
        found.append(problem("void label", f"{item.label}: every pixel is void", bad=False))
    return found


def _duplicates(split: str, items: list[Item], findings: dict[str, Finding], first: dict[str, tuple[str, str]]) -> list[Problem]:
    """Images whose bytes are those of an image before them, in this split or an earlier one; `first` is brought up to date."""
    problems = []
    for item in items:
        digest = findings[item.key].sha256
        before, twin = first.setdefault(digest, (split, item.key)) if digest else (split, item.key)
        if (before, twin) != (split, item.key):
            where = f"{twin} of {before}" if before != split else twin
            problems.append(Problem("duplicate", split, item.key, f"{item.image}: the same bytes as {where}", False))
    return problems


def _count_classes(report: Report, meaning: Meaning, listings: dict, findings: dict[str, Finding]) -> None:
    pixels, images, labelled = Counter(), Counter(), 0
    for listing in listings.values():
        for item in listing.items:
            finding = findings[item.key]
            counted = meaning.pixels(listing.encoding, finding)
            size = sum((finding.values or {}).values())  # images count alike, whatever their resolution
            pixels.update({train_id: count / size for train_id, count in counted.items()})
            images.update(counted.keys())
            labelled += item.label is not None
    total = sum(pixels.values())
    report.frequencies = {
        name: {"pixels": pixels[index] / (total or 1), "images": images[index] / max(labelled, 1)}
        for index, name in enumerate(meaning.names)
    }
