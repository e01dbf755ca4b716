"""The group of all commands."""

import click

from sda import __version__
from sda.cli import data, export, features, predict, results, training


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Semi-supervised domain adaptation of semantic segmentation."""


for command in (
    *(training.train, training.ablate, training.demo, training.runs, training.recipes, training.backbones),
    *(results.evaluate, results.compare, predict.predict, results.report, export.export),
    *(features.features, features.bank, features.gap, features.select),
    *(data.datasets, data.init, data.init_dataset, data.doctor, data.split, data.pack),
):
    cli.add_command(command)
