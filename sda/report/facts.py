"""What is known of a run from its folder, in the words and numbers of a page."""

import json
import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sda.analysis.bank import Contents, of_state
from sda.protocol import PRESETS, preset, why_not_comparable
from sda.recipe import IDLE, Recipe
from sda.runs import compare
from sda.scoring import criteria as selection

# What scores of older revisions lack, in words.
NEWER = {
    "interval": "the 95 % interval",
    "boundary_iou": "Boundary IoU",
    "reliability": "calibration",
    "image_miou": "best and worst images",
}
ALIKE = (
    0.05  # points of mIoU by which two scores of one checkpoint may differ: on another machine sums are taken in another order
)
CRITERIA = {
    "oracle": ("oracle: highest mIoU", "validation"),
    "last": ("last step", "none"),
    "entropy": ("lowest entropy", "none"),
    "infomax": ("information maximisation", "none"),
    "agreement": ("teacher–student agreement", "none"),
    "held_out": ("mIoU of held-out images", "a few, held out"),
}
UNLIKE_LOSSES = {"step", "loss", "rate", "gradient"}  # numbers in the log that are no part of the loss; nor are those below
DIAGNOSTICS = ("bank_", "teacher_")
CONFUSIONS = 8  # that are named


@dataclass(frozen=True)
class Subject:
    """A score and the run that it is of.

    Attributes:
        given: the run's folder, or the file of the score, as the user named it.
        score: its values are those of the file, for a run completed by an evaluation of the same protocol.
        notes: what a reader should know.
    """

    given: Path
    score: compare.Score
    recipe: Recipe
    environment: dict
    log: list[dict]
    notes: list[str]

    @property
    def folder(self) -> Path:
        return self.score.folder

    @property
    def values(self) -> dict:
        return self.score.values

    @property
    def own(self) -> bool:
        """Whether the score's `seconds` are those of training; an evaluation's are its own."""
        return self.given.is_dir() and "seconds" in self.values


def read_all(paths: list[Path]) -> dict[str, Subject]:
    """Title → run, in their order.

    Raises:
        SdaError: no score, or scores of different protocols, data or classes.
    """
    subjects = [read(path) for path in paths]
    rows = compare.rows([subject.score for subject in subjects], merge=False)
    return {row.title: subject for row, subject in zip(rows, subjects, strict=True)}


def read(path: Path) -> Subject:
    """A run, or one of its evaluations by the path of the file.

    Raises:
        SdaError: see `sda.runs.compare.read`.
    """
    score, notes = compare.read(path), []
    folder = score.folder
    if path.is_dir() and any(key not in score.values for key in NEWER):
        values, note = _completed(folder, score)
        score, notes = replace(score, values=values), [note] if note else []
    if missing := [words for key, words in NEWER.items() if key not in score.values]:
        command = shlex.join(["sda", "eval", str(folder)])
        notes.append(f"The score lacks {joined(missing)}: it is of an older revision; {command} gives them.")
    lines = _text(folder / "metrics.jsonl").splitlines()
    log = [record for record in map(_json, lines) if isinstance(record, dict) and "step" in record]
    environment = _json(_text(folder / "environment.json"))
    known = environment if isinstance(environment, dict) else {}
    return Subject(path, score, Recipe(**score.recipe), known, log, notes)


def _completed(folder: Path, score: compare.Score) -> tuple[dict, str]:
    """A run's own score with what a later evaluation of the same adds to it; why it could not be, in words."""
    own, note = score.values, ""
    wanted = {"dataset": score.recipe["target"], "split": "val", "checkpoint": "last", "network": "student"}
    wanted["images"] = own.get("images")
    for file in sorted((folder / "evaluations").glob("*.json")):
        found = _json(_text(file))
        if not isinstance(found, dict) or not {"protocol", "miou", "iou"} <= found.keys():
            continue
        if any(found.get(key) != value for key, value in wanted.items()) or why_not_comparable({"": own, " ": found}):
            continue
        if abs(found["miou"] - own["miou"]) <= ALIKE:
            return {**found, **own}, ""
        note = (
            f"evaluations/{file.name} says mIoU {found['miou']:.2f}, result.json {own['miou']:.2f}, under the same protocol: "
            "the two are not mixed."
        )
    return own, note


def _text(file: Path) -> str:
    """What is in a file, "" where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


# Words


def joined(words: list[str]) -> str:
    """As a sentence lists them."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def percent(value: float | None) -> str:
    """One decimal; a dash for what there is not."""
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def signed(value: float | None) -> str:
    """A difference, one decimal, with its sign."""
    return "–" if value is None else f"{value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 5 h 12 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size_words(size: list[int] | str) -> str:
    return size if isinstance(size, str) else f"{size[0]}\u00a0×\u00a0{size[1]}"


