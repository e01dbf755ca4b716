"""One page about a run beside those that it is compared with: an HTML file that needs no other, and its figures as PNG."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
import torch

from sda import __version__
from sda.analysis.bank import Contents
from sda.errors import SdaError
from sda.methods.parts.views import SOURCE
from sda.report import examples, facts, plots
from sda.report.examples import Example
from sda.report.facts import Subject
from sda.report.plots import Plot
from sda.runs import checkpoint
from sda.system.atomic import written_whole
from sda.system.devices import pick_device
from sda.system.progress import Bars

# All that a page can have in figures/, so that one that replaces another leaves none of its figures behind.
FIGURES = (
    *("loss", "miou", "rate", "gradient", "bank", "teacher", "criteria"),
    *("confusion", "reliability", "bank-classes", "bank-similarity", "best", "worst"),
)
PANELS = {  # of training, in their order, and what to say of each
    "loss": "moving medians, and the readings behind them",
    "miou": "",
    "bank": "",
    "teacher": "near 1, the teacher has collapsed",
    "gradient": "moving median, and the readings behind it",
    "rate": "",
}
MOST_SAID = 20  # notes on the data
COLUMNS = (("Boundary IoU", "boundary_miou"), ("% of pixels right", "accuracy"), ("ECE", "ece"))
MEANS = (
    ("mIoU, classes present", "miou"),
    ("mIoU, all classes", "miou_all"),
    ("mIoU, 16 classes", "miou16"),
    ("mIoU, 13 classes", "miou13"),
    ("weighted by pixels", "fwiou"),
    ("% of pixels right", "accuracy"),
)


@dataclass(frozen=True)
class Sights:
    """What there is to look at: figures by name, pictures, the classes' colours (RGB, by name), the bank behind two figures."""

    figures: dict[str, Plot]
    best: list[Example]
    worst: list[Example]
    colors: dict[str, list[int]]
    bank: Contents | None


def write(runs: list[Path], out: Path | None, overwrite: bool, root: str, device_name: str, bars: Bars) -> Path:
    """Write report.html and figures/ about the first of `runs`, compared with the others.

    Args:
        runs: run folders, or files in their evaluations/. out: a folder; None for reports/NAME. overwrite: replace the report
            that is there. root: of the dataset that was scored; "" for where the training had it.

    Returns:
        The path of the page.

    Raises:
        SdaError: no score, scores that cannot stand side by side, or a folder that holds something.
    """
    subjects = facts.read_all(runs)
    title = next(iter(subjects))
    folder = out or Path("reports") / (re.sub(r"[^\w=,+-]+", "_", title.replace("/", "-")).strip("_") or "run")
    _check_free(folder, overwrite)
    sights, notes = _look(subjects, root, pick_device(device_name), bars)
    options = [*(["--out", str(out)] if out else []), *(["--root", root] if root else [])]
    made_by = shlex.join(["sda", "report", *map(str, runs), *options])
    html = _html(subjects, sights, notes, made_by)
    files = {name: figure.png for name, figure in sights.figures.items()}
    for name, shown in (("best", sights.best), ("worst", sights.worst)):
        if shown:
            files[name] = examples.sheet(shown, sights.colors)
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
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "report.html").is_file():
        raise SdaError(f"--out {folder}: exists and holds no report; nothing is overwritten: name another folder")
    if not overwrite:
        raise SdaError(f"--out {folder}: a report is there; replace it with --overwrite, or name another folder")


def _look(subjects: dict[str, Subject], root: str, device: torch.device, bars: Bars) -> tuple[Sights, list[str]]:
    """All that is drawn, and notes on what could not be."""
    subject = next(iter(subjects.values()))
    notes, state, best, worst = list(subject.notes), {}, [], []
    try:
        state = checkpoint.load(subject.folder / "last.pt")
        if "image_miou" in subject.values:
            best, worst = examples.draw(subject, root, device, bars)
    except SdaError as error:
        without = f"{'Without pictures' if state else 'Without pictures and memory bank'}: {error}"
        notes.append(without if root or not state else f"{without} (a data set that lies elsewhere now: --root DIR)")
    figures = _training(subjects) | _scores(subject)
    bank = facts.bank_of(state)
    if bank is not None:
        figures |= _bank(bank)
    return Sights(figures, best, worst, state.get("classes", {}), bank), notes


