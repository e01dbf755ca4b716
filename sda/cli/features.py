"""The commands features, bank, gap and select."""

import json
import os
import shlex
from pathlib import Path

import click

from sda.cli import terminal
from sda.cli.options import bad_files_option, checkpoint_option, device_option, json_option
from sda.errors import SdaError
from sda.system.progress import Bars
from sda.system.signals import Interrupted

STRATEGIES = ["k-medoids", "k-centre", "entropy", "bank", "random"]  # as in sda.analysis.select, which imports PyTorch


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    help="Dataset, TOML file, or folder of images; repeat for several.  [default: sources and target of the run]",
)
@click.option("--root", "roots", multiple=True, help="Folder of the dataset; repeat in the order of --dataset.")
@click.option("--split", default="train", show_default=True, help="Split of the datasets.")
@click.option(
    "--per-class", type=click.IntRange(0), default=32, show_default=True, help="Pixels to keep per class and image; 0: all."
)
@click.option(
    "--network", type=click.Choice(["student", "teacher"]), help="Network to use.  [default: the teacher if there is one]"
)
@checkpoint_option
@click.option(
    "--compression",
    type=click.Choice(["none", "lzf", "gzip"]),
    default="lzf",
    show_default=True,
    help="Compression; use gzip for readers other than h5py.",
)
@bad_files_option
@click.option("--out", default="", metavar="FILE.h5", help="Cache to write.  [default: RUN/features.h5]")
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
    """Cache the features of a trained network in an HDF5 file.

    The file has features, projected features, labels, pseudo-labels and confidences for pixels of one or several domains.
    `sda bank`, `sda gap` and `sda select` read it; docs/features.md describes the format. Run the same command again to
    resume.
    """
    from sda.analysis.cache import FeatureCache
    from sda.analysis.cache_inputs import load_network, open_domains
    from sda.analysis.make_cache import write_features
    from sda.system.devices import pick_device

    with Bars() as bars:
        loaded = load_network(Path(run), checkpoint, network, pick_device(device))
        domains = open_domains(loaded, datasets, roots, split, bars)
        file = Path(os.path.expanduser(out)) if out else loaded.folder / "features.h5"
        try:
            faults = write_features(file, loaded, domains, per_class, compression, bars.count, bad_files == "skip")
        except Interrupted as stop:
            raise Interrupted(stop.number, f"{stop}. {file} is incomplete; run the same command again to resume") from None
        for fault in faults:
            bars.say(f"skipped: {fault}")
    cache, size = FeatureCache(file), file.stat().st_size
    if as_json:
        facts = {"file": str(file), "images": len(cache), "pixels": cache.pixels, "bytes": size, "domains": cache.domains}
        click.echo(json.dumps(facts, indent=2))
    else:
        contents = f"{cache.pixels} pixels in {len(cache)} images of {' and '.join(cache.domains)}"
        terminal.say(f"{file}: {contents}, {size / 1e6:.0f} MB")


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--features",
    "file",
    default="",
    metavar="FILE.h5",
    help="Feature cache of the run's teacher; draws the pixels nearest to entries of the bank.",
)
@click.option("--out", default="", metavar="FILE.png", help="Picture to write.  [default: RUN/bank.png]")
@click.option(
    "--export", default="", metavar="FILE.h5", help="Write the bank to a file, from which `sda train RECIPE --bank FILE` starts."
)
@json_option
def bank(run: str, file: str, out: str, export: str, as_json: bool) -> None:
    """Show statistics of the memory bank of a run.

    With --features, also draws the pixels nearest to entries of the bank.
    """
    from sda.analysis.bank import of_run
    from sda.analysis.bank_pictures import write_picture
    from sda.analysis.cache import FeatureCache
    from sda.analysis.make_cache import check_made_by
    from sda.runs import trained
    from sda.system.devices import pick_device

    if out and not file:
        raise SdaError("--out names the picture, which needs --features FILE.h5, a cache of the run's teacher")
    folder = Path(run).parent if run.endswith("last.pt") else Path(run)
    contents = of_run(folder)
    written = []
    if file:
        cache = FeatureCache(Path(file))
        check_made_by(cache, trained.load(folder, "last", "teacher", pick_device("cpu")))
        picture = Path(os.path.expanduser(out)) if out else folder / "bank.png"
        write_picture(picture, contents, cache)
        written.append(f"Picture: {picture}")
    if export:
        contents.export(Path(os.path.expanduser(export)), str(folder))
        written.append(f"Bank: {export}")
    if as_json:
        click.echo(json.dumps(contents.rows(), indent=2))
        return
    terminal.show_bank(contents.rows())
    for line in written:
        terminal.say(line)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE.h5...")
