"""Scores of several runs in one table, for the terminal, Markdown, LaTeX or a spreadsheet: only what can be compared."""

import csv
import io
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from sda import recipe as recipes
from sda.errors import SdaError
from sda.protocol import why_not_comparable
from sda.system import tables
from sda.system.tables import mean_of_present

SEEDS = {"seed", "split_seed"}
FIELDS = {  # of every score, see `sda.scoring.evaluate.evaluate`
    *("protocol", "images", "skipped", "miou", "miou_all", "accuracy", "fwiou", "iou", "interval", "boundary_miou"),
    *("boundary_iou", "ece", "reliability", "entropy", "infomax", "image_miou", "confusion"),
}
SUBSETS = {"miou16": "mIoU, 16 classes", "miou13": "mIoU, 13 classes"}


@dataclass(frozen=True)
class Score:
    """One score.

    Attributes:
        values: the fields of `sda.scoring.evaluate.evaluate`. folder: of the run. recipe: its training's.
    """

    title: str
    folder: Path
    values: dict
    recipe: dict

    @property
    def subject(self) -> tuple[str, str]:
        """Dataset and split; a run's own score is of its target's validation set."""
        return self.values.get("dataset", self.recipe["target"]), self.values.get("split", "val")


@dataclass(frozen=True)
class Row:
    """One row: the mean over runs.

    Attributes:
        count: of runs. miou, miou_all: percent. spread: standard deviation of miou; None of one run.
        interval: 95 %, over images, of a single run; None of several. iou: class → percent, None where absent.
        subsets: "miou16", "miou13" → percent, where the classes hold these.
    """

    title: str
    count: int
    protocol: str
    miou: float
    spread: float | None
    interval: tuple[float, float] | None
    miou_all: float
    iou: dict[str, float | None]
    subsets: dict[str, float]


def title_of(folder: Path) -> str:
    """A run's name: that of its folder, with the row's where sda ablate names it by its seed."""
    place = folder.resolve()
    return f"{place.parent.name}/{place.name}" if place.name.startswith("seed") else place.name


