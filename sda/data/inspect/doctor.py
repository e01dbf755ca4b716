"""`sda doctor`: check a dataset's files against its descriptor, and find the pairs that training must skip."""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sda.data.descriptor import Descriptor
from sda.data.files import different_sizes
from sda.data.inspect.bad_pairs import write_bad
from sda.data.inspect.encoding import Encodings, Meaning, compare_palettes, find_encodings, find_large_ids, find_single_class
from sda.data.inspect.scan import Finding, scan
from sda.data.item import Item
from sda.data.listing import Listing, find_orphans, list_splits
from sda.data.packs.pack import list_packed_splits
from sda.system.console import Progress, ignore_count


@dataclass(frozen=True)
class Problem:
    """A problem with a file.

    Attributes:
        kind: a key of PROBLEM_KINDS.
        split, key: split and key of the image; without an image, the label's path relative to the root.
        detail: one line that names the file.
        bad: whether training must skip the pair. Other problems are only reported.
    """

    kind: str
    split: str
    key: str
    detail: str
    bad: bool


PROBLEM_KINDS = {
    "unreadable image": "images that cannot be read",
    "unreadable label": "labels that cannot be read",
    "size mismatch": "images and labels of different sizes",
    "orientation": "images that EXIF turns, of the size of their labels",
    "unknown values": "labels with values that are not in the descriptor",
    "palette": "labels with a palette that contradicts the descriptor or other labels",
    "other encoding": "labels in an encoding other than the descriptor's",
    "black image": "images that are black",
    "void label": "labels that are all void",
    "no label": "images without a label file",
    "no object": "images that annotations list without an object (empty_images in the descriptor says what they are)",
    "no image": "label files without an image",
    "map": "label or depth maps beside the images, not used as images",
    "duplicate": "images that are copies of others",
}


