"""Tables on the terminal: scores, memory banks, domain gaps, and findings of the doctor."""

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from sda.data.inspect.doctor import PROBLEM_KINDS, Examination
from sda.runs import compare
from sda.scoring.summary import SUMMARY, classes_scored, warning
from sda.system.console import printable


def say(*lines: str, err: bool = False) -> None:
    """Print lines on stdout, or on stderr. All lines that a command prints pass through here or through a table below."""
    for line in lines:
        click.echo(printable(line), err=err)


def show_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print a table on stdout."""
    table = Table(*(Column(_cell(column), overflow="fold") for column in columns), header_style="bold")
    for row in rows:
        table.add_row(*map(_cell, row))
    _console().print(table)


def _cell(text: str) -> str:
    """Return a text for a table of rich, without markup."""
    return escape(printable(text))


def _print(text: str, style: str | None = None, soft_wrap: bool = False) -> None:
    """Print a text that may be longer than a line."""
    _console().print(printable(text), style=style, markup=False, soft_wrap=soft_wrap)


def ago(seconds: float) -> str:
    """Return a duration as a phrase in the largest unit that is not zero, such as "2 h ago"."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def show_scores(scores: dict[str, dict]) -> None:
    """Print IoU per class in percent, with a column per run, and the protocol. Warn of classes that the labels lack.

    Args:
        scores: run → fields of `sda.scoring.evaluate.evaluate`.
    """
    for line in dict.fromkeys(warning(score, score.get("dataset") or name) for name, score in scores.items()):
        if line:
            _print(line, style="bold", soft_wrap=True)
    first = next(iter(scores.values()))
    table = Table("class", header_style="bold", caption=_protocols(scores))
    for name in scores:
        table.add_column(_cell(name), justify="right", overflow="fold")
    for label in first["iou"]:
        table.add_row(_cell(label), *(_percent(score["iou"].get(label)) for score in scores.values()))
    table.add_section()
    scored = [classes_scored(score) for score in scores.values()]
    if any(scored):
        table.add_row("classes in the labels", *(words.removesuffix(" classes") or "all" for words in scored), style="bold")
    table.add_row("mIoU, classes present", *(_percent(score["miou"]) for score in scores.values()), style="bold")
    table.add_row("mIoU, all classes", *(_percent(score["miou_all"]) for score in scores.values()))
    _console().print(table)


def show_selection(selection: dict[str, dict]) -> None:
    """Print which checkpoint each criterion selects, and how much worse it is than the best one (the oracle)."""
    rows = [[name, str(found["step"]), f"{found['miou']:.2f}", f"{found['behind']:.2f}"] for name, found in selection.items()]
    show_table(["selected by", "step", "mIoU", "below the oracle"], rows)


def show_bank(rows: list[dict]) -> None:
    """Print statistics of a memory bank (see `sda.analysis.bank.Contents.rows`)."""
    columns = ["class", "entries", "filled", "from source", "confidence", "mean age", "oldest", "cosine within", "nearest class"]

    def shown(value: object, form: str) -> str:
        return "–" if value is None else format(value, form)

    show_table(
        [*columns, "cosine to it"],
        [
            [
                row["class"],
                str(row["entries"]),
                *(shown(row[key], form) for key, form in (("fill", ".0%"), ("source", ".0%"), ("confidence", ".3f"))),
                *(shown(row[key], form) for key, form in (("age", ".0f"), ("oldest", "d"), ("within", ".2f"))),
                row["nearest"] or "–",
                shown(row["between"], ".2f"),
            ]
            for row in rows
        ],
    )


