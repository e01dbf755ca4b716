"""The facts about a run that a report shows, read from the run folder: tables, curves and commands."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sda.errors import SdaError
from sda.protocol import PRESETS, preset
from sda.reading import read_log
from sda.recipe import IDLE, Recipe
from sda.runs import compare
from sda.runs.folder import read_environment
from sda.scoring import criteria
from sda.scoring.criteria import CRITERIA, MIOU, Criterion, selection

MAX_CONFUSIONS = 8  # length of the list of the most frequent confusions
MAX_NOTES = 20  # maximum number of notes on the data


@dataclass(frozen=True)
class Subject:
    """A score and the run that it belongs to.

    Attributes:
        environment: the contents of environment.json; empty if the file is missing.
        log: the records of metrics.jsonl; empty if the file is missing.
    """

    score: compare.Score
    recipe: Recipe
    environment: dict
    log: list[dict]

    @property
    def folder(self) -> Path:
        return self.score.folder

    @property
    def values(self) -> dict:
        return self.score.values

    @property
    def own(self) -> bool:
        """Whether this is the score at the end of training; otherwise it comes from a later `sda eval`."""
        return "selection" in self.values


def read_all(paths: list[Path]) -> tuple[dict[str, Subject], list[str]]:
    """Read several runs or evaluations, in the given order. Skip those without a score, except the first.

    Returns:
        Title → subject, and notes on what was skipped or is damaged.

    Raises:
        SdaError: the first has no score, a path does not exist, or scores of different protocols, datasets or classes.
    """
    scores, faults = compare.read_usable(paths[1:])
    scores = [compare.read(paths[0]), *scores]
    notes = [f"skipped: {fault}" for fault in faults]
    subjects = [_subject(score, notes) for score in scores]
    return {row.title: subject for row, subject in zip(compare.rows(scores, merge=False), subjects, strict=True)}, notes


def _subject(score: compare.Score, notes: list[str]) -> Subject:
    """Read the other files of a run. A report does without a damaged one, and a note says so."""
    environment, fault = read_environment(score.folder)
    log: list[dict] = []
    try:
        log = read_log(score.folder / "metrics.jsonl")
    except SdaError as error:
        notes.append(f"no curves of {score.title}: {error}")
    if fault:
        notes.append(f"no facts on the training of {score.title}: {fault}")
    return Subject(score, Recipe(**score.recipe), environment, log)


# Images and settings


def counts(subject: Subject) -> dict[str, int]:
    """Return stream → number of images; empty if environment.json is missing."""
    return {stream: split["images"] for stream, split in subject.environment.get("splits", {}).items()}


def labels_used(subject: Subject) -> str:
    """Return the number of labelled target images."""
    known = counts(subject)
    return f"{known.get('labelled', 0):,}" if known else str(subject.recipe.labels)


def differences(subjects: list[Subject]) -> list[tuple[str, list[str]]]:
    """Return the recipe fields in which runs differ, with their values; fields that do not affect scores are ignored."""
    recipes = [subject.score.recipe for subject in subjects]
    keys = [key for key in recipes[0] if key not in IDLE]
    return [(key, [_value(r[key]) for r in recipes]) for key in keys if any(r[key] != recipes[0][key] for r in recipes)]


def chosen(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Return the recipe fields that differ from their defaults: key, value, default ("" for a required field)."""
    found = []
    for key, field in Recipe.model_fields.items():
        value, required = getattr(recipe, key), field.is_required()
        if key != "description" and (required or value != field.default):
            found.append((key, _value(value), "" if required else _value(field.default)))
    return found


def _value(value: object) -> str:
    return "–" if value is None or value == "" else value if isinstance(value, str) else json.dumps(value)


def notes_on_data(subject: Subject) -> list[str]:
    """Return the notes on the training data, and the files that training or evaluation skipped."""
    notes = [*subject.environment.get("notes", []), *subject.values["skipped"]]
    return notes if len(notes) <= MAX_NOTES else [*notes[:MAX_NOTES], f"… and {len(notes) - MAX_NOTES} more"]


def versions(environment: dict) -> list[tuple[str, str]]:
    """Return the name and version of the software, the platform and the device."""
    names = {"sda": "sda", "git": "git revision", "device": "device", "python": "Python", "platform": "platform"}
    found = [(words, str(environment[key])) for key, words in names.items() if environment.get(key)]
    return found + [(name, version) for name, version in environment.get("packages", {}).items() if version]


# Classes


@dataclass(frozen=True)
class ClassScore:
    """The score of one class, in percent.

    Attributes:
        color: "#rrggbb", "" if unknown. share: of the labelled pixels. iou, boundary: IoU and Boundary IoU of the run; None if
            the class is absent. baselines: IoU of each other run.
    """

    name: str
    color: str
    share: float
    iou: float | None
    boundary: float | None
    baselines: list[float | None]

    @property
    def leads(self) -> list[float | None]:
        """IoU of the run minus that of each baseline."""
        return [None if b is None or self.iou is None else self.iou - b for b in self.baselines]