@dataclass
class Examination:
    """The doctor's findings on one dataset.

    Attributes:
        splits: split → number of images, labelled images and bad pairs, and the encoding of labels in the descriptor.
        encodings: encoding of the label files → number of files.
        advice: what to change if something is wrong with a whole split.
        frequencies: class → its share of labelled pixels and the share of labelled images that show it, 0 to 1. Every image
            has the same weight.
        sizes: "WxH" → number of images.
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
        """The classes that never occur."""
        return [name for name, share in self.frequencies.items() if share["images"] == 0]

    def to_dict(self) -> dict:
        """Return the findings as the content of report.json."""
        return {**asdict(self), "never": self.never, "bad": len({(problem.split, problem.key) for problem in self.bad})}


def examine(
    name: str,
    descriptor: Descriptor,
    root: Path,
    splits: tuple[str, ...] = ("train", "val"),
    progress: Progress = ignore_count,
    processes: int | None = None,
) -> tuple[Examination, dict[str, Listing]]:
    """Read a whole dataset, find problems, and write the list of bad pairs, which training then skips.

    Missing splits are skipped.

    Args:
        name: name or TOML path of the dataset, for the report.
        root: the dataset's folder, or a pack of it.

    Returns:
        The findings, and the images of each split.

    Raises:
        SdaError: none of the splits has images, or a folder cannot be read.
    """
    listings = list_packed_splits(root, descriptor, splits) if root.is_file() else list_splits(descriptor, root, splits)
    items = [item for listing in listings.values() for item in listing.items]
    findings = dict(zip((item.key for item in items), scan(items, root, progress, processes), strict=True))
    found, meaning = Examination(name, str(root.resolve())), Meaning(descriptor)
    advice: dict[str, None] = {}
    first: dict[str, tuple[str, str]] = {}  # SHA-256 → split and key of the first image with these bytes
    for split, listing in listings.items():
        of_split = [findings[item.key] for item in listing.items]
        read = find_encodings(name, meaning, listing.encoding, of_split)
        large = find_large_ids([finding for finding in of_split if finding.label])
        single = find_single_class(meaning, listing.encoding, of_split)
        found.encodings = dict((Counter(found.encodings) + read.counts).most_common())
        labelled = sum(item.label is not None for item in listing.items)
        advice[read.advice or ("" if labelled else _advice_without_labels(split, listing))] = None
        advice[large and f"{split}: {large}"] = None
        advice[single and f"{split}: {single}"] = None
        advice |= dict.fromkeys(listing.unread)
        for item in listing.items:
            found.problems += _judge(meaning, read, split, item, findings[item.key], listing)
        for path in find_orphans(descriptor, root, split, listing):
            found.problems.append(Problem("no image", split, path, f"{root / path}: this label file has no image", False))
        for key, photo in listing.maps.items():
            found.problems.append(Problem("map", split, key, f"{root / key}: looks like a map of {photo}: not an image", False))
        found.problems += _duplicates(split, listing.items, findings, first)
        found.splits[split] = {
            "images": len(listing.items),
            "labelled": labelled,
            "bad": len({problem.key for problem in found.bad if problem.split == split}),
            "encoding": listing.encoding,
        }
    if not any(advice):
        of_all = ((listing.encoding, findings[item.key]) for listing in listings.values() for item in listing.items)
        advice[compare_palettes(meaning, of_all)[1]] = None
    found.advice = "; ".join(filter(None, advice))
    _count_classes(found, meaning, listings, findings)
    found.sizes = dict(Counter(f"{f.size[0]}x{f.size[1]}" for f in findings.values() if f.size).most_common())
    write_bad(
        root,
        descriptor,
        {item.key: item for item in items},
        [(problem.key, f"{problem.kind}: {problem.detail}") for problem in found.bad],
    )
    return found, listings


def _advice_without_labels(split: str, listing: Listing) -> str:
    pattern = listing.label_pattern
    if listing.empty:
        return f"the annotations of {split} have no object in any image: annotate some, or is it another file?"
    return f"no image of {split} has a label file: is the pattern {pattern} right?" if pattern else ""


def _judge(meaning: Meaning, read: Encodings, split: str, item: Item, finding: Finding, listing: Listing) -> list[Problem]:
    """Return the problems of one pair."""
    encoding = listing.encoding

    def problem(kind: str, detail: str, bad: bool = True) -> Problem:
        return Problem(kind, split, item.key, detail, bad)

    if finding.image_fault:
        return [problem("unreadable image", finding.image_fault)]
    found = []
    if file := listing.empty.get(item.key):
        meaning_of_it = "labelled: all background" if item.label else "unlabelled"
        found.append(problem("no object", f"{item.image}: no object in {file.name}: {meaning_of_it}", bad=False))
    if finding.black:
        found.append(problem("black image", f"{item.image}: no value is above 7 of 255"))
    if item.label is None and item.key in listing.empty:
        return found
    if item.label is None:
        looked = f": looked for {listing.label_pattern}" if listing.label_pattern else ""
        return [*found, problem("no label", f"{item.image}: no label file{looked}", bad=False)]
    if finding.label_fault:
        return [*found, problem("unreadable label", finding.label_fault)]
    size, turn = finding.size, finding.orientation
    if size and finding.label_size and finding.label_size != size:
        found.append(problem("size mismatch", f"{item.label}: {different_sizes(item.image, size, finding.label_size, turn)}"))
    elif size and (1 < turn < 5 or (turn >= 5 and size[0] == size[1])):
        what = f"EXIF orientation {turn} turns or mirrors the image, but not its label; check that the two fit"
        found.append(problem("orientation", f"{item.image}: {what}", bad=False))
    fits = read.accept(meaning.fits(encoding, finding))
    expected = {encoding, "colours"} if encoding != "ids_in_red" else {"ids_in_red", "ids"}
    doubtful = read.other in ("ids", "train_ids") and len(fits) > 1
    if fits and (not fits & expected or doubtful):
        why = f", and other labels are not {encoding}" if fits & expected else f"; the descriptor says {encoding}"
        found.append(problem("other encoding", f"{item.label}: holds {' or '.join(sorted(fits))}{why}"))
    elif not fits:
        kind = "palette" if meaning.read_palette(encoding, finding) == "contradiction" else "unknown values"
        found.append(problem(kind, f"{item.label}: {meaning.fault(encoding, finding)}"))
    elif read.palettes and finding.palette and meaning.read_palette(encoding, finding) == "ids":
        found.append(
            problem("palette", f"{item.label}: its ids are numbered by a palette, and other palettes number them otherwise")
        )
    elif not meaning.pixels(encoding, finding):
        found.append(problem("void label", f"{item.label}: every pixel is void", bad=False))
    return found


def _duplicates(split: str, items: list[Item], findings: dict[str, Finding], first: dict[str, tuple[str, str]]) -> list[Problem]:
    """Return images with the same bytes as an earlier image, in this split or an earlier one. Update `first`."""
    problems = []
    for item in items:
        digest = findings[item.key].sha256
        before, twin = first.setdefault(digest, (split, item.key)) if digest else (split, item.key)
        if (before, twin) != (split, item.key):
            where = f"{twin} of {before}" if before != split else twin
            problems.append(Problem("duplicate", split, item.key, f"{item.image}: the same bytes as {where}", False))
    return problems


def _count_classes(found: Examination, meaning: Meaning, listings: dict[str, Listing], findings: dict[str, Finding]) -> None:
    """Set the frequencies of the classes."""
    pixels: dict[int, float] = defaultdict(float)
    images: Counter[int] = Counter()
    labelled = 0
    for listing in listings.values():
        for item in listing.items:
            finding = findings[item.key]
            counted = meaning.pixels(listing.encoding, finding)
            size = sum((finding.values or {}).values())  # images count alike, whatever their resolution
            for train_id, count in counted.items():
                pixels[train_id] += count / size
            images.update(counted.keys())
            labelled += item.label is not None
    total = sum(pixels.values())
    found.frequencies = {
        name: {"pixels": pixels[index] / (total or 1), "images": images[index] / max(labelled, 1)}
        for index, name in enumerate(meaning.names)
    }
