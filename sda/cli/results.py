"""The commands eval, compare and report."""

import json
import os
from pathlib import Path

import click

from sda.cli import terminal
from sda.cli.options import (
    bad_files_option,
    checkpoint_option,
    device_option,
    flip_option,
    json_option,
    network_option,
    parse_scales,
    scales_option,
)
from sda.errors import SdaError
from sda.protocol import PRESETS, why_not_comparable
from sda.system.progress import Bars


@click.command("eval")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--dataset", "datasets", multiple=True, help="Dataset or TOML file; repeat for several.  [default: the run's target]"
)
@click.option("--root", "roots", multiple=True, help="Folder of the dataset; repeat in the order of --dataset.")
@click.option("--split", default="val", show_default=True, help="Split to evaluate on.")
@click.option(
    "--protocol",
    "protocol_name",
    type=click.Choice(PRESETS),
    help="Evaluation protocol, see docs/evaluation.md.  [default: the run's]",
)
@scales_option
@flip_option
@network_option
@checkpoint_option
@bad_files_option
@device_option
@json_option
def evaluate(
    runs: tuple[str, ...],
    datasets: tuple[str, ...],
    roots: tuple[str, ...],
    split: str,
    protocol_name: str | None,
    scales: str,
    flip: bool,
    network: str,
    checkpoint: str,
    bad_files: str,
    device: str,
    as_json: bool,
) -> None:
    """Evaluate trained runs on one or several datasets.

    Prints IoU per class and a summary, and saves the scores in RUN/evaluations/ for `sda compare` and `sda report`.
    """
    if len(roots) > max(len(datasets), 1):
        raise SdaError(f"{len(roots)} --root for {max(len(datasets), 1)} --dataset: give one root per dataset, in the same order")
    factors = parse_scales(scales)

    from sda.runs import evaluations, trained
    from sda.system.devices import pick_device

    torch_device, scores = pick_device(device), {}
    with Bars() as bars:
        loaded = {folder: trained.load(folder, checkpoint, network, torch_device) for folder in runs}
        protocols = {folder: run.protocol(protocol_name or "", factors, flip) for folder, run in loaded.items()}
        why = why_not_comparable(
            {
                folder: {"protocol": protocols[folder].to_dict(), "iou": dict.fromkeys(run.table.names)}
                for folder, run in loaded.items()
            }
        )
        if why:
            raise SdaError(f"these runs are not comparable: {why}; evaluate them one by one, or set --protocol")
        for folder, run in loaded.items():
            target = run.recipe.target
            for number, dataset in enumerate(datasets or (target,)):
                root = roots[number] if number < len(roots) else ""
                score = evaluations.evaluate_run(run, protocols[folder], dataset, root, split, bad_files == "skip", bars)
                for fault in score["skipped"]:
                    bars.say(f"skipped: {fault}")
                bars.say(evaluations.cost(protocols[folder], score))
                if note := evaluations.keep(run, score):
                    bars.say(note)
                title = f"{os.path.relpath(folder)} on {dataset}" if datasets else os.path.relpath(folder)
                scores[title] = score
    if as_json:
        click.echo(json.dumps(list(scores.values()), indent=2))
        return
    terminal.show_scores(scores)
    terminal.show_summary(scores)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN|FILE...")
@click.option(
    "--seeds",
    "merge",
    is_flag=True,
    help="Merge runs that differ only in their seeds into one row, with mean and standard deviation.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "latex", "csv", "json"]),
    default="table",
    show_default=True,
    help="Output format.",
)
def compare(runs: tuple[str, ...], merge: bool, form: str) -> None:
    """Compare the scores of several runs: IoU per class, and mIoU.

    RUN is a run folder, for the score at the end of its training. FILE is a score that `sda eval` saved in RUN/evaluations/.
    Folders that are no runs, and unfinished runs, are skipped with a line each.
    Scores of different protocols, datasets or classes are not comparable, which is an error.
    """
    from sda.runs import compare

    scores, faults = compare.read_usable([Path(run) for run in runs])
    if not scores:
        raise SdaError("; ".join(faults))
    for fault in faults:
        terminal.say(f"skipped: {fault}", err=True)
    rows = compare.rows(scores, merge)
    if form == "table":
        terminal.show_comparison(rows)
    else:
        click.echo(compare.render(rows, form))


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN|FILE...")
@click.option("--out", metavar="DIR", help="Output folder.  [default: reports/NAME]")
@click.option("--overwrite", is_flag=True, help="Replace an existing report.")
@click.option("--root", default="", metavar="DIR", help="Folder of the dataset.  [default: the one used in training]")
@device_option
def report(runs: tuple[str, ...], out: str | None, overwrite: bool, root: str, device: str) -> None:
    """Write an HTML page about a run, compared with other runs.

    The page shows classes, confusions, best and worst images, curves, checkpoint selection, calibration, the memory bank and
    how to reproduce the run. It is a self-contained file; its figures are also written as PNG files. RUN is a run folder,
    FILE a score that `sda eval` saved in RUN/evaluations/. All scores must have the same protocol, dataset and classes.
    """
    from sda.report import build

    with Bars() as bars:
        path = build.write([Path(run) for run in runs], Path(out) if out else None, overwrite, root, device, bars)
    terminal.say(f"Report: {path}")
