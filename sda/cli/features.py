"""features, bank, gap, select."""

import itertools
import json
import os
from pathlib import Path

import click

from sda.cli.options import checkpoint_option, device_option, json_option
from sda.errors import SdaError
from sda.system.progress import Bars

MOST_CONTACTS = 100  # pictures on a contact sheet
STRATEGIES = ["k-medoids", "k-centre", "entropy", "bank", "random"]  # sda.analysis.select, without the time that its import takes


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
    from sda.analysis.cache import FeatureCache
    from sda.analysis.make_cache import distinct, open_domain, write_features
    from sda.runs import trained
    from sda.system.devices import pick_device

    with Bars() as bars:
        where = pick_device(device)
        loaded = trained.load_run(Path(run), checkpoint, where, network or "student")
        if network is None and checkpoint == "last" and loaded.recipe.unlabelled and (loaded.folder / "last.pt").exists():
            loaded = trained.load_run(Path(run), checkpoint, where, "teacher")
        if len(roots) > len(datasets):
            raise SdaError(f"{len(roots)} --root for {len(datasets)} --dataset: give one root per dataset, in the same order")
        recipe, domains = loaded.recipe, []
        own = [(recipe.source, recipe.source_root), (recipe.target, recipe.target_root)]
        given = itertools.zip_longest(datasets, roots, fillvalue="")
        for dataset, root in given if datasets else [pair for pair in own if pair[0]]:
            domain, notes = open_domain(loaded, dataset, root, split, bars.count)
            for note in notes:
                bars.say(note)
            domains.append(domain)
        file = Path(os.path.expanduser(out)) if out else loaded.folder / "features.h5"
        try:
            left_out = write_features(file, loaded, distinct(domains), per_class, compression, bars.count, bad_files == "skip")
        except KeyboardInterrupt:
            bars.say(f"{file}: not complete; the same command goes on where it stopped")
            raise
        for fault in left_out:
            bars.say(f"left out: {fault}")
    made = FeatureCache(file)
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
    from sda.analysis import bank as bank_contents
    from sda.analysis import bank_pictures
    from sda.analysis.cache import FeatureCache
    from sda.analysis.make_cache import check_made_by
    from sda.cli import terminal as report
    from sda.pictures import writing
    from sda.runs import trained
    from sda.system.devices import pick_device

    if out and not file:
        raise SdaError("--out is the place of the picture, which takes --features FILE.h5, a cache of the run's teacher")
    folder = Path(run).parent if run.endswith("last.pt") else Path(run)
    contents = bank_contents.of_run(folder)
    rows = contents.rows()
    said = []
    if file:
        cache = FeatureCache(Path(file))
        check_made_by(cache, trained.load_run(folder, "last", pick_device("cpu"), "teacher"))
        place = Path(os.path.expanduser(out)) if out else folder / "bank.png"
        picture = bank_pictures.picture(contents, cache, bank_pictures.neighbours(contents, cache))
        with writing(place):
            picture.save(place)
        said.append(f"Picture: {place}")
    if export:
        contents.export(Path(os.path.expanduser(export)), str(folder))
        said.append(f"Bank: {export}")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    report.show_bank(rows)
    for line in said:
        click.echo(line)


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE.h5...")
@click.option("--domains", default="", metavar="A,B", help="Which two.  [default: those in the caches, if they are two]")
@click.option("--space", type=click.Choice(["features", "projected"]), default="features", show_default=True)
@click.option("--per-class", type=click.IntRange(10), default=300, show_default=True, help="Pixels of a class and domain.")
@click.option(
    "--projection", type=click.Choice(["pca", "tsne", "umap"]), default="pca", show_default=True, help="Of the picture."
)
@click.option("--out", default="gap.png", show_default=True, metavar="FILE.png", help="The picture.")
@json_option
def gap(files: tuple[str, ...], domains: str, space: str, per_class: int, projection: str, out: str, as_json: bool) -> None:
    """How far apart two domains are in a network's features, class by class, and a picture of both.

    Caches of several networks, such as before and after adaptation, stand side by side:

    \b
    sda features runs/source-only --dataset gta5 --dataset cityscapes
    sda features runs/ssda
    sda gap runs/source-only/features.h5 runs/ssda/features.h5
    """
    from sda.analysis import gap as gaps
    from sda.analysis import gap_picture
    from sda.analysis.cache import FeatureCache
    from sda.cli import terminal as report
    from sda.pictures import writing
    from sda.runs.compare import title_of

    networks: dict[str, list[FeatureCache]] = {}
    for file in {os.path.realpath(file): file for file in files}.values():
        cache = FeatureCache(Path(file))
        networks.setdefault(cache.settings["network"], []).append(cache)
    first = next(iter(networks.values()))[0]
    both = [word.strip() for word in domains.split(",")] if domains else []
    found, planes = {}, {}
    with Bars() as bars:
        for place, caches in enumerate(networks.values()):
            title = title_of(Path(caches[0].about["run"]))
            title = f"{title} ({place + 1})" if title in found else title
            if list(caches[0].classes) != list(first.classes):
                raise SdaError(f"{caches[0].path} and {first.path}: caches in other classes do not stand side by side")
            there = list(dict.fromkeys(domain for cache in caches for domain in cache.domains))
            both = both or there
            if len(set(both)) != 2:
                more = "name two with --domains A,B" if len(there) > 1 else "give another cache too, of the other domain"
                raise SdaError(f"{caches[0].path}: two domains are compared, not {', '.join(both)}: {more}")
            _check_same_images(networks[first.settings["network"]], caches, both)
            bars.count("networks", place, len(networks))
            pixels = [gaps.read(caches, domain, per_class, space) for domain in both]
            found[title] = gaps.measure(*pixels, list(caches[0].classes))
            few = [gaps.read(caches, domain, min(per_class, 80), space) for domain in both]
            planes[title] = list(zip(gaps.project(few, projection), few, strict=True))
        bars.count("networks", len(networks), len(networks))
    file = Path(os.path.expanduser(out))
    with writing(file):
        gap_picture.draw(file, planes, both, first.classes)
    if as_json:
        click.echo(json.dumps({"domains": both, "space": space, "networks": found, "picture": str(file)}, indent=2))
        return
    report.show_gap(found, both)
    click.echo(f"Picture: {file}")


