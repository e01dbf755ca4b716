"""The group of all commands. A command's module is imported when the command is called, so that `sda --help` is fast."""

import difflib
import importlib
from typing import NamedTuple

import click

from sda import __version__


class Listed(NamedTuple):
    """Where a command is, and the first sentence of its help.

    Attributes:
        place: module below sda.cli, and its function.
    """

    place: str
    summary: str


# The order is that of `sda --help`. A line has room for 62 characters at 80 columns.
GROUPS = {
    "Data": {
        "init": Listed("data:init", "Start with your own photos: write a descriptor and a recipe."),
        "datasets": Listed("data:datasets", "List the known datasets, or print the descriptor of one."),
        "init-dataset": Listed("data:init_dataset", "Write a draft dataset descriptor for the files in DIR."),
        "doctor": Listed("data:doctor", "Check all files of a dataset and report problems."),
        "split": Listed("data:split", "Write a list of training images."),
        "pack": Listed("data:pack", "Pack a dataset into one file that loads many times faster."),
    },
    "Train": {
        "demo": Listed("training:demo", "Train four networks on synthetic streets and compare them."),
        "recipes": Listed("training:recipes", "List the recipes that come with sda, or print one."),
        "backbones": Listed("training:backbones", "List encoders for networks."),
        "train": Listed("training:train", "Train a network."),
        "ablate": Listed("training:ablate", "Measure the effect of settings with several seeds."),
        "runs": Listed("training:runs", "List the runs in a folder, their progress and scores."),
    },
    "Look": {
        "eval": Listed("results:evaluate", "Evaluate trained runs on one or several datasets."),
        "compare": Listed("results:compare", "Compare the scores of several runs: IoU per class, and mIoU."),
        "report": Listed("results:report", "Write an HTML page about a run, compared with other runs."),
        "features": Listed("features:features", "Cache the features of a trained network in an HDF5 file."),
        "bank": Listed("features:bank", "Show statistics of the memory bank of a run."),
        "gap": Listed("features:gap", "Measure the distance between two domains in feature space."),
        "select": Listed("features:select", "Choose images of the target to label next."),
    },
    "Use": {
        "predict": Listed("predict:predict", "Segment images and videos with a trained run."),
        "export": Listed("export:export", "Export a trained network."),
    },
}
COMMANDS = {name: listed for group in GROUPS.values() for name, listed in group.items()}


class Commands(click.Group):
    """The commands in GROUPS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, function = COMMANDS[name].place.split(":")
        return getattr(importlib.import_module(f"sda.cli.{module}"), function)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=3, cutoff=0.5)
            ctx.fail(f"No such command {args[0]!r}." + f" Did you mean {' or '.join(near)}?" * bool(near))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), listed.summary) for name, listed in group.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Semi-supervised domain adaptation of semantic segmentation.

    `sda COMMAND --help` describes a command.
    """
