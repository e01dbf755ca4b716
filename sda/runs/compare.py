"""Compare scores of several runs in one table: for the terminal, or as Markdown, LaTeX, CSV or JSON."""

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from sda import recipe as recipes
from sda.errors import SdaError
from sda.protocol import why_not_comparable
from sda.scoring.summary import SUMMARY, missing_classes, read_score
from sda.system import tables
from sda.system.tables import mean_of_present, named

SEEDS = {"seed", "split_seed"}
SUBSETS = {metric.key: metric.title for metric in SUMMARY if metric.subset}


@dataclass(frozen=True)
class Score:
    """One score of a run.

    Attributes:
        title: its name in tables. folder: the run folder.
        values: the fields of `sda.scoring.evaluate.evaluate`. recipe: the recipe of the run.
    """

    title: str
    folder: Path
    values: dict
    recipe: dict

    @property
    def subject(self) -> tuple[str, str]:
        """Dataset and split; the score in result.json is of the validation split of the target."""
        return self.values.get("dataset", self.recipe["target"]), self.values.get("split", "val")


@dataclass(frozen=True)
class Row:
    """One row: one run, or the mean over several.

    Attributes:
        count: number of runs. miou, miou_all: percent. spread: standard deviation of miou; None for one run.
        interval: 95 % interval over images, for one run; None for several. iou: class → percent, None if absent.
        subsets: "miou16", "miou13" → percent, for networks that have these classes.
        missing_classes: those without a labelled pixel in the scored images.
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
    missing_classes: list[str]

    @property
    def scored(self) -> str:
        """How many classes the labels have, if not all."""
        missing, count = len(self.missing_classes), len(self.iou)
        return f"{count - missing} of {count} classes" if missing else ""


def title_of(folder: Path) -> str:
    """Return the name of a run: its folder, or ROW/seedN for runs of `sda ablate`."""
    path = Path(os.path.realpath(folder))
    return f"{path.parent.name}/{path.name}" if path.name.startswith("seed") else path.name


def read(path: Path) -> Score:
    """Read the score of a run folder (its result.json), or of a file in RUN/evaluations/.

    Raises:
        SdaError: no such run, a run that is not finished, or a file that is not a score.
    """
    if not os.path.lexists(path):
        raise SdaError(f"{path}: no such run or score")
    is_folder = os.path.isdir(path)
    if not is_folder and path.suffix != ".json":
        raise SdaError(f"{path}: neither a run folder nor a score (RUN/evaluations/*.json)")
    file = path / "result.json" if is_folder else path
    folder = file.parent.parent if file.parent.name == "evaluations" else file.parent
    if not os.path.lexists(folder / "recipe.toml"):
        raise SdaError(f"{path}: not a run: there is no recipe.toml")
    try:
        values = read_score(file)
    except FileNotFoundError:
        raise SdaError(f"{path}: this run is not finished: there is no result.json") from None
    name = title_of(folder)
    title = name if file.name == "result.json" else f"{name}/{file.stem}"
    return Score(title, folder, values, recipes.load(str(folder / "recipe.toml")).model_dump())


def read_usable(paths: list[Path]) -> tuple[list[Score], list[str]]:
    """Read the scores of several runs, and skip those that have none: other folders, and runs that are unfinished or damaged.

    Returns:
        The scores, and the reason for each path that was skipped.

    Raises:
        SdaError: a path does not exist.
    """
    scores, faults = [], []
    for path in paths:
        try:
            scores.append(read(path))
        except SdaError as fault:
            if not os.path.lexists(path):
                raise
            faults.append(str(fault))
    return scores, faults


def rows(scores: list[Score], merge: bool) -> list[Row]:
    """Return a row per score; with `merge`, runs whose recipes differ only in their seeds share a row.

    Raises:
        SdaError: the scores differ in protocol, data or classes; or `merge`, and two of a row have the same seeds.
    """
    titled = _unique(scores)
    if why := why_not_comparable({title: score.values for title, score in titled.items()}):
        raise SdaError(f"{why}, so they are not comparable; evaluate them with one protocol: sda eval RUN… --protocol NAME")
    first = next(iter(titled.values()))
    for title, score in titled.items():
        if score.subject != first.subject:
            raise SdaError(
                f"{next(iter(titled))} is scored on {' '.join(first.subject)} and {title} on {' '.join(score.subject)}, "
                "so they are not comparable"
            )
    groups: dict[str, list[tuple[str, Score]]] = {}
    for title, score in titled.items():
        shared = {key: value for key, value in score.recipe.items() if key not in SEEDS | recipes.IDLE}
        group = groups.setdefault(json.dumps(shared, sort_keys=True) if merge else title, [])
        for other, earlier in group:
            if all(earlier.recipe[key] == score.recipe[key] for key in SEEDS):
                raise SdaError(f"{other} and {title} have the same recipe and seed {score.recipe['seed']}; leave one of them out")
        group.append((title, score))
    subsets = [key for key in SUBSETS if all(score.values.get(key) is not None for score in scores)]
    return [_row(group, subsets) for group in groups.values()]


def _unique(scores: list[Score]) -> dict[str, Score]:
    """Map titles to scores; equal titles are numbered."""
    titled: dict[str, Score] = {}
    for score in scores:
        title, number = score.title, 2
        while title in titled:
            title, number = f"{score.title} ({number})", number + 1
        titled[title] = score
    return titled


def _row(group: list[tuple[str, Score]], subsets: list[str]) -> Row:
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
        tuple(values[0]["interval"]) if single else None,
        statistics.mean(value["miou_all"] for value in values),
        {name: mean_of_present(value["iou"][name] for value in values) for name in first.values["iou"]},
        {key: statistics.mean(value[key] for value in values) for key in subsets},
        missing_classes(first.values),
    )


def columns(rows: list[Row]) -> list[str]:
    """Return the column titles of `cells`."""
    return [
        "run",
        *rows[0].iou,
        *(title for key, title in SUBSETS.items() if key in rows[0].subsets),
        "mIoU",
        "mIoU, all classes",
    ]


def cells(row: Row) -> list[str]:
    """Return a row as text: percent with one decimal, a dash for absent classes; mIoU with its deviation or interval."""
    miou = f"{row.miou:.1f}"
    if row.spread is not None:
        miou += f" ± {row.spread:.1f}"
    elif row.interval:
        miou += f" [{row.interval[0]:.1f}, {row.interval[1]:.1f}]"
    miou += f", {row.scored}" if row.scored else ""
    numbers = ["–" if value is None else f"{value:.1f}" for value in row.iou.values()]
    return [row.title, *numbers, *(f"{value:.1f}" for value in row.subsets.values()), miou, f"{row.miou_all:.1f}"]


def caption(rows: list[Row]) -> str:
    """Return a caption: unit, protocol, and the meaning of ± and brackets."""
    ranges = []
    if any(row.spread is not None for row in rows):
        ranges.append("± standard deviation over seeds")
    if any(row.interval for row in rows):
        ranges.append("[95 % interval over images]")
    if rows[0].scored:
        ranges.append(f"the labels have only {rows[0].scored}, and no pixel of {named(rows[0].missing_classes)}")
    return "; ".join([f"IoU in percent; mIoU over the classes present; protocol {rows[0].protocol}", *ranges])


def render(rows: list[Row], form: str) -> str:
    """Return the table as markdown, latex, csv (full precision) or json."""
    if form == "json":
        return json.dumps([{**row.__dict__} for row in rows], indent=2)
    if form == "csv":
        table: list[list[object]] = [
            ["run", "runs", "protocol", *rows[0].iou, *rows[0].subsets, "miou", "spread", "miou_all", "missing_classes"]
        ]
        for row in rows:
            scores = [*row.iou.values(), *row.subsets.values(), row.miou, row.spread, row.miou_all]
            table.append([row.title, row.count, row.protocol, *scores, "; ".join(row.missing_classes)])
        return tables.csv_text(table).rstrip("\n")
    head, body = columns(rows), [cells(row) for row in rows]
    if form == "markdown":
        return f"{tables.markdown(head, body, numbers=True)}\n\n{tables.markdown_text(caption(rows))}."
    rotated = [head[0], *(rf"\rotatebox{{90}}{{{tables.latex(cell)}}}" for cell in head[1:])]
    lines = [" & ".join(rotated), *(" & ".join(map(tables.latex, line)) for line in body)]
    return "\n".join(
        [
            rf"% needs \usepackage{{booktabs,graphicx}}. {tables.latex(caption(rows))}.",
            rf"\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}",
            r"\toprule",
            lines[0] + r" \\",
            r"\midrule",
            *(line + r" \\" for line in lines[1:]),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
