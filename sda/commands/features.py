"""features, bank."""

import json
import os
from pathlib import Path

import click

from sda.commands.options import device_option, json_option
from sda.commands.results import checkpoint_option
from sda.errors import SdaError
from sda.progress import Bars


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    help="Dataset, TOML, or folder of images; repeat for several.  [default: the run's source and target]",
)
@click.option("--root", "roots", multiple=True, help="Folder of the dataset of the same position.")
@click.option("--split", default="train", show_default=True, help="Split of the datasets.")
@click.option(
    "--per-class", type=click.IntRange(0), default=32, show_default=True, help="Pixels kept of a class in an image; 0: all."
)
@click.option(
    "--network", type=click.Choice(["student", "teacher"]), help="Whose features.  [default: teacher, where there is one]"
)
@checkpoint_option
@click.option("--compression", type=click.Choice(["none", "lzf", "gzip"]), default="lzf", show_default=True)
@click.option("--bad-files", type=click.Choice(["error", "skip"]), default="error", show_default=True, help="Stop, or leave out.")
@click.option("--out", default="", metavar="FILE.h5", help="The cache.  [default: RUN/features.h5]")
@device_option
@json_option
def features(
    run: str,
    datasets: tuple[str, ...],
    roots: tuple[str, ...],
    split: str,
    per_class: int,
    network: str | None,
    checkpoint: str,
    compression: str,
    bad_files: str,
    out: str,
    device: str,
    as_json: bool,
) -> None:
    """Write what a trained network makes of the pixels of one or several domains into one HDF5 file.

    Features, projected features, labels, pseudo-labels, confidence: for sda bank, gap and select, and for your own scripts
    (docs/features.md). The same command again goes on where it stopped.
    """
    from sda import features as cache
    from sda import trained
    from sda.data.assemble import all_images
    from sda.devices import pick_device

    with Bars() as bars:
        where = pick_device(device)
        loaded = trained.load_run(Path(run), checkpoint, where, network or "student")
        if network is None and checkpoint == "last" and loaded.recipe.unlabelled:
            loaded = trained.load_run(Path(run), checkpoint, where, "teacher")
        recipe = loaded.recipe
        if not datasets:
            own = [(recipe.source, recipe.source_root), (recipe.target, recipe.target_root)]
            wanted = [(dataset, root) for dataset, root in own if dataset]
        else:
            if len(roots) > len(datasets):
                raise SdaError(f"{len(roots)} --root for {len(datasets)} --dataset: give one root per dataset, in the same order")
            wanted = [(dataset, roots[place] if place < len(roots) else "") for place, dataset in enumerate(datasets)]
            targets = {recipe.source: recipe.source_root, recipe.target: recipe.target_root}
            wanted = [(dataset, root or targets.get(dataset, "")) for dataset, root in wanted]
        domains = []
        for dataset, root in wanted:
            images, folder, notes = all_images(
                loaded.table_name, loaded.table, loaded.protocol().input, dataset, root, split, bars.count
            )
            for note in notes:
                bars.say(note)
            domains.append(cache.Domain(Path(dataset).stem, split, str(folder), images))
        file = Path(os.path.expanduser(out)) if out else loaded.folder / "features.h5"
        left_out = cache.write_features(file, loaded, domains, per_class, compression, bars.count, bad_files == "skip")
        for fault in left_out:
            bars.say(f"left out: {fault}")
    made = cache.FeatureCache(file)
    facts = {"file": str(file), "images": len(made), "pixels": made.pixels, "bytes": file.stat().st_size, "domains": made.domains}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        megabytes = facts["bytes"] / 1e6
        click.echo(f"{file}: {made.pixels} pixels of {len(made)} images of {' and '.join(made.domains)}, {megabytes:.0f} MB")


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--features", "file", default="", metavar="FILE.h5", help="Cache of the run's teacher: draws what is nearest to entries."
)
@click.option("--out", default="", metavar="FILE.png", help="That picture.  [default: RUN/bank.png]")
@click.option("--export", default="", metavar="FILE.h5", help="Write the bank: another training starts from it with --bank FILE.")
@json_option
def bank(run: str, file: str, out: str, export: str, as_json: bool) -> None:
    """What the memory bank of a trained run holds, class by class, and pictures of the pixels nearest to its entries."""
    from sda import bank_contents, bank_pictures, report, trained
    from sda.devices import pick_device
    from sda.features import FeatureCache

    folder = Path(run)
    contents = bank_contents.of_run(folder)
    rows = contents.rows()
    said = []
    if file:
        cache = FeatureCache(Path(file))
        cache.check_made_by(trained.load_run(folder, "last", pick_device("cpu"), "teacher"))
        place = Path(os.path.expanduser(out)) if out else folder / "bank.png"
        bank_pictures.picture(contents, cache, bank_pictures.neighbours(contents, cache)).save(place)
        said.append(f"Picture: {place}")
    if export:
        bank_contents.export(contents, Path(os.path.expanduser(export)), str(folder))
        said.append(f"Bank: {export}")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    report.show_bank(rows)
    for line in said:
        click.echo(line)
