"""The entry point and the group of all commands."""

import os
import sys

import click

from sda import __version__
from sda.cli import data, export, features, predict, report, results, training
from sda.errors import SdaError
from sda.system.signals import Interrupted


def main() -> None:
    """Run a command; an SdaError becomes one line on stderr and exit status 2."""
    # Waiting threads must not spin: on small machines they would slow down the data loader processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        cli()
    except Interrupted as stop:
        click.echo(f"{stop}.", err=True)
        sys.exit(128 + stop.number)
    except SdaError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Semi-supervised domain adaptation of semantic segmentation."""


for command in (
    *(training.train, training.ablate, training.demo, training.runs, training.recipes),
    *(results.evaluate, results.compare, predict.predict, report.report, export.export),
    *(features.features, features.bank, features.gap, features.select),
    *(data.datasets, data.init_dataset, data.doctor, data.split, data.pack),
):
    cli.add_command(command)
