"""eval, compare."""

import json
import os
from pathlib import Path

import click

from sda.cli import terminal as report
from sda.cli.options import (
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
@click.option("--dataset", "datasets", multiple=True, help="Dataset or TOML; repeat for several.  [default: the run's target]")
@click.option("--root", "roots", multiple=True, help="Folder of the dataset of the same position.")
@click.option("--split", default="val", show_default=True, help="Split to score.")
@click.option("--protocol", "protocol_name", type=click.Choice(PRESETS), help="How to score.  [default: the run's]")
@scales_option
@flip_option
@network_option
@checkpoint_option
@click.option(
    "--bad-files", type=click.Choice(["error", "skip"]), default="error", show_default=True, help="Stop, or report and go on."
)
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
    """Score trained runs on one or several target domains: a row for each, and IoU per class.

    The scores are kept in RUN/evaluations/, for sda compare and sda report.
    """
    if len(roots) > max(len(datasets), 1):
        raise SdaError(f"{len(roots)} --root for {max(len(datasets), 1)} --dataset: give one root per dataset, in the same order")
    factors = parse_scales(scales)

    from sda.runs import evaluations, trained
    from sda.system.devices import pick_device

    where, scores = pick_device(device), {}
    with Bars() as bars:
        loaded = {folder: trained.load_run(Path(folder), checkpoint, where, network) for folder in runs}
        protocols = {folder: run.protocol(protocol_name or "", factors, flip) for folder, run in loaded.items()}
        why = why_not_comparable(
            {
                folder: {"protocol": protocols[folder].to_dict(), "iou": dict.fromkeys(run.table.names)}
                for folder, run in loaded.items()
            }
        )
        if why:
            raise SdaError(f"these runs cannot stand in one table: {why}; evaluate them one by one, or with one --protocol")
        for folder, run in loaded.items():
            target = run.recipe.target
            for place, dataset in enumerate(datasets or (target,)):
                root = roots[place] if place < len(roots) else ""
                score = evaluations.evaluate_run(run, protocols[folder], dataset, root, split, bad_files == "skip", bars)
                for fault in score["skipped"]:
                    bars.say(f"left out: {fault}")
                bars.say(evaluations.cost(protocols[folder], score))
                if note := evaluations.keep(run, score):
                    bars.say(note)
                title = f"{os.path.relpath(folder)} on {dataset}" if datasets else os.path.relpath(folder)
                scores[title] = score
    if as_json:
        click.echo(json.dumps(list(scores.values()), indent=2))
        return
    report.show_scores(scores)
    report.show_summary(scores)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN|FILE...")
@click.option("--seeds", "merge", is_flag=True, help="Runs that differ by their seeds alone are one row: mean and deviation.")
@click.option(
    "--format", "form", type=click.Choice(["table", "markdown", "latex", "csv", "json"]), default="table", show_default=True
)
def compare(runs: tuple[str, ...], merge: bool, form: str) -> None:
    """The scores of several runs in one table: IoU per class, and mIoU.

    A run's own score, or any in its evaluations/ by the path of its file. Scores of different protocols, data sets or classes are
    not mixed.
    """
    from sda.runs import compare as comparison

    rows = comparison.rows([comparison.read(Path(run)) for run in runs], merge)
    if form == "table":
        report.show_comparison(rows)
    else:
        click.echo(comparison.render(rows, form))