def protocol_words(protocol: dict) -> str:
    """How a score was made, in a sentence."""
    how = "whole images" if protocol["window"] == "whole image" else f"windows of {size_words(protocol['window'])}"
    words = f"{how} at {size_words(protocol['input'])}, labels at {size_words(protocol['labels'])}"
    if len(protocol["scales"]) > 1 or protocol["flip"]:
        return f"{words}, averaged over scales {', '.join(f'{s:g}' for s in protocol['scales'])}{' and flips' * protocol['flip']}"
    return f"{words}, one scale, no flip"


def counts(subject: Subject) -> dict[str, int]:
    """Stream → images, as far as it is known."""
    return {stream: split["images"] for stream, split in subject.environment.get("splits", {}).items()}


def images_words(subject: Subject) -> str:
    """How many images of each stream it was trained on."""
    names = {
        "labelled": "labelled target",
        "unlabelled": "unlabelled target" if subject.recipe.unlabelled == "target" else "unlabelled",
        "source": "source",
        "held_out": "held-out",
    }
    known = counts(subject)
    said = [f"{known[stream]:,} {word}" for stream, word in names.items() if stream in known]
    words = f"{joined(said)} images" if said else f"{subject.recipe.labels} labelled target images"
    return words[0].upper() + words[1:]


def labels_used(subject: Subject) -> str:
    """The number of labelled target images."""
    known = counts(subject)
    return f"{known.get('labelled', 0):,}" if known else str(subject.recipe.labels)


# Tables


def differences(subjects: list[Subject]) -> list[tuple[str, list[str]]]:
    """The values of their recipes by which runs differ, those apart that decide no score."""
    recipes = [subject.score.recipe for subject in subjects]
    keys = [key for key in recipes[0] if key not in IDLE]
    return [(key, [_value(r[key]) for r in recipes]) for key in keys if any(r[key] != recipes[0][key] for r in recipes)]


def chosen(recipe: Recipe) -> list[tuple[str, str, str]]:
    """The values of a recipe that are not the defaults: key, value, default ("" where there is none)."""
    found = []
    for key, field in Recipe.model_fields.items():
        value, required = getattr(recipe, key), field.is_required()
        if key != "description" and (required or value != field.default):
            found.append((key, _value(value), "" if required else _value(field.default)))
    return found


def _value(value: object) -> str:
    return "–" if value is None or value == "" else value if isinstance(value, str) else json.dumps(value)


@dataclass(frozen=True)
class ClassRow:
    """A class: its share of the labelled pixels and its IoU, of the run and of each baseline, in percent."""

    name: str
    color: str
    share: float | None
    iou: float | None
    boundary: float | None
    baselines: list[float | None]

    @property
    def leads(self) -> list[float | None]:
        """How far the run is ahead of each baseline."""
        return [None if b is None or self.iou is None else self.iou - b for b in self.baselines]