# Figures


def _training(subjects: dict[str, Subject]) -> dict[str, Plot]:
    """The curves of the first run's log; its mIoU beside that of the others."""
    title, subject = next(iter(subjects.items()))
    found = {}

    def lines(names: dict[str, str]) -> plots.Lines:
        read = {legend: facts.series(subject.log, key) for key, legend in names.items()}
        return {legend: line for legend, line in read.items() if line[0]}

    names = {
        "sup": "supervised",
        "pseudo": "pseudo-labels",
        "contrast_l": "contrast, labelled",
        "contrast_u": "contrast, unlabelled",
    }
    if losses := lines({name: names.get(name, name) for name in facts.loss_names(subject.log)}):
        found["loss"] = plots.curves("loss", "Losses, weighted", losses, "loss", smooth=True, log=True)
    evaluated = {name: facts.evaluations(each) for name, each in subjects.items()}
    own = evaluated[title]
    if len(own) > 1:
        scored = {
            name: (list(each), [value["miou"] for value in each.values()]) for name, each in evaluated.items() if len(each) > 1
        }
        oracle, last = max(own, key=lambda step: own[step]["miou"]), max(own)
        marks = {"oracle, the last": oracle} if oracle == last else {"oracle": oracle, "last": last}
        marks = {legend: (step, own[step]["miou"]) for legend, step in marks.items()}
        found["miou"] = plots.curves("miou", "mIoU on the validation images", scored, "mIoU, %", marks=marks)
        criteria = {
            legend: (list(own), [value[key] for value in own.values()])
            for key, legend in {"entropy": "entropy", "infomax": "information", "agreement": "agreement"}.items()
            if all(value.get(key) is not None for value in own.values())
        }
        if criteria:
            found["criteria"] = plots.curves("criteria", "What some criteria go by", criteria, "0 to 1")
    for name, heading, label, keys, limits in (
        ("bank", "Memory bank", "share", {"bank_fill": "filled", "bank_source": "of this, from the source"}, (0, 1.03)),
        ("teacher", "Teacher's most frequent class", "share of unlabelled pixels", {"teacher_top": "share"}, (0, 1.03)),
        ("gradient", "Norm of the gradient", "norm", {"gradient": "norm"}, None),
        ("rate", "Learning rate of the backbone", "rate", {"rate": "rate"}, None),
    ):
        if drawn := lines(keys):
            found[name] = plots.curves(name, heading, drawn, label, smooth=name == "gradient", limits=limits)
    return found


def _scores(subject: Subject) -> dict[str, Plot]:
    values, found = subject.values, {}
    if "confusion" in values:
        shares, names = facts.normalised(values["confusion"]), list(values["iou"])
        found["confusion"] = plots.matrix(
            "confusion", "Confusion matrix, percent", shares, names, "label", "prediction", "percent"
        )
    if values.get("reliability"):
        found["reliability"] = plots.reliability("reliability", "Reliability", values["reliability"])
    return found


def _bank(bank: Contents) -> dict[str, Plot]:
    source, names = bank.valid & (bank.domain == SOURCE), list(bank.classes)
    parts = {"from the source": source, "from the target": bank.valid & ~source}
    shares = {legend: 100 * part.mean(axis=1) for legend, part in parts.items()}
    found = {"bank-classes": plots.shares("bank-classes", "What it holds of each class", names, shares, "% filled")}
    similarity, title = bank.similarity(), "How alike its classes are"
    if not np.isnan(similarity).all():
        found["bank-similarity"] = plots.matrix("bank-similarity", title, similarity, names, "", "", "cosine")
    return found


# Words


