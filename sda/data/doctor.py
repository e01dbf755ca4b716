"""`sda doctor`: whether a dataset's files are what its descriptor says, and which pairs training must leave out."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sda.data.descriptor import Descriptor, Item, find_orphans, label_values, list_items
from sda.data.scan import Finding, cache_folder, scan
from sda.errors import SdaError
from sda.labels import IGNORE

Progress = Callable[[int, int], None]


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
        splits: split → images, labelled images, bad pairs.
        encodings: what the label files hold → how many.
        encoding: the descriptor's, and `advice` where the files speak for another.
        frequencies: class → share of labelled pixels and share of labelled images it occurs in, 0 to 1.
        sizes: "WxH" → images.
    """

    dataset: str
    root: str
    encoding: str
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
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
) -> tuple[Report, dict[str, list[Item]]]:
    """Read everything, judge it, and write the list of bad pairs that training leaves out (see `bad_pairs`).

    Splits that the dataset does not have are passed over, so long as it has one.

    Returns:
        The report, and the items of each split.

    Raises:
        SdaError: no images at all.
    """
    listings, errors = {}, []
    for split in splits:
        try:
            listings[split] = list_items(descriptor, root, split)
        except SdaError as error:
            errors.append(error)
    if not listings:
        raise errors[0]
    items = [item for listing in listings.values() for item in listing.items]
    findings = dict(zip((item.key for item in items), scan(items, root, progress, processes), strict=True))
    encoding = next(iter(listings.values())).encoding
    report = Report(name, str(root.resolve()), encoding)
    sure = _judge_encodings(report, descriptor, [findings[item.key] for item in items])
    for split, listing in listings.items():
        for item in listing.items:
            report.problems += _judge(descriptor, listing.encoding, sure, split, item, findings[item.key])
        for path in find_orphans(descriptor, root, split, listing):
            report.problems.append(Problem("no image", split, path, "a label file, but no image goes with it", False))
        report.problems += _duplicates(listings, split, findings)
        report.splits[split] = {
            "images": len(listing.items),
            "labelled": sum(item.label is not None for item in listing.items),
            "bad": len({problem.key for problem in report.bad if problem.split == split}),
        }
    _count_classes(report, descriptor, listings, findings)
    report.sizes = dict(Counter(f"{f.size[0]}x{f.size[1]}" for f in findings.values() if f.size).most_common())
    _write_bad(root, report, findings)
    return report, {split: listing.items for split, listing in listings.items()}


def _fits(descriptor: Descriptor, finding: Finding) -> set[str]:
    """The encodings under which every value of a label has a meaning."""
    if finding.kind == "rgb":
        colors = {tuple(color) for color in (*descriptor.table().colors.values(), *descriptor.void_colors)}
        names = {f"#{r << 16 | g << 8 | b:06x}" for r, g, b in colors}
        fits = {"colours"} if finding.values.keys() <= names else set()
        red = {int(value) for value in finding.red}
        return fits | ({"ids_in_red"} if red <= label_values(descriptor, "ids_in_red").keys() else set())
    values = {int(value) for value in finding.values}
    encodings = ("ids", "train_ids") if descriptor.ids else ("ids",)  # without [ids], ids are train ids
    return {encoding for encoding in encodings if values <= label_values(descriptor, encoding).keys()}


def _judge_encodings(report: Report, descriptor: Descriptor, findings: list[Finding]) -> bool:
    """Count what the labels are, and give advice where the files speak for another encoding than the descriptor's.

    Returns:
        Whether a label that could be either is what the descriptor says: not if others are surely something else.
    """
    told = Counter()
    for finding in findings:
        if finding.values and not finding.label_fault:
            told[" or ".join(sorted(_fits(descriptor, finding))) or "unknown values"] += 1
    report.encodings = dict(told.most_common())
    if report.encoding == "ids_in_red":
        return True
    other = "train_ids" if report.encoding == "ids" else "ids"
    if told[other] and told[report.encoding]:
        report.advice = "some labels are ids and some are train ids: a conversion that stopped half-way? Restore the originals"
    elif told[other]:
        report.advice = (
            f"the labels are {other.replace('_', ' ')}, not {report.encoding.replace('_', ' ')} as the descriptor says: copy it "
            f'(sda datasets {report.dataset} > mine.toml), set encoding = "{other}" in its [[layout]], and use mine.toml'
        )
    return not told[other]


def _judge(descriptor: Descriptor, encoding: str, sure: bool, split: str, item: Item, finding: Finding) -> list[Problem]:
    def problem(kind: str, detail: str, bad: bool = True) -> Problem:
        return Problem(kind, split, item.key, detail, bad)

    if finding.image_fault:
        return [problem("unreadable image", finding.image_fault)]
    found = []
    if finding.black:
        found.append(problem("black image", f"{item.image}: no pixel is brighter than 7 of 255"))
    if item.label is None:
        return [*found, problem("no label", f"{item.image}: there is no label file for it", bad=False)]
    if finding.label_fault:
        return [*found, problem("unreadable label", finding.label_fault)]
    if finding.label_size != finding.size:
        sizes = f"the label is {finding.label_size[0]}x{finding.label_size[1]}, its image {finding.size[0]}x{finding.size[1]}"
        found.append(problem("size mismatch", f"{item.label}: {sizes}"))
    fits = _fits(descriptor, finding)
    expected = {encoding, "colours"} if encoding != "ids_in_red" else {"ids_in_red", "ids"}
    if fits and (not fits & expected or (not sure and len(fits) > 1)):
        found.append(problem("other encoding", f"{item.label}: holds {' or '.join(sorted(fits))}, not surely {encoding}"))
    elif not fits & expected:
        unknown = _unknown(descriptor, encoding, finding)
        found.append(problem("unknown values", f"{item.label}: {', '.join(unknown[:8])} are not in the descriptor"))
    elif not _pixels(descriptor, encoding, finding):
        found.append(problem("void label", f"{item.label}: every pixel is void", bad=False))
    return found


