"""export."""

import json
from pathlib import Path

import click

from sda.cli import terminal as report
from sda.cli.options import checkpoint_option, json_option, network_option
from sda.system.progress import Bars

FORMATS = ("onnx", "torchscript", "torch-export", "safetensors")


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--as",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    default=("onnx", "safetensors"),
    show_default=True,
    help="Repeat for several.",
)
@click.option("--out", default="", metavar="DIR", help="Folder to write to.  [default: RUN/export]")
@network_option
@checkpoint_option
@click.option("--overwrite", is_flag=True, help="Replace files of the same names.")
@json_option
def export(run: str, formats: tuple[str, ...], out: str, network: str, checkpoint: str, overwrite: bool, as_json: bool) -> None:
    """Write a trained network for use elsewhere: files that take pictures of any size, preprocessing inside; weights with a card.

    A file that computes is read back and compared with the network, on pictures of several odd sizes, before it is written.
    """
    import torch

    from sda.export import build as exports
    from sda.runs import trained

    formats = tuple(dict.fromkeys(formats))
    exports.check_installed(formats)
    with Bars() as bars:
        loaded = trained.load_run(Path(run), checkpoint, torch.device("cpu"), network)
        folder = Path(out).expanduser() if out else loaded.folder / "export"
        if not overwrite:
            exports.check_free(folder, formats)
        written = exports.export(loaded, formats, folder, bars)
    if as_json:
        click.echo(json.dumps(written, indent=2))
        return
    rows = [[entry["file"], f"{entry['bytes'] / 1e6:.3g} MB", *_shown(entry["check"])] for entry in written["files"]]
    report.show_table(["file", "size", "checked on", "equal labels", "confidence off by"], rows)


def _shown(check: dict | None) -> list[str]:
    if check is None:
        return ["", "", ""]
    return [", ".join(check["pictures"]), f"{100 * check['equal']:.4f} %", f"{check['confidence']:.1g}"]
