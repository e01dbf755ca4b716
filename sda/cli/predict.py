"""predict."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import click

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
from sda.protocol import Protocol
from sda.system.progress import Bars


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("inputs", nargs=-1, required=True, metavar="IMAGE|DIR|VIDEO...")
@click.option("--out", default="", metavar="DIR", help="Where predictions go.  [default: predictions/RUN here]")
@click.option(
    "--as",
    "kinds",
    multiple=True,
    metavar="KIND,…",
    help="What is written: overlay, color, ids, train_ids, confidence, cityscapes.  [default: overlay]",
)
@click.option(
    "--size", default="fit", show_default=True, metavar="SIZE", help="Of the network's input: fit, native, eval, HEIGHTxWIDTH."
)
@scales_option
@flip_option
@network_option
@checkpoint_option
@click.option("--batch", type=click.IntRange(1), help="Images at a time, those of equal size.  [default: by their size, up to 8]")
@click.option("--resume", is_flag=True, help="Leave the outputs that are there and make the rest.")
@click.option("--overwrite", is_flag=True, help="Make anew the outputs that are there.")
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
    resume: bool,
    overwrite: bool,
    device: str,
    as_json: bool,
) -> None:
    """Segment images, folders of them, and videos with a trained run.

    Below DIR there is a folder for each kind, which mirrors the tree of the inputs, and classes.png, a legend:

    \b
      overlay      the classes' colours over the image, JPEG (of a video, a video)
      color        the colours alone (of a video, a video)
      ids          label ids, as in the label files of the run's target
      train_ids    positions in the class table, 0 first
      confidence   probability of the class, 255 is 1
      cityscapes   what the Cityscapes test server takes

    Sizes: fit is that at which the run is scored, but an image of another shape keeps its own; eval is the same for any shape;
    native is the image's own. What is large then is taken in windows. Outputs are of the image's size, upright.

    Files that cannot be read are left out, and listed at the end. Exit status: 0 all is well, 1 some were left out, 2 nothing
    could be done.
    """
    factors, measure = parse_scales(scales), parse_size(size)
    if resume and overwrite:
        raise SdaError("--resume leaves outputs that are there, --overwrite makes them anew: give one of them")

    import torch

    from sda.prediction import plan, render
    from sda.prediction import run as predictions
    from sda.runs import trained
    from sda.runs.compare import title_of
    from sda.system.devices import pick_device

    wanted = list(dict.fromkeys(word.strip() for given in kinds for word in given.split(","))) or ["overlay"]
    for kind in wanted:
        if kind not in plan.KINDS:
            raise SdaError(f"--as {kind}: expected some of {', '.join(plan.KINDS)}, with commas between them")
    folder = Path(os.path.expanduser(run))
    place = (
        Path(os.path.expanduser(out)) if out else Path("predictions") / title_of(folder.parent if folder.is_file() else folder)
    )
    made = [Path("predictions"), place / "classes.png", *(place / kind for kind in plan.KINDS)]
    with Bars() as bars:
        found, passed_over = plan.find([Path(os.path.expanduser(given)) for given in inputs], made)
        if passed_over:
            bars.say(f"{passed_over} files in folders that predictions go to are passed over")
        tasks = plan.plan(found, place, wanted)
        rest = plan.settle(tasks, resume, overwrite)
        loaded = trained.load_run(folder, checkpoint, pick_device(device), network)
        values = render.id_values(loaded, wanted)
        plan.make_folders(place, wanted, loaded.table.colors, overwrite)
        manner = predictions.Manner(measure, factors, flip, batch or 0)
        began = time.perf_counter()
        try:
            outcome = predictions.predict_all(loaded, rest, values, manner, bars.count)
        except torch.OutOfMemoryError:
            raise SdaError(f"the memory of {loaded.device} is full; try, in this order: --batch 1, a smaller --size") from None
        except KeyboardInterrupt:
            bars.say("stopped; to go on: the same command with --resume")
            sys.exit(128 + signal.SIGINT)
        for fault in outcome.left_out:
            bars.say(f"left out: {fault}")
        taken = outcome.images + outcome.frames
        if taken:
            each = 1000 * (time.perf_counter() - began) / taken
            bars.say(f"{Protocol(scales=factors, flip=flip).cost}; {each:.0f} ms each, with reading and writing")
    facts = {
        "run": str(folder),
        "out": str(place),
        "checkpoint": loaded.which,
        "network": loaded.network_name,
        "step": loaded.step,
    }
    counts = {"images": outcome.images, "videos": outcome.videos, "frames": outcome.frames, "there": len(tasks) - len(rest)}
    seconds = round(time.perf_counter() - began, 1)
    if as_json:
        click.echo(json.dumps({**facts, "kinds": wanted, **counts, "seconds": seconds, "left_out": outcome.left_out}, indent=2))
    else:
        said = [
            f"{counts['images']} images" if counts["images"] or not counts["videos"] else "",
            f"{counts['videos']} videos ({counts['frames']} frames)" if counts["videos"] else "",
            f"{counts['there']} were there already" if counts["there"] else "",
            f"{len(outcome.left_out)} left out" if outcome.left_out else "",
        ]
        click.echo(f"{place}: {', '.join(filter(None, said))}")
    if outcome.left_out:
        sys.exit(1 if outcome.images + outcome.videos + counts["there"] else 2)


def parse_size(text: str) -> str | tuple[int, int]:
    """The value of --size."""
    if text in ("fit", "native", "eval"):
        return text
    match = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if not match or min(map(int, match.groups())) < 32:
        raise SdaError(f"--size {text}: expected fit, native, eval, or HEIGHTxWIDTH of at least 32, such as 512x1024")
    return int(match[1]), int(match[2])
