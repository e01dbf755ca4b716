"""Options and helpers that several commands share."""

import json
import re
from pathlib import Path

import click

from sda.cli import terminal
from sda.errors import SdaError
from sda.reading import read_text
from sda.sizes import check_size

DEVICES = ["auto", "cpu", "cuda", "mps"]
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
device_option = click.option(
    "--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Device to compute on."
)
checkpoint_option = click.option(
    "--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True, help="Checkpoint to load."
)
network_option = click.option(
    "--network", type=click.Choice(["student", "teacher"]), default="student", show_default=True, help="Network to load."
)
bad_files_option = click.option(
    "--bad-files",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="Stop at an unusable file, or skip it.",
)
scales_option = click.option(
    "--scales", default="1", show_default=True, metavar="S,…", help="Average predictions over these input scales."
)
flip_option = click.option("--flip", is_flag=True, help="Average predictions over the image and its mirror image.")


class SizeCommand(click.Command):
    """A command whose --size takes HEIGHTxWIDTH, or height and width as two words, as earlier versions did."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = re.sub(r"(?<=--size[\0=])(\d+)\0(\d+)(?=\0|$)", r"\1x\2", "\0".join(args))
        return super().parse_args(ctx, words.split("\0") if args else args)


class Size(click.ParamType):
    """Height and width, written HEIGHTxWIDTH."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            size = check_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return int(size[0]), int(size[1])


def parse_scales(text: str) -> tuple[float, ...]:
    """Return the numbers in --scales."""
    try:
        return tuple(float(scale) for scale in text.split(","))
    except ValueError:
        raise SdaError(f"--scales {text}: expected numbers separated by commas, such as 0.75,1,1.25") from None


def short_name(name: str) -> str:
    """Return the name of a recipe or dataset given by name or path; for RUN/recipe.toml, the name of the run."""
    path = Path(name)
    return path.absolute().parent.name if path.name == "recipe.toml" else path.stem


def show_file(values: dict, path: Path, as_json: bool) -> None:
    """Print a TOML file, or its values as JSON."""
    if as_json:
        click.echo(json.dumps(values, indent=2))
    else:
        terminal.say(*read_text(path).rstrip().split("\n"))