def read(path: Path) -> Score:
    """The score of a run folder (its result.json), or one of its evaluations by the path of the file.

    Raises:
        SdaError: no such run, not finished, or not a score.
    """
    file = path / "result.json" if path.is_dir() else path
    folder = file.parent.parent if file.parent.name == "evaluations" else file.parent
    if not file.is_file():
        state = "its training has not come to its end" if (path / "recipe.toml").exists() else "no such run or score"
        raise SdaError(f"{path}: {state}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        missing = FIELDS - values.keys()
    except (ValueError, AttributeError):
        missing = {"JSON"}
    if missing:
        raise SdaError(f"{file}: not a score of sda: it lacks {', '.join(sorted(missing))}")
    name = title_of(folder)
    title = name if file.name == "result.json" else f"{name}/{file.stem}"
    return Score(title, folder, values, recipes.load(str(folder / "recipe.toml")).model_dump())


def rows(scores: list[Score], merge: bool) -> list[Row]:
    """A row for each score; with `merge`, one for those whose recipes differ by their seeds alone.

    Raises:
        SdaError: scores of different protocols, data or classes.
    """
    titled = _unique(scores)
    if why := why_not_comparable({title: score.values for title, score in titled.items()}):
        raise SdaError(f"{why}: these do not stand in one table; score them alike: sda eval RUN… --protocol NAME")
    first = next(iter(titled.values()))
    for title, score in titled.items():
        if score.subject != first.subject:
            raise SdaError(
                f"{next(iter(titled))} is scored on {' '.join(first.subject)}, {title} on {' '.join(score.subject)}: "
                "these do not stand in one table"
            )
    groups: dict[str, list[tuple[str, Score]]] = {}
    for title, score in titled.items():
        alike = {key: value for key, value in score.recipe.items() if key not in SEEDS | recipes.IDLE}
        groups.setdefault(json.dumps(alike, sort_keys=True) if merge else title, []).append((title, score))
    return [_row(group) for group in groups.values()]


def _unique(scores: list[Score]) -> dict[str, Score]:
    """By title; runs in folders of the same name get their numbers."""
    titled: dict[str, Score] = {}
    for score in scores:
        title, number = score.title, 2
        while title in titled:
            title, number = f"{score.title} ({number})", number + 1
        titled[title] = score
    return titled


def _row(group: list[tuple[str, Score]]) -> Row:
    title, first = group[0]
    values = [score.values for _, score in group]
    mious = [value["miou"] for value in values]
    single = len(group) == 1
    return Row(
        title if single else f"{title.split('/seed')[0]}, {len(group)} seeds",
        len(group),
        first.values["protocol"]["name"],
        statistics.mean(mious),
        None if single else statistics.stdev(mious),
        tuple(values[0]["interval"]) if single and "interval" in values[0] else None,
        statistics.mean(value["miou_all"] for value in values),
        {name: mean_of_present(value["iou"][name] for value in values) for name in first.values["iou"]},
        {key: statistics.mean(value[key] for value in values) for key in SUBSETS if all(key in value for value in values)},
    )


def columns(rows: list[Row]) -> list[str]:
    """The head of the table: what `cells` gives for each row."""
    return [
        "run",
        *rows[0].iou,
        *(words for key, words in SUBSETS.items() if key in rows[0].subsets),
        "mIoU",
        "mIoU, all classes",
    ]


def cells(row: Row) -> list[str]:
    """A row as text: percent with one decimal, absent classes as a dash; deviation over seeds, or interval over images."""
    miou = f"{row.miou:.1f}"
    if row.spread is not None:
        miou += f" ± {row.spread:.1f}"
    elif row.interval:
        miou += f" [{row.interval[0]:.1f}, {row.interval[1]:.1f}]"
    numbers = ["–" if value is None else f"{value:.1f}" for value in row.iou.values()]
    return [row.title, *numbers, *(f"{value:.1f}" for value in row.subsets.values()), miou, f"{row.miou_all:.1f}"]


def caption(rows: list[Row]) -> str:
    """What the numbers are."""
    ranges = []
    if any(row.spread is not None for row in rows):
        ranges.append("± standard deviation over seeds")
    if any(row.interval for row in rows):
        ranges.append("brackets: 95 % interval over images")
    return "; ".join([f"IoU in percent, mIoU over the classes present; protocol {rows[0].protocol}", *ranges])


def render(rows: list[Row], form: str) -> str:
    """The table as markdown, latex, csv (full precision) or json."""
    if form == "json":
        return json.dumps([{**row.__dict__} for row in rows], indent=2)
    if form == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", "runs", "protocol", *rows[0].iou, *rows[0].subsets, "miou", "spread", "miou_all"])
        for row in rows:
            values = [
                "" if value is None else value for value in (*row.iou.values(), *row.subsets.values(), row.miou, row.spread)
            ]
            writer.writerow([row.title, row.count, row.protocol, *values, row.miou_all])
        return out.getvalue().rstrip("\n")
    head, body = columns(rows), [cells(row) for row in rows]
    if form == "markdown":
        return f"{tables.markdown(head, body, numbers=True)}\n\n{caption(rows)}."
    turned = [head[0], *(rf"\rotatebox{{90}}{{{_latex(cell)}}}" for cell in head[1:])]
    lines = [" & ".join(turned), *(" & ".join(map(_latex, line)) for line in body)]
    return "\n".join(
        [
            rf"% needs \usepackage{{booktabs,graphicx}}. {_latex(caption(rows))}.",
            rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}",
            r"\toprule",
            lines[0] + r" \\",
            r"\midrule",
            *(line + r" \\" for line in lines[1:]),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex(text: str) -> str:
    for character in r"&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text.replace("±", r"$\pm$").replace("–", "--").replace("×", r"$\times$")