@click.option(
    "--domains",
    default="",
    metavar="A,B",
    help="Domains to compare; A+B joins two.  [default: the two in the caches, sources joined]",
)
@click.option(
    "--space",
    type=click.Choice(["features", "projected"]),
    default="features",
    show_default=True,
    help="Features, or their projection into the space of the memory bank.",
)
@click.option("--per-class", type=click.IntRange(10), default=300, show_default=True, help="Pixels per class and domain.")
@click.option(
    "--projection",
    type=click.Choice(["pca", "tsne", "umap"]),
    default="pca",
    show_default=True,
    help="Projection to two dimensions for the picture.",
)
@click.option("--out", default="gap.png", show_default=True, metavar="FILE.png", help="Picture to write.")
@json_option
def gap(files: tuple[str, ...], domains: str, space: str, per_class: int, projection: str, out: str, as_json: bool) -> None:
    """Measure the distance between two domains in feature space.

    Prints the distances per class, and draws both domains in one plane. Several networks, for example before and after
    adaptation, are compared side by side:

    \b
    sda features runs/source-only --dataset gta5 --dataset cityscapes
    sda features runs/ssda
    sda gap runs/source-only/features.h5 runs/ssda/features.h5
    """
    from sda.analysis.gap import compare
    from sda.analysis.gap_picture import draw

    names = [name.strip() for name in domains.split(",")] if domains else []
    with Bars() as bars:
        found = compare([Path(file) for file in files], names, per_class, space, projection, bars.count)
    picture = Path(os.path.expanduser(out))
    draw(picture, found)
    if as_json:
        facts = {"domains": found.domains, "space": space, "networks": found.networks, "picture": str(picture)}
        click.echo(json.dumps(facts, indent=2))
        return
    terminal.show_gap(found.networks, found.domains)
    terminal.say(f"Picture: {picture}")