def css(color: list[int]) -> str:
    """Return an RGB colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def class_scores(first: Subject, others: list[Subject], colors: dict[str, list[int]]) -> list[ClassScore]:
    """Return the scores of all classes. `colors`: class → RGB; may be empty."""
    values = first.values
    pixels = np.array(values["confusion"]).sum(axis=1)
    return [
        ClassScore(
            name,
            css(colors[name]) if name in colors else "",
            100 * pixels[index].item() / pixels.sum().item(),
            iou,
            values["boundary_iou"][name],
            [other.values["iou"][name] for other in others],
        )
        for index, (name, iou) in enumerate(values["iou"].items())
    ]


def normalised(confusion: list[list[int]]) -> np.ndarray:
    """Return the rows of a confusion matrix as shares, 0 to 1; NaN for a class that is not in the labels."""
    matrix = np.array(confusion, float)
    total = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, total, out=np.full_like(matrix, np.nan), where=total > 0)


def confusions(confusion: list[list[int]], names: list[str]) -> list[dict]:
    """Return the confusions with the most pixels: the true class `name`, the predicted class `called`, and the percentage of the
    true class's pixels (`own`) and of all labelled pixels (`all`)."""
    matrix, shares = np.array(confusion, float), 100 * normalised(confusion)
    total = matrix.sum()
    np.fill_diagonal(matrix, 0)
    order = matrix.ravel().argsort(kind="stable")[::-1][:MAX_CONFUSIONS]
    places = [divmod(int(place), len(names)) for place in order]
    return [
        {"name": names[i], "called": names[j], "own": shares[i, j], "all": 100 * matrix[i, j] / total}
        for i, j in places
        if matrix[i, j] > 0
    ]


# Training


@dataclass(frozen=True)
class Choice:
    """A criterion for choosing a checkpoint.

    Attributes:
        words: its name. labels: the labels that it reads. step: the step that it chooses. miou: at this step, percent.
        behind: how far this mIoU is below the oracle's, in points. file: the checkpoint that holds this step, or "".
    """

    words: str
    labels: str
    step: int
    miou: float
    behind: float
    file: str


def choices(subject: Subject) -> tuple[list[Choice], str]:
    """Return the criteria, the oracle first, then the best ones; and a note on those that were not measured."""
    found = subject.values["selection"] if subject.own else selection(subject.log)
    if max(len(evaluations(subject)), len({each["step"] for each in found.values()})) < 2:
        return [], "The run was evaluated only once, at its end. To compare checkpoints, train with --eval-every STEPS."
    files = {"last": "last.pt", "oracle" if subject.recipe.best_by == "miou" else subject.recipe.best_by: "best.pt"}
    rows = []
    known = {"oracle": MIOU, "last": Criterion("last step"), **CRITERIA}
    for name in sorted(found.keys() & known.keys(), key=lambda name: (name != "oracle", found[name]["behind"], name)):
        criterion = known[name]
        rows.append(Choice(criterion.title, criterion.labels, **found[name], file=files.get(name, "")))
    absent = [f"{each.title} (needs {each.needs})" for name, each in CRITERIA.items() if each.needs and name not in found]
    return rows, f"Not measured in this run: {'; '.join(absent)}." if absent else ""


def evaluations(subject: Subject) -> dict[int, dict]:
    """Return step → scores of the evaluations during training."""
    return criteria.evaluations(subject.log)


def series(log: list[dict], key: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a number was logged, and the numbers."""
    found = [(record["step"], record[key]) for record in log if criteria.is_number(record.get(key))]
    return [step for step, _ in found], [value for _, value in found]


def loss_names(log: list[dict]) -> list[str]:
    """Return the names of a method's losses in the order in which they first occur.

    A record of a training step has the losses first, then `loss`, their sum, and then the diagnostics. So methods may
    choose any names for their losses and diagnostics.
    """
    names: dict[str, None] = {}
    for record in log:
        if "loss" in record:
            keys = list(record)
            names |= dict.fromkeys(keys[keys.index("step") + 1 : keys.index("loss")])
    return list(names)


# Commands


def commands(subject: Subject) -> list[tuple[str, str]]:
    """Return the commands that trained the run, train it again and score it again, each with a heading."""
    ran = subject.environment.get("command", [])
    return [
        *([("Command of this run", shlex.join(["sda", *ran[1:]]))] if ran else []),
        ("Train it again", shlex.join(["sda", "train", str(subject.folder / "recipe.toml")])),
        ("Score it again", to_score(subject)),
    ]


def to_score(subject: Subject) -> str:
    """Return the command that computes the score again."""
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
