"""What several commands share."""

import json
from pathlib import Path

import click

DEVICES = ["auto", "cpu", "cuda", "mps"]
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
device_option = click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to compute.")


def title_of(name: str) -> str:
    """The name of a recipe; that of its run for the recipe.toml in a run folder."""
    path = Path(name)
    return path.absolute().parent.name if path.name == "recipe.toml" else path.stem


def show_file(values: dict, path: Path, as_json: bool) -> None:
    """Print a TOML file from a shelf, or its values as JSON."""
    click.echo(json.dumps(values, indent=2) if as_json else path.read_text(encoding="utf-8").rstrip())