def css(color: list[int]) -> str:
    """#rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def class_rows(first: Subject, others: list[Subject], colors: dict[str, list[int]]) -> list[ClassRow]:
    """A row for each class. `colors`: RGB, of those classes whose colour is known."""
    values = first.values
    pixels = np.array(values["confusion"]).sum(axis=1) if "confusion" in values else None
    rows = []
    for index, (name, iou) in enumerate(values["iou"].items()):
        color = css(colors[name]) if name in colors else ""
        share = None if pixels is None else 100 * pixels[index].item() / max(pixels.sum().item(), 1)
        boundary = values.get("boundary_iou", {}).get(name)
        rows.append(ClassRow(name, color, share, iou, boundary, [other.values["iou"][name] for other in others]))
    return rows


def normalised(confusion: list[list[int]]) -> np.ndarray:
    """Rows of a confusion matrix as shares, 0 to 1; NaN for a class that is not in the labels."""
    matrix = np.array(confusion, float)
    total = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, total, out=np.full_like(matrix, np.nan), where=total > 0)


def confusions(confusion: list[list[int]], names: list[str]) -> list[dict]:
    """The mistakes that most pixels are part of: the class's `name`, what it is `called`, and how many percent of its `own`
    pixels and of `all` labelled ones that are."""
    matrix, shares = np.array(confusion, float), 100 * normalised(confusion)
    total = matrix.sum()
    np.fill_diagonal(matrix, 0)
    order = matrix.ravel().argsort(kind="stable")[::-1][:CONFUSIONS]
    places = [divmod(int(place), len(names)) for place in order]
    return [
        {"name": names[i], "called": names[j], "own": shares[i, j], "all": 100 * matrix[i, j] / total}
        for i, j in places
        if matrix[i, j] > 0
    ]


@dataclass(frozen=True)
class Choice:
    """A criterion to choose a checkpoint by: its words and the labels it reads, the step it chose, mIoU there, and how far that
    is behind the oracle, in points. `file`: the checkpoint that holds this step."""

    words: str
    labels: str
    step: int
    miou: float
    behind: float
    file: str


def choices(subject: Subject) -> tuple[list[Choice], str]:
    """The criteria beside the oracle, the best first, and why some, or all, are not there."""
    found = subject.values.get("selection")
    if found is None:
        log = subject.folder / "metrics.jsonl"
        try:
            found = selection.selection(log)
        except (OSError, ValueError, KeyError):
            found = {}
    if "oracle" not in found or max(len(evaluations(subject)), len({each["step"] for each in found.values()})) < 2:
        return [], "The run was scored once, at its end: there was nothing to choose from. --eval-every STEPS gives a choice."
    order = sorted(found, key=lambda name: (name != "oracle", found[name]["behind"]))
    by = {"last": "last.pt", "oracle" if subject.recipe.best_by == "miou" else subject.recipe.best_by: "best.pt"}
    rows = [
        Choice(*CRITERIA.get(name, (name, "")), found[name]["step"], found[name]["miou"], found[name]["behind"], by.get(name, ""))
        for name in order
    ]
    needs = {
        "agreement": "unlabelled images, for there to be a teacher",
        "held_out": "hold_out = N",
        "entropy": "a run of a newer revision",
    }
    absent = [f"{CRITERIA[name][0]} (needs {need})" for name, need in needs.items() if name not in found]
    return rows, f"Not measured in this run: {'; '.join(absent)}." if absent else ""


# Curves


def evaluations(subject: Subject) -> dict[int, dict]:
    """Step → what was found there, of a run's evaluations in the course of training."""
    return {record["step"]: record["val"] for record in subject.log if isinstance(record.get("val"), dict)}


def series(log: list[dict], key: str) -> tuple[list[int], list[float]]:
    """The steps at which a number was logged, and the numbers."""
    found = [(record["step"], record[key]) for record in log if isinstance(record.get(key), int | float)]
    return [step for step, _ in found], [value for _, value in found]


def loss_names(log: list[dict]) -> list[str]:
    """The parts of the loss, in the order in which they first occur."""
    keys = dict.fromkeys(key for record in log if not {"val", "skipped"} & record.keys() for key in record)
    return [key for key in keys if key not in UNLIKE_LOSSES and not key.startswith(DIAGNOSTICS)]


# The bank


def bank_of(state: dict) -> Contents | None:
    """The bank in a checkpoint, None where its method has none; of one of an older revision, confidence and step are NaN."""
    found, parts = of_state(state), [state.get("method", {}).get(f"bank.{name}") for name in ("features", "valid", "domain")]
    if found is not None or any(part is None for part in parts):
        return found
    features, valid, domain = (part.numpy() for part in parts)
    unknown = np.full(valid.shape, np.nan)
    return Contents(state["classes"], state["step"], features, valid, domain, unknown, unknown)


def bank_rows(bank: Contents) -> list[dict]:
    """See `Contents.rows`; empty where it is not known when the entries came."""
    return [] if np.isnan(bank.confidence).any() else bank.rows()


# Commands


def as_run(subject: Subject) -> str:
    """The command that trained it."""
    command = subject.environment.get("command") or []
    return shlex.join(["sda", *map(str, command[1:])]) if command else ""


def to_score(subject: Subject) -> str:
    """The command that gives the score again."""
    values, r = subject.values, subject.recipe
    words = ["sda", "eval", str(subject.folder)]
    dataset, split = subject.score.subject
    if dataset != r.target:
        words += ["--dataset", dataset]
    if split != "val":
        words += ["--split", split]
    scales, flip = tuple(values["protocol"]["scales"]), values["protocol"]["flip"]
    made = {name: preset(name, r.network, r.target, r.input_size, r.crop_size, scales, flip).to_dict() for name in PRESETS}
    fitting = [name for name, protocol in made.items() if protocol == values["protocol"]]
    if fitting and r.protocol not in fitting:
        words += ["--protocol", fitting[0]]
    if scales != (1.0,):
        words += ["--scales", ",".join(f"{scale:g}" for scale in scales)]
    words += ["--flip"] * flip
    for key, default in (("network", "student"), ("checkpoint", "last")):
        if values.get(key, default) != default:
            words += [f"--{key}", values[key]]
    return shlex.join(words)