def _unknown(descriptor: Descriptor, encoding: str, finding: Finding) -> list[str]:
    if finding.kind == "rgb" and encoding != "ids_in_red":
        known = {f"#{r << 16 | g << 8 | b:06x}" for r, g, b in (*descriptor.table().colors.values(), *descriptor.void_colors)}
        return [value for value in finding.values if value not in known]
    values = finding.red if finding.kind == "rgb" else finding.values
    return [value for value in values if int(value) not in label_values(descriptor, encoding)]


def _pixels(descriptor: Descriptor, encoding: str, finding: Finding) -> dict[int, int]:
    """Train id → pixels of one label, void and unknown values left out."""
    if finding.kind == "rgb" and encoding != "ids_in_red":
        colors = enumerate(descriptor.table().colors.values())
        meaning = {f"#{r << 16 | g << 8 | b:06x}": train_id for train_id, (r, g, b) in colors}
        values = finding.values
    else:
        meaning = {str(value): train_id for value, train_id in label_values(descriptor, encoding).items()}
        values = (finding.red if finding.kind == "rgb" else finding.values) or {}
    pixels = Counter()
    for value, count in values.items():
        if meaning.get(value, IGNORE) != IGNORE:
            pixels[meaning[value]] += count
    return dict(pixels)


def _duplicates(listings: dict, split: str, findings: dict[str, Finding]) -> list[Problem]:
    """Images whose bytes are those of an image before them, in this split or an earlier one."""
    first, problems = {}, []
    for other, listing in listings.items():
        for item in listing.items:
            digest = findings[item.key].sha256
            twin = first.setdefault(digest, (other, item.key)) if digest else (other, item.key)
            if other == split and twin[1] != item.key:
                where = f"{twin[1]} of {twin[0]}" if twin[0] != split else twin[1]
                problems.append(Problem("duplicate", split, item.key, f"{item.image}: the same bytes as {where}", False))
    return problems


def _count_classes(report: Report, descriptor: Descriptor, listings: dict, findings: dict[str, Finding]) -> None:
    names = descriptor.table().names
    pixels, images, labelled = Counter(), Counter(), 0
    for listing in listings.values():
        for item in listing.items:
            counted = _pixels(descriptor, listing.encoding, findings[item.key])
            pixels.update(counted)
            images.update(counted.keys())
            labelled += item.label is not None
    total = sum(pixels.values())
    report.frequencies = {
        name: {"pixels": pixels[index] / max(total, 1), "images": images[index] / max(labelled, 1)}
        for index, name in enumerate(names)
    }


def class_pixels(
    descriptor: Descriptor, encoding: str, items: list[Item], root: Path, progress: Progress = lambda done, total: None
) -> dict[str, list[int]]:
    """Statistics: item → pixels of each class of the descriptor's own table, (C,) per item; made when first asked for."""
    classes = len(descriptor.table().names)
    counted = {}
    for item, finding in zip(items, scan(items, root, progress), strict=True):
        pixels = _pixels(descriptor, encoding, finding)
        counted[item.key] = [pixels.get(index, 0) for index in range(classes)]
    return counted


# The list of bad pairs


def bad_list(root: Path) -> Path:
    """Where the bad pairs of the dataset in `root` are listed."""
    name = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    return cache_folder() / "bad" / f"{name}.jsonl"


def _write_bad(root: Path, report: Report, findings: dict[str, Finding]) -> None:
    path = bad_list(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for problem in report.bad:
        finding = findings[problem.key]
        entry = {"key": problem.key, "kind": problem.kind, "image": finding.image_stat, "label": finding.label_stat}
        lines.append(json.dumps({**entry, "detail": problem.detail}) + "\n")
    part = path.with_suffix(".part")
    part.write_text("".join(lines), encoding="utf-8")
    part.replace(path)


def bad_pairs(root: Path, items: list[Item]) -> dict[str, str]:
    """Of `items`, those that the doctor found bad and that have not changed since: key → why. Empty without a doctor's list."""
    path = bad_list(root)
    if not path.is_file():
        return {}
    listed: dict[str, dict] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        listed.setdefault(entry["key"], entry)
    bad = {}
    for item in items:
        entry = listed.get(item.key)
        if entry and _same(item.image, entry["image"]) and (item.label is None or _same(item.label, entry["label"])):
            bad[item.key] = entry["detail"]
    return bad


def _same(path: Path, stat: list[int] | None) -> bool:
    try:
        now = path.stat()
    except OSError:
        return stat is None
    return stat == [now.st_size, now.st_mtime_ns]