@click.command()
@click.argument("file", metavar="FILE.h5")
@click.option("--budget", type=click.IntRange(1), required=True, metavar="N", help="Number of images to choose.")
@click.option("--strategy", type=click.Choice(STRATEGIES), default="k-medoids", show_default=True, help="Strategy, see above.")
@click.option("--domain", default="", help="Domain of the images.  [default: the target of the run that made the cache]")
@click.option(
    "--labelled",
    default="",
    metavar="FILE",
    help="List of labelled images.  [default: those that the run was trained on]",
)
@click.option(
    "--bank", "bank_run", default="", metavar="RUN", help="Memory bank for strategy bank.  [default: the run that made the cache]"
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed for random, and for the sample of k-medoids.",
)
@click.option("--memory", type=click.IntRange(1), default=1024, show_default=True, metavar="MB", help="Memory for features.")
@click.option(
    "--out", default="", metavar="FILE.txt", help="List to write; the contact sheet is FILE.png.  [default: STRATEGY-N.txt]"
)
@click.option(
    "--export", default="", metavar="DIR", help="Copy the chosen images to a new folder, with predictions to correct as labels."
)
@click.option(
    "--form",
    type=click.Choice(["cvat", "labelme"]),
    help="Annotation program of the export.  [default: that of the target's labels]",
)
@device_option
def select(
    file: str,
    budget: int,
    strategy: str,
    domain: str,
    labelled: str,
    bank_run: str,
    seed: int,
    memory: int,
    out: str,
    export: str,
    form: str | None,
    device: str,
) -> None:
    """Choose images of the target to label next.

    Writes a list for --split of `sda train`, and a contact sheet. The strategies choose:

    \b
      k-medoids  one by one, the image that minimises the mean distance of
                 all images to the nearest labelled or chosen image
      k-centre   one by one, the image farthest from all labelled or chosen
                 images
      entropy    for each class in turn, rare classes first, the image whose
                 predictions of the class are most uncertain
      bank       like entropy, but by the distance of the pixels from the
                 entries of the class in the memory bank
      random     at random, as recipes choose their labelled images

    Labels in the cache are not used. Images with labels that the run was trained on come first in the list and are not chosen;
    images that the run was scored on are not chosen either.

    --export DIR copies the chosen images that have no label to DIR, with the predictions of the network that made the cache, for
    CVAT (masks: Segmentation mask 1.1) or labelme (polygons). docs/features.md describes the way from there to a training.
    """
    from sda.analysis.cache import FeatureCache
    from sda.analysis.prelabels import form_of
    from sda.analysis.select import MOST_CONTACTS, write_selection

    if form and not export:
        raise SdaError(f"--form {form} needs --export DIR, the folder to write")
    cache, folder, why = FeatureCache(Path(file)), Path(os.path.expanduser(export)) if export else None, ""
    if not form:
        form, why = form_of(Path(cache.about["run"])) if export else ("cvat", "")
    with Bars() as bars:
        selection = write_selection(
            Path(os.path.expanduser(out or f"{strategy}-{budget}.txt")),
            cache,
            budget,
            strategy,
            domain,
            Path(labelled) if labelled else None,
            Path(bank_run) if bank_run else None,
            seed,
            memory,
            folder,
            form,
            device,
            bars.count,
        )
    count = len(selection.labelled)
    terminal.say(f"{selection.file}: {budget} images to label" + (f", after the {count} that have labels" if count else ""))
    if selection.sheet is None:
        terminal.say(f"No contact sheet: {selection.missing} does not exist", err=True)
    else:
        shown = f", first {MOST_CONTACTS} images" if budget > MOST_CONTACTS else ""
        terminal.say(f"Contact sheet: {selection.sheet}{shown}")
    if folder is None:
        return
    if len(selection.exported) < budget:
        terminal.say(f"{budget - len(selection.exported)} of the {budget} images have labels already and are not exported")
    if not selection.exported:
        return
    terminal.say(
        f"{folder}: {len(selection.exported)} images with predictions as labels, for {form}" + f", because {why}" * bool(why)
    )
    for step in _next_steps(folder, form, selection.file, cache.about["run"]):
        terminal.say(step)


def _next_steps(folder: Path, form: str, chosen: Path, run: str) -> list[str]:
    """Return what to do with an export: correct its labels, and train with them."""
    from sda.analysis.prelabels import names_of_labels

    place, zipped = shlex.quote(str(folder)), "prelabels.zip labelmap.txt ImageSets SegmentationClass"
    correct = {
        "labelme": [f"Correct them: labelme {place}/images --labels {place}/labels.txt --nodata --autosave"],
        "cvat": [
            f"Pack the labels: (cd {place} && python3 -m zipfile -c {zipped})",
            f"In CVAT: create a task with the labels in {place}/labels.json and the images in {place}/JPEGImages, and upload "
            "prelabels.zip as annotations (Segmentation mask 1.1)",
        ],
    }[form]
    names = names_of_labels(Path(run))
    named = f", named alike: {names}" if names else ""
    train = shlex.join(["sda", "train", str(Path(run) / "recipe.toml"), "--split", str(chosen)])
    return [*correct, f"Put the corrected labels where the target's labels are{named}, then run: {train}"]