def _html(subjects: dict[str, Subject], sights: Sights, notes: list[str], made_by: str) -> str:
    """The page."""
    title, subject = next(iter(subjects.items()))
    values, environment, figures = subject.values, subject.environment, sights.figures
    compared = [_row(name, each, subject) for name, each in subjects.items()]
    first = compared[1] if len(compared) > 1 else None
    choices, choice_note = facts.choices(subject)
    dataset, split = subject.score.subject
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("sda", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {"percent": facts.percent, "signed": facts.signed, "grouped": "{:,}".format}
    return page.get_template("page.html").render(
        version=__version__,
        made_by=made_by,
        notes=notes,
        # headline
        title=title,
        score=values,
        interval=values.get("interval"),
        images=values.get("images"),
        recipe=subject.recipe,
        subject_words=_subject_words(subject),
        dataset_words=f"{Path(dataset).stem}, {split}",
        tiles=_tiles(subject),
        # comparison and classes
        first=first,
        compared=compared,
        baselines=compared[1:],
        differing=facts.differences(list(subjects.values())),
        any_interval=any("interval" in row["score"] for row in compared),
        columns=[(words, key) for words, key in COLUMNS if any(key in row["score"] for row in compared)],
        classes=facts.class_rows(subject, list(subjects.values())[1:], sights.colors),
        means=[(words, key) for words, key in MEANS if values.get(key) is not None],
        edges="boundary_iou" in values,
        confusion=figures.get("confusion"),
        confusions=facts.confusions(values["confusion"], list(values["iou"])) if "confusion" in values else [],
        # images
        best=sights.best,
        worst=sights.worst,
        better=_better(values, first),
        legend=[(name, facts.css(color)) for name, color in sights.colors.items()],
        # training, checkpoint, calibration, bank
        training=[(figures[name], note) for name, note in PANELS.items() if name in figures],
        training_words=_training_words(subject),
        choices=choices,
        choice_note=choice_note,
        criteria=figures.get("criteria"),
        evaluated=len(facts.evaluations(subject)),
        reported=f"{values.get('checkpoint', 'last')}.pt",
        reliability=figures.get("reliability"),
        calibration_words=_calibration_words(values.get("reliability", [])),
        bank=sights.bank
        and {
            "words": _bank_words(sights.bank),
            "rows": facts.bank_rows(sights.bank),
            "fill": figures["bank-classes"],
            "fill_note": f"of {sights.bank.valid.shape[1]} entries",
            "similarity": figures.get("bank-similarity"),
            "similarity_note": "mean cosine of pairs of entries; on the diagonal, of pairs within the class",
        },
        # how to do it again
        images_words=facts.images_words(subject),
        protocol_words=facts.protocol_words(values["protocol"]),
        commands=_commands(subject),
        chosen=facts.chosen(subject.recipe),
        versions=_versions(environment),
        splits=environment.get("splits", {}),
        left_out=_left_out(subject),
    )


def _row(title: str, subject: Subject, reported: Subject) -> dict:
    """A run in the comparison. `lead`: how far the one reported is ahead; `within`: this one is inside the other's interval."""
    miou, interval = subject.values["miou"], reported.values.get("interval")
    return {
        "title": title,
        "short": plots.short(title, 26),
        "score": subject.values,
        "lead": reported.values["miou"] - miou,
        "within": interval is not None and interval[0] <= miou <= interval[1],
        "labels": facts.labels_used(subject),
        "steps": subject.recipe.steps,
        "seed": subject.recipe.seed,
    }


def _subject_words(subject: Subject) -> str:
    r = subject.recipe
    way = f"{Path(r.source).stem} → {Path(r.target).stem}" if r.source else Path(r.target).stem
    return " · ".join([r.method, f"{r.network}, {r.backbone}", way])


def _tiles(subject: Subject) -> list[dict]:
    """Numbers at a glance: `what`, `value`, and `more` to say of it; `words` where the value is no number."""
    values, recipe = subject.values, subject.recipe
    streams = [f"{count:,} {stream}" for stream, count in facts.counts(subject).items() if stream in ("unlabelled", "source")]
    chosen = f"labels chosen with seed {recipe.split_seed}" if recipe.labels not in (0, "all") and not recipe.split else ""
    tiles = [
        ("labelled target images", facts.labels_used(subject), f"beside {facts.joined(streams)}" if streams else ""),
        ("steps", f"{recipe.steps:,}", f"in {facts.duration(values['seconds'])}" if subject.own else ""),
        ("seed", str(recipe.seed), chosen),
    ]
    for what, key, more in (
        ("pixels right", "accuracy", "of those labelled"),
        ("Boundary IoU", "boundary_miou", "along the classes' edges"),
        ("weighted IoU", "fwiou", "by the classes' pixels"),
        ("calibration error", "ece", "expected (ECE)"),
    ):
        if values.get(key) is not None:
            tiles.append((what, f"{facts.percent(values[key])} %", more))
    tiles.append(("protocol", values["protocol"]["name"], facts.protocol_words(values["protocol"])))
    return [{"what": what, "value": value, "more": more, "words": what == "protocol"} for what, value, more in tiles]


def _better(values: dict, first: dict | None) -> str:
    """On how many images the run is better than its first baseline."""
    if first is None or "image_miou" not in first["score"] or "image_miou" not in values:
        return ""
    theirs = first["score"]["image_miou"]
    pairs = [(own, theirs[key]) for key, own in values["image_miou"].items() if own is not None and theirs.get(key) is not None]
    return f"On {sum(own > other for own, other in pairs)} of {len(pairs)} images this run is better than {first['title']}."


def _training_words(subject: Subject) -> str:
    words = [f"{subject.recipe.steps:,} steps"]
    if subject.own:
        words[0] += f" in {facts.duration(subject.values['seconds'])} on {subject.environment.get('device', 'an unknown device')}"
    if resumed := subject.environment.get("resumed"):
        words.append(f"resumed at step {facts.joined([str(each['step']) for each in resumed])}")
    if skipped := subject.values.get("skipped_steps"):
        words.append(f"{skipped} left out, whose loss was not finite")
    if len(facts.evaluations(subject)) < 2:
        words.append("scored once, at the end: --eval-every STEPS draws a curve of mIoU")
    return f"{'; '.join(words)}."


def _calibration_words(bins: list[dict]) -> str:
    excess = sum(each["share"] * (each["confidence"] - each["accuracy"]) for each in bins)
    if abs(excess) < 0.5:
        return "Over all pixels it is as sure as it is right."
    sure, name = ("surer", "overconfident") if excess > 0 else ("less sure", "underconfident")
    return f"Over all pixels it is {facts.percent(abs(excess))} points {sure} than it is right: {name}."


def _bank_words(bank: Contents) -> str:
    count, size = bank.valid.shape
    empty = [name for name, there in zip(bank.classes, bank.valid, strict=True) if not there.any()]
    if len(empty) == count:
        return "It is empty."
    filled, source = (f"{100 * part.mean():.0f} %" for part in (bank.valid, bank.domain[bank.valid] == SOURCE))
    words = f"At step {bank.at:,}, {filled} of its {count} × {size} entries are filled, {source} of these from the source."
    return f"{words} It holds nothing of {facts.joined(empty)}." if empty else words


def _left_out(subject: Subject) -> list[str]:
    """What was said of the data, and the files that were left out."""
    said = [*subject.environment.get("notes", []), *subject.values.get("skipped", [])]
    return said if len(said) <= MOST_SAID else [*said[:MOST_SAID], f"… and {len(said) - MOST_SAID} more"]


def _commands(subject: Subject) -> list[tuple[str, str]]:
    again = shlex.join(["sda", "train", str(subject.folder / "recipe.toml")])
    ran = facts.as_run(subject)
    return [
        *([("As it was run", ran)] if ran else []),
        ("To train it again", again),
        ("To score it again", facts.to_score(subject)),
    ]


def _versions(environment: dict) -> list[tuple[str, str]]:
    named = {"sda": "sda", "git": "git revision", "device": "device", "python": "Python", "platform": "platform"}
    found = [(words, str(environment[key])) for key, words in named.items() if environment.get(key)]
    return found + [(name, version) for name, version in environment.get("packages", {}).items() if version]
