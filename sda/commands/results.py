"""eval."""

import json
import os
from pathlib import Path

import click

from sda import report
from sda.commands.options import device_option, json_option
from sda.errors import SdaError
from sda.progress import Bars


@click.command("eval")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--dataset", "datasets", multiple=True, help="Dataset or TOML; repeat for several.  [default: the run's target]")
@click.option("--root", "roots", multiple=True, help="Folder of the dataset of the same position.")
@click.option("--split", default="val", show_default=True, help="Split to score.")
@click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True)
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
    checkpoint: str,
    bad_files: str,
    device: str,
    as_json: bool,
) -> None:
    """Per-class IoU of trained runs on one or several target domains."""
    if len(roots) > max(len(datasets), 1):
        raise SdaError(f"{len(roots)} --root for {max(len(datasets), 1)} --dataset: give one root per dataset, in the same order")

    from sda import experiment
    from sda.evaluate import protocol

    where, scores = experiment.pick_device(device), {}
    with Bars() as bars:
        loaded = {folder: experiment.load_run(Path(folder), checkpoint, where) for folder in runs}
        protocols = {protocol(run.recipe.input_size)["name"] for run in loaded.values()}
        tables = {tuple(run.table.names) for run in loaded.values()}
        if len(protocols) > 1 or len(tables) > 1:
            raise SdaError(
                f"these runs cannot stand in one table: their scores have different "
                f"{'protocols: ' + ', '.join(sorted(protocols)) if len(protocols) > 1 else 'classes'}; "
                "evaluate them one by one"
            )
        for folder, run in loaded.items():
            target = run.recipe.target
            for place, dataset in enumerate(datasets or (target,)):
                own = dataset == target or (dataset.endswith(".toml") and os.path.abspath(dataset) == target)
                root = roots[place] if place < len(roots) else run.recipe.target_root if own else ""
                score = experiment.score_run(run, dataset, root, split, bad_files == "skip", where, bars)
                for fault in score["skipped"]:
                    bars.say(f"left out: {fault}")
                title = f"{os.path.relpath(folder)} on {dataset}" if datasets else os.path.relpath(folder)
                facts = {"run": folder, "dataset": dataset, "split": split, "checkpoint": checkpoint, "step": run.step}
                scores[title] = {**facts, **score}
    if as_json:
        click.echo(json.dumps(list(scores.values()), indent=2))
    else:
        report.show_scores(scores)