def _check_same_images(one: list, other: list, domains: list[str]) -> None:
    """SdaError when the caches of two networks hold other images of some domains, or otherwise many of their pixels."""

    def held(caches: list) -> tuple:
        paths = [{cache.paths[i] for cache in caches if name in cache.domains for i in cache.images_of(name)} for name in domains]
        return sorted({cache.settings["per_class"] for cache in caches}), paths

    if held(one) != held(other):
        raise SdaError(
            f"{one[0].path} and {other[0].path}: caches of other images, or with another --per-class, do not stand side by side"
        )


@click.command()
@click.argument("file", metavar="FILE.h5")
@click.option("--budget", type=click.IntRange(1), required=True, metavar="N", help="How many images.")
@click.option("--strategy", type=click.Choice(STRATEGIES), default="k-medoids", show_default=True)
@click.option("--domain", default="", help="Whose images.  [default: the target of the run that made the cache]")
@click.option("--labelled", default="", metavar="FILE", help="List of images that have labels.  [default: those of the run]")
@click.option("--bank", "bank_run", default="", metavar="RUN", help="Of strategy bank.  [default: the run that made the cache]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random, and of the sample of k-medoids.")
@click.option("--memory", type=click.IntRange(1), default=1024, show_default=True, metavar="MB", help="For features at a time.")
@click.option("--out", default="", metavar="FILE.txt", help="The list, with FILE.png beside it.  [default: STRATEGY-N.txt here]")
def select(
    file: str, budget: int, strategy: str, domain: str, labelled: str, bank_run: str, seed: int, memory: int, out: str
) -> None:
    """Which images of the target to label next: a list for --split of a recipe, and a contact sheet.

    \b
      k-medoids  image after image the one that brings all nearest, on average, to one that is labelled or chosen
      k-centre   image after image the one that is farthest from all that are labelled or chosen
      entropy    by turns over the classes, rare ones first, the image that is most uncertain of this class
      bank       the same, by how far its pixels are from what the memory bank holds of this class
      random     the recipes' own rule

    Labels are not looked at. Images that the run was trained on with labels are not proposed, and come first in the list; nor are
    those that it was scored on.
    """
    from sda.analysis import bank as bank_contents
    from sda.analysis import select as selection
    from sda.analysis.cache import FeatureCache
    from sda.analysis.make_cache import check_made_by
    from sda.data.files import read_image
    from sda.data.splits.lists import read_keys, write_list
    from sda.pictures import contact_sheet, writing
    from sda.runs import trained
    from sda.system.devices import pick_device

    place = Path(os.path.expanduser(out or f"{strategy}-{budget}.txt"))
    sheet = place.with_suffix(".png") if place.suffix == ".txt" else place.with_name(f"{place.name}.png")
    if sheet.exists():
        raise SdaError(f"{sheet}: exists; nothing is overwritten: name another --out")
    cache = FeatureCache(Path(file))
    wanted = domain or cache.about["target"]
    images = cache.items(wanted)
    known = cache.labelled if wanted == cache.about["target"] else []
    if labelled:
        known = read_keys(Path(labelled), images, f"images of {wanted}")
    bank = None
    if strategy == "bank":
        folder = Path(bank_run or cache.about["run"])
        bank = bank_contents.of_run(folder)
        check_made_by(cache, trained.load_run(folder, "last", pick_device("cpu"), "teacher"))
    chosen = selection.select(cache, wanted, budget, strategy, known, seed, bank, memory)
    write_list(place, [*known, *chosen])
    click.echo(f"{place}: {budget} images to label" + (f", after the {len(known)} that have labels" if known else ""))
    files = {item.key: item.image for item in images}
    gone = [str(files[key]) for key in chosen[:MOST_CONTACTS] if not files[key].exists()]
    if gone:
        click.echo(f"No contact sheet: {gone[0]} is not there any more", err=True)
        return
    pictures = [read_image(files[key]) for key in chosen[:MOST_CONTACTS]]
    titles = [f"{number}  {Path(key).stem}" for number, key in enumerate(chosen[:MOST_CONTACTS], start=1)]
    contacts = contact_sheet(pictures, titles)
    with writing(sheet):
        contacts.save(sheet)
    click.echo(f"Contact sheet: {sheet}" + (f", of the first {MOST_CONTACTS}" if len(chosen) > MOST_CONTACTS else ""))
