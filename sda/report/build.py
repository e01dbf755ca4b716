"""Build an HTML page about a run, compared with other runs: a self-contained file, and its figures as PNG."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import torch

from sda import __version__
from sda.analysis import bank as banks
from sda.errors import SdaError
from sda.methods.parts.bank import SOURCE
from sda.report import examples, facts, plots, words
from sda.report.examples import Example
from sda.report.facts import Subject
from sda.report.plots import Plot
from sda.runs import checkpoint
from sda.scoring.criteria import CRITERIA
from sda.scoring.summary import SUMMARY, classes_scored, warning
from sda.system.atomic import written_whole
from sda.system.devices import pick_device
from sda.system.owned import LOCK, owned
from sda.system.progress import Bars

# All files that figures/ can contain: a new report deletes those of an old one that it does not replace.
FIGURES = (
    *("loss", "miou", "rate", "gradient", "bank", "teacher", "criteria"),
    *("confusion", "reliability", "bank-classes", "bank-similarity", "best", "worst"),
)
PANELS = {  # figures of the section on training, in their order, each with a remark
    "loss": "moving medians, with the logged values behind them",
    "miou": "",
    "bank": "",
    "teacher": "if it is close to 1, the teacher has collapsed",
    "gradient": "moving median, with the logged values behind it",
    "rate": "",
}
LOSSES = {  # names for the legend; other losses keep the name that they have in the log
    "sup": "supervised",
    "pseudo": "pseudo-labels",
    "contrast_l": "contrast, labelled",
    "contrast_u": "contrast, unlabelled",
}
COLUMNS = [(metric.title, metric.key) for metric in SUMMARY if not metric.subset]  # of the comparison
MEANS = [  # below the IoU of the classes
    ("mIoU, classes present", "miou"),
    ("mIoU, all classes", "miou_all"),
    *((metric.title, metric.key) for metric in SUMMARY if metric.subset),
]


@dataclass(frozen=True)
class Drawn:
    """What a page shows besides text and tables.

    Attributes:
        figures: plots by file name. best, worst: images; empty without a checkpoint and the dataset. colors: class → RGB; empty
            without a checkpoint. bank: the contents of the memory bank, None if there is none.
    """

    figures: dict[str, Plot]
    best: list[Example]
    worst: list[Example]
    colors: dict[str, list[int]]
    bank: banks.Contents | None


def write(runs: list[Path], out: Path | None, overwrite: bool, root: str, device_name: str, bars: Bars) -> Path:
    """Write report.html and figures/ about the first of `runs`, compared with the others.

    Args:
        runs: run folders, or files in their evaluations/. out: output folder; None for reports/NAME. overwrite: replace an
            existing report. root: folder of the scored dataset; "" for the one used in training.

    Returns:
        The path of the page.

    Raises:
        SdaError: a missing score, scores that are not comparable, or an output folder that is not empty.
    """
    subjects, skipped = facts.read_all(runs)
    for note in skipped:
        bars.say(note)
    title = next(iter(subjects))
    folder = out or Path("reports") / (re.sub(r"[^\w=,+-]+", "_", title.replace("/", "-")).strip("_") or "run")
    options = [*(["--out", str(out)] if out else []), *(["--root", root] if root else [])]
    made_by = shlex.join(["sda", "report", *map(str, runs), *options])
    with owned(folder):
        _check_free(folder, overwrite)
        return _write(folder, subjects, made_by, root, pick_device(device_name), bars)


def _write(folder: Path, subjects: dict[str, Subject], made_by: str, root: str, device: torch.device, bars: Bars) -> Path:
    drawn, notes = _draw(subjects, root, device, bars)
    html = _html(subjects, drawn, notes, made_by)
    files = {name: figure.png for name, figure in drawn.figures.items()}
    for name, shown in (("best", drawn.best), ("worst", drawn.worst)):
        if shown:
            files[name] = examples.sheet(shown, drawn.colors)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        with written_whole(folder / "report.html") as file:
            file.write(html.encode(errors="replace"))
        for name in FIGURES:
            if name in files:
                (folder / f"figures/{name}.png").write_bytes(files[name])
            else:
                (folder / f"figures/{name}.png").unlink(missing_ok=True)
    except OSError as error:
        raise SdaError(f"--out {folder}: cannot be written: {error}") from None
    return folder / "report.html"


def _check_free(folder: Path, overwrite: bool) -> None:
    if set(os.listdir(folder)) <= {LOCK}:
        return
    if not (folder / "report.html").is_file():
        raise SdaError(f"--out {folder}: it exists and contains no report, so it is not overwritten; choose another --out")
    if not overwrite:
        raise SdaError(f"--out {folder}: a report exists there; replace it with --overwrite, or choose another --out")


def _draw(subjects: dict[str, Subject], root: str, device: torch.device, bars: Bars) -> tuple[Drawn, list[str]]:
    """Draw everything, and return notes on what could not be drawn."""
    subject = next(iter(subjects.values()))
    state: dict = {}
    notes: list[str] = []
    best: list[Example] = []
    worst: list[Example] = []
    try:
        state = checkpoint.load(subject.folder / "last.pt")
        best, worst = examples.draw(subject, root, device, bars)
    except SdaError as error:
        note = f"{'No images are shown' if state else 'No images and no memory bank are shown'}: {error}"
        notes.append(note if root or not state else f"{note} (if the dataset has moved, give its new folder with --root)")
    figures = _training_figures(subjects) | _score_figures(subject)
    bank = None
    try:
        bank = banks.of_state(state, subject.folder / "last.pt")
    except SdaError as error:
        notes.append(f"No memory bank is shown: {error}")
    if bank is not None:
        figures |= _bank_figures(bank)
    return Drawn(figures, best, worst, state.get("classes", {}), bank), notes


def _training_figures(subjects: dict[str, Subject]) -> dict[str, Plot]:
    """Draw the curves in the log of the first run, and its mIoU next to that of the others."""
    title, subject = next(iter(subjects.items()))
    found = {}

    def lines(names: dict[str, str]) -> plots.Lines:
        read = {legend: facts.series(subject.log, key) for key, legend in names.items()}
        return {legend: line for legend, line in read.items() if line[0]}

    if losses := lines({name: LOSSES.get(name, name) for name in facts.loss_names(subject.log)}):
        found["loss"] = plots.curves("loss", "Weighted losses", losses, "loss", smooth=True, log=True)
    evaluated = {name: facts.evaluations(each) for name, each in subjects.items()}
    own = evaluated[title]
    if len(own) > 1:
        scored = {
            name: (list(each), [value["miou"] for value in each.values()]) for name, each in evaluated.items() if len(each) > 1
        }
        oracle, last = max(own, key=lambda step: own[step]["miou"]), max(own)
        steps = {"oracle and last": oracle} if oracle == last else {"oracle": oracle, "last": last}
        marks = {legend: (step, own[step]["miou"]) for legend, step in steps.items()}
        found["miou"] = plots.curves("miou", "mIoU on the validation images", scored, "mIoU, %", marks=marks)
        criteria = {
            criterion.title: (list(own), [value[key] for value in own.values()])
            for key, criterion in CRITERIA.items()
            if criterion.unit and all(key in value for value in own.values())
        }
        found["criteria"] = plots.curves("criteria", "Label-free criteria", criteria, "value")
    for name, heading, label, keys, limits in (
        ("bank", "Memory bank", "share", {"bank_fill": "filled", "bank_source": "entries from the source"}, (0, 1.03)),
        ("teacher", "Teacher's most frequent class", "share of unlabelled pixels", {"teacher_top": "share"}, (0, 1.03)),
        ("gradient", "Gradient norm", "norm", {"gradient": "norm"}, None),
        ("rate", "Learning rate of the backbone", "learning rate", {"rate": "rate"}, None),
    ):
        if drawn := lines(keys):
            found[name] = plots.curves(name, heading, drawn, label, smooth=name == "gradient", limits=limits)
    return found


def _score_figures(subject: Subject) -> dict[str, Plot]:
    shares, names = facts.normalised(subject.values["confusion"]), list(subject.values["iou"])
    return {
        "confusion": plots.matrix(
            "confusion", "Confusion matrix, percent", shares, names, "true class", "predicted class", "percent"
        ),
        "reliability": plots.reliability("reliability", "Reliability", subject.values["reliability"]),
    }


def _bank_figures(bank: banks.Contents) -> dict[str, Plot]:
    source, names = bank.valid & (bank.domain == SOURCE), list(bank.classes)
    parts = {"from the source": source, "from the target": bank.valid & ~source}
    shares = {legend: 100 * part.mean(axis=1) for legend, part in parts.items()}
    found = {"bank-classes": plots.shares("bank-classes", "Entries per class", names, shares, "% filled")}
    similarity, title = bank.similarity(), "Similarity of the classes"
    if not np.isnan(similarity).all():
        found["bank-similarity"] = plots.matrix("bank-similarity", title, similarity, names, "", "", "cosine")
    return found


def _html(subjects: dict[str, Subject], drawn: Drawn, notes: list[str], made_by: str) -> str:
    """Render page.html."""
    title, subject = next(iter(subjects.items()))
    others = list(subjects.values())[1:]
    values, environment, figures = subject.values, subject.environment, drawn.figures
    compared = [_row(name, each, subject) for name, each in subjects.items()]
    first = compared[1] if others else None
    choices, choice_note = facts.choices(subject)
    dataset, split = subject.score.subject
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("sda", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {"percent": words.percent, "signed": words.signed, "grouped": "{:,}".format}
    return page.get_template("page.html").render(
        version=__version__,
        made_by=made_by,
        notes=[*filter(None, [warning(values, dataset)]), *notes],
        # top
        scored=classes_scored(values),
        title=title,
        score=values,
        recipe=subject.recipe,
        subject_words=words.of_subject(subject),
        dataset_words=f"{Path(dataset).stem}, {split}",
        tiles=words.tiles(subject),
        # comparison and classes
        first=first,
        compared=compared,
        baselines=compared[1:],
        differing=facts.differences([subject, *others]),
        columns=COLUMNS,
        classes=facts.class_scores(subject, others, drawn.colors),
        means=[(name, key) for name, key in MEANS if key in values],
        confusion=figures["confusion"],
        confusions=facts.confusions(values["confusion"], list(values["iou"])),
        # images
        best=drawn.best,
        worst=drawn.worst,
        better=words.of_comparison(subject, first["title"], others[0]) if first else "",
        legend=[(name, facts.css(color)) for name, color in drawn.colors.items()],
        # training, checkpoint, calibration, bank
        training=[(figures[name], remark) for name, remark in PANELS.items() if name in figures],
        training_words=words.of_training(subject),
        choices=choices,
        choice_note=choice_note,
        criteria=figures.get("criteria"),
        evaluated=len(facts.evaluations(subject)),
        reported=f"{values.get('checkpoint', 'last')}.pt",
        reliability=figures["reliability"],
        calibration_words=words.of_calibration(values["reliability"]),
        bank=drawn.bank
        and {
            "words": words.of_bank(drawn.bank),
            "rows": drawn.bank.rows(),
            "fill": figures["bank-classes"],
            "fill_note": f"share of the {drawn.bank.valid.shape[1]} entries of a class",
            "similarity": figures.get("bank-similarity"),
            "similarity_note": "mean cosine similarity of pairs of entries; on the diagonal, of pairs within a class",
        },
        # how to reproduce the run
        images_words=words.of_images(subject),
        protocol_words=words.of_protocol(values["protocol"]),
        commands=facts.commands(subject),
        chosen=facts.chosen(subject.recipe),
        versions=facts.versions(environment),
        splits=environment.get("splits", {}),
        data_notes=facts.notes_on_data(subject),
    )


def _row(title: str, subject: Subject, reported: Subject) -> dict:
    """Return a row of the comparison. `lead`: mIoU of the reported run minus that of this one. `within`: whether this run's mIoU
    is inside the interval of the reported run."""
    miou, (low, high) = subject.values["miou"], reported.values["interval"]
    return {
        "title": title,
        "short": plots.short(title, 26),
        "score": subject.values,
        "lead": reported.values["miou"] - miou,
        "within": low <= miou <= high,
        "labels": facts.labels_used(subject),
        "steps": subject.recipe.steps,
        "seed": subject.recipe.seed,
    }
