"""The command predict."""

import json
import os
import sys
from pathlib import Path

import click

from sda.cli import terminal
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
from sda.sizes import check_size
from sda.system.progress import Bars
from sda.system.signals import Interrupted


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("inputs", nargs=-1, required=True, metavar="IMAGE|DIR|VIDEO...")
@click.option("--out", default="", metavar="DIR", help="Folder for the predictions.  [default: predictions/RUN]")
@click.option(
    "--as",
    "kinds",
    multiple=True,
    metavar="KIND,…",
    help="Kinds of output, see above: overlay, color, ids, train_ids, confidence, cityscapes.  [default: overlay]",
)
@click.option(
    "--size",
    default="fit",
    show_default=True,
    metavar="SIZE",
    help="Size of the network's input: fit, native, eval or HEIGHTxWIDTH.",
)
@scales_option
@flip_option
@network_option
@checkpoint_option
@click.option("--batch", type=click.IntRange(1), help="Images per batch.  [default: up to 8, fewer if they are large]")
@click.option(
    "--max-megapixels",
    "megapixels",
    type=click.FloatRange(0, 1e6, min_open=True),
    default=200,
    show_default=True,
    help="Skip larger images, videos with larger frames, and images that would be enlarged above this size.",
)
@click.option("--resume", is_flag=True, help="Keep existing outputs and write the missing ones.")
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@device_option
@json_option
def predict(
    run: str,
    inputs: tuple[str, ...],
    out: str,
    kinds: tuple[str, ...],
    size: str,
    scales: str,
    flip: bool,
    network: str,
    checkpoint: str,
    batch: int | None,
    megapixels: float,
    resume: bool,
    overwrite: bool,
    device: str,
    as_json: bool,
) -> None:
    """Segment images and videos with a trained run.

    Writes one folder per kind of output, which mirrors the folders of the inputs, and classes.png, a legend of the class colours:

    \b
      overlay      class colours over the image (JPEG; for a video, a video)
      color        class colours (PNG; for a video, a video)
      ids          label ids, as in the label files of the run's target
      train_ids    indices into the class table, from 0
      confidence   probability of the predicted class; 255 is 1
      cityscapes   the format of the Cityscapes test server

    --size eval resizes every image to the size at which the run is evaluated. fit does the same, except that images with
    a different aspect ratio keep it. native does not resize. Images much larger than the training images are predicted in
    overlapping windows. Outputs have the size of the image.

    In folders, images and videos are recognised by their content, whatever their names are. Those that cannot be read are
    skipped and listed at the end. The exit status is 0 if all were predicted, 1 if some were skipped, and 2 if none could be
    predicted. --resume continues only with the same network, options and inputs.
    """
    factors, input_size = parse_scales(scales), parse_size(size)
    if resume and overwrite:
        raise SdaError("--resume keeps existing outputs and --overwrite replaces them; use only one of them")

    try:
        from sda.prediction.pipeline import Options
        from sda.prediction.predict import predict_files
        from sda.system.devices import pick_device

        with Bars() as bars:
            summary = predict_files(
                Path(os.path.expanduser(run)),
                [Path(os.path.expanduser(path)) for path in inputs],
                Path(os.path.expanduser(out)) if out else None,
                list(dict.fromkeys(kind.strip() for given in kinds for kind in given.split(","))) or ["overlay"],
                Options(input_size, factors, flip, batch or 0, megapixels),
                checkpoint,
                network,
                pick_device(device),
                resume,
                overwrite,
                bars,
            )
    except Interrupted as stop:
        raise Interrupted(stop.number, f"{stop}. Run the same command again with --resume to resume") from None
    terminal.say(*(json.dumps(summary.to_dict(), indent=2) if as_json else str(summary)).split("\n"))
    outcome = summary.outcome
    if outcome.skipped:
        sys.exit(1 if outcome.images + outcome.videos + summary.existing else 2)


def parse_size(text: str) -> str | tuple[int, int]:
    """Return the value of --size: a word, or (height, width)."""
    try:
        size = check_size(text, ("fit", "native", "eval"))
    except ValueError as error:
        raise SdaError(f"--size {text}: {error}") from None
    return size if isinstance(size, str) else (size[0], size[1])
