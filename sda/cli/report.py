"""report."""

from pathlib import Path

import click

from sda.cli.options import device_option
from sda.system.progress import Bars


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN|FILE...")
@click.option("--out", metavar="DIR", help="Folder to write to.  [default: reports/NAME]")
@click.option("--overwrite", is_flag=True, help="Replace the report that is there.")
@click.option("--root", default="", metavar="DIR", help="Folder of the dataset, if it is not where the training had it.")
@device_option
def report(runs: tuple[str, ...], out: str | None, overwrite: bool, root: str, device: str) -> None:
    """One HTML page about a run, compared with those named after it.

    Classes, confusions, best and worst images, curves, checkpoint selection, calibration, the memory bank, and how to do it
    again: in one file that needs no other, its figures beside it as PNG. A run's own score, or any in its evaluations/ by the
    path of its file; those of unlike protocols, data sets or classes are not mixed.
    """
    from sda.report import build as page

    with Bars() as bars:
        path = page.write([Path(run) for run in runs], Path(out) if out else None, overwrite, root, device, bars)
    click.echo(f"Report: {path}")
