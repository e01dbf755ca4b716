"""What several commands share."""

import json
from pathlib import Path

import click

from sda.errors import SdaError

DEVICES = ["auto", "cpu", "cuda", "mps"]
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
device_option = click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to compute.")
checkpoint_option = click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True)
network_option = click.option(
    "--network", type=click.Choice(["student", "teacher"]), default="student", show_default=True, help="Whose weights."
)
scales_option = click.option("--scales", default="1", show_default=True, metavar="S,…", help="Average over these input scales.")
flip_option = click.option("--flip", is_flag=True, help="Average over the image and its mirror image.")


def parse_scales(text: str) -> tuple[float, ...]:
    """The numbers of --scales."""
    try:
        return tuple(float(scale) for scale in text.split(","))
    except ValueError:
        raise SdaError(f"--scales {text}: expected numbers with commas between them, such as 0.75,1,1.25") from None


def title_of(name: str) -> str:
    """The name of a recipe; that of its run for the recipe.toml in a run folder."""
    path = Path(name)
    return path.absolute().parent.name if path.name == "recipe.toml" else path.stem


def show_file(values: dict, path: Path, as_json: bool) -> None:
    """Print a TOML file from a shelf, or its values as JSON."""
    click.echo(json.dumps(values, indent=2) if as_json else path.read_text(encoding="utf-8").rstrip())
