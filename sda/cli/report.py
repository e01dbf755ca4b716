"""The command report."""

from pathlib import Path

import click

from sda.cli import terminal
from sda.cli.options import device_option
from sda.system.progress import Bars


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN|FILE...")
@click.option("--out", metavar="DIR", help="Output folder.  [default: reports/NAME]")
@click.option("--overwrite", is_flag=True, help="Replace an existing report.")
@click.option("--root", default="", metavar="DIR", help="Folder of the dataset.  [default: the one used in training]")
@device_option
def report(runs: tuple[str, ...], out: str | None, overwrite: bool, root: str, device: str) -> None:
    """Write an HTML page about a run, compared with the runs given after it.

    The page shows classes, confusions, best and worst images, curves, checkpoint selection, calibration, the memory bank and
    how to reproduce the run. It is a self-contained file; its figures are also written as PNG files. RUN is a run folder,
    FILE a score that `sda eval` saved in RUN/evaluations/. All scores must have the same protocol, dataset and classes.
    """
    from sda.report import build

    with Bars() as bars:
        path = build.write([Path(run) for run in runs], Path(out) if out else None, overwrite, root, device, bars)
    terminal.say(f"Report: {path}")