def show_gap(networks: dict[str, dict], domains: list[str]) -> None:
    """Print distances between two domains (see `sda.analysis.gap.measure`); values of several networks as first → second."""
    if len(networks) > 1:
        _print(" → ".join(networks))
    keys = {"centroid": ".2f", "mmd": ".3f", "p": ".3f", "domain_accuracy": ".1f"}
    of_class = [{row["class"]: row for row in found["classes"]} for found in networks.values()]
    lines = {
        name: [rows.get(name, {}) for rows in of_class] for name in dict.fromkeys(name for rows in of_class for name in rows)
    }
    lines["mean"] = [found["mean"] for found in networks.values()]
    table = [
        [name, *(" → ".join(format(row[key], form) if key in row else "–" for row in rows) for key, form in keys.items())]
        for name, rows in lines.items()
    ]
    table[-1][3] = ""  # p has no mean
    show_table(["class", "centroid", "MMD", "p", "domain accuracy"], table)
    one, other = domains
    for name, found in networks.items():
        own = " and ".join(f"{value:.1f} %" for value in found["within"])
        _print(
            f"{name}: nearest neighbours in {one} classify {found['probe']:.1f} % of the pixels of {other} correctly, and those "
            f"in {other} classify {found['probe_back']:.1f} % of the pixels of {one}; within the domains: {own}"
        )


def show_summary(scores: dict[str, dict]) -> None:
    """Print a row per score: mIoU with its interval, and the other metrics."""
    shown = [metric for metric in SUMMARY if any(metric.key in score for score in scores.values())]
    rows = [
        [
            name,
            " over ".join(filter(None, [_percent(score["miou"]), classes_scored(score)])),
            f"{score['interval'][0]:.1f} to {score['interval'][1]:.1f}",
            *(_percent(score.get(metric.key)) for metric in shown),
        ]
        for name, score in scores.items()
    ]
    show_table(["run", "mIoU", "95 % interval", *(metric.title for metric in shown)], rows)


def show_comparison(rows: list[compare.Row]) -> None:
    """Print a comparison with a column per run, because there are more classes than runs."""
    lines = zip(compare.columns(rows), *(compare.cells(row) for row in rows), strict=True)
    head, *body = [list(line) for line in lines]
    show_table(head, body)
    _print(compare.caption(rows), soft_wrap=True)


SHOWN = 5  # maximum number of problems to print of each kind; report.json has all


def show_examination(found: Examination) -> None:
    """Print a report of `sda.data.inspect.doctor.examine`."""
    table = Table("split", "images", "labelled", "bad pairs", header_style="bold", title=_cell(f"{found.dataset}, {found.root}"))
    for split, counts in found.splits.items():
        table.add_row(_cell(split), *(str(counts[key]) for key in ("images", "labelled", "bad")))
    _console().print(table)
    sizes = ", ".join(f"{count} of {size}" for size, count in list(found.sizes.items())[:6])
    _print(f"Sizes: {sizes}{', …' if len(found.sizes) > 6 else ''}")
    encodings = ", ".join(f"{count} {name}" for name, count in found.encodings.items())
    said = dict.fromkeys(counts["encoding"] for counts in found.splits.values())
    rgb = " or colours" * ("colours" in found.encodings)  # which count whatever the encoding of ids
    expected = " and ".join(each + rgb * (each in ("ids", "train_ids")) for each in said)
    _print(f"Labels: {encodings or 'none'}; the descriptor says {expected}")
    table = Table("class", "% of pixels", "% of images", header_style="bold")
    for name, share in found.frequencies.items():
        style = "red" if share["images"] == 0 else None
        table.add_row(_cell(name), f"{100 * share['pixels']:.2f}", f"{100 * share['images']:.1f}", style=style)
    if found.encodings:
        _console().print(table)
    if found.never and found.encodings:
        _print(f"Classes that never occur: {', '.join(found.never)}")
    for kind, words in PROBLEM_KINDS.items():
        problems = [problem for problem in found.problems if problem.kind == kind]
        if problems:
            skipped = " (training skips them)" if problems[0].bad else ""
            _print(f"{len(problems)} {words}{skipped}:", style="bold")
            for problem in problems[:SHOWN]:
                _print(f"  {problem.detail}", soft_wrap=True)
            if len(problems) > SHOWN:
                _print("  …")
    if found.advice:
        _print(f"Advice: {found.advice}", style="bold", soft_wrap=True)
    if not found.problems and not found.advice:
        _print("No problems found.")


def _console() -> Console:
    """Return a console on stdout; if stdout is not a terminal, one that is wide enough for whole rows."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _protocols(scores: dict[str, dict]) -> str:
    names = {score["protocol"]["name"] for score in scores.values()}
    return f"IoU in percent; protocol {', '.join(sorted(names))}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
