"""The command export."""

import json
import re
from pathlib import Path

import click

from sda.cli import terminal
from sda.cli.options import checkpoint_option, json_option, network_option
from sda.errors import SdaError
from sda.system.progress import Bars

FORMATS = ("onnx", "torchscript", "torch-export", "safetensors", "hub")


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--as",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    default=("onnx", "safetensors"),
    show_default=True,
    help="Format; repeat for several.",
)
@click.option("--out", default="", metavar="DIR", help="Output folder.  [default: RUN/export]")
@network_option
@checkpoint_option
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@click.option(
    "--push",
    default="",
    metavar="OWNER/NAME",
    help="Upload the files of --as hub to a private repository of the Hugging Face hub.",
)
@json_option
def export(
    run: str,
    formats: tuple[str, ...],
    out: str,
    network: str,
    checkpoint: str,
    overwrite: bool,
    push: str,
    as_json: bool,
) -> None:
    """Export a trained network.

    onnx, torchscript and torch-export are models that include the preprocessing and take images of any size. Each is
    compared with the network on test images before it is written. safetensors writes the weights and a model card, and hub
    also a config.json: a repository of the Hugging Face hub, which --push uploads.
    """
    from sda.export import build
    from sda.export import push as hub
    from sda.runs import trained
    from sda.system.devices import pick_device
    from sda.system.owned import owned

    formats = tuple(dict.fromkeys(formats))
    if push and "hub" not in formats:
        raise SdaError("--push uploads the files of --as hub: add --as hub")
    if push and not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
        raise SdaError(f"--push {push}: expected OWNER/NAME")
    build.check_installed(formats)
    with Bars() as bars:
        loaded = trained.load(Path(run), checkpoint, network, pick_device("cpu"))
        folder = Path(out).expanduser() if out else loaded.folder / "export"
        with owned(folder):
            if not overwrite:
                build.check_free(folder, formats)
            written = build.export(loaded, formats, folder, bars)
        address = hub.push(folder, [Path(entry["file"]).name for entry in written["files"]], push) if push else ""
    if as_json:
        click.echo(json.dumps({**written, **({"address": address} if push else {})}, indent=2))
        return
    rows = [[entry["file"], f"{entry['bytes'] / 1e6:.3g} MB", *_shown(entry["check"])] for entry in written["files"]]
    terminal.show_table(["file", "size", "test images", "equal labels", "largest difference in confidence"], rows)
    if address:
        terminal.say(f"Uploaded to {address}: sda predict hf://{push} PHOTOS")


def _shown(check: dict | None) -> list[str]:
    if check is None:
        return ["", "", ""]
    return [", ".join(check["pictures"]), f"{100 * check['equal']:.4f} %", f"{check['confidence']:.1g}"]
