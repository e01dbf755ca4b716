"""datasets, init-dataset, doctor, split, pack."""

import json
import os
import shlex
import sys
from pathlib import Path

import click

from sda import shelf
from sda.cli import terminal as report
from sda.cli.options import json_option, show_file, title_of
from sda.errors import SdaError
from sda.system.progress import Bars


@click.command()
@click.argument("name", required=False)
@json_option
def datasets(name: str | None, as_json: bool) -> None:
    """List the datasets that sda can read, or print one's descriptor."""
    from sda.data import descriptor

    if name:
        show_file(descriptor.load(name).model_dump(), shelf.find("datasets", name), as_json)
        return
    loaded = {name: descriptor.load(name) for name in shelf.names("datasets")}
    if as_json:
        click.echo(json.dumps([{"name": name, **values.model_dump()} for name, values in loaded.items()], indent=2))
        return
    rows = [[name, values.title, str(len(values.table().names)), values.licence, values.home] for name, values in loaded.items()]
    report.show_table(["dataset", "title", "classes", "licence", "home page"], rows)


@click.command("init-dataset")
@click.argument("folder", metavar="DIR")
@click.option("--out", default="", metavar="FILE", help="Where the descriptor goes; - prints it.  [default: NAME.toml here]")
def init_dataset(folder: str, out: str) -> None:
    """Look at the images and labels in DIR and propose a descriptor, a TOML file to edit."""
    from sda.data.inspect.propose import propose

    place = Path(os.path.expanduser(folder))
    text, notes = propose(place)
    for note in notes:
        click.echo(note, err=True)
    if out == "-":
        click.echo(text, nl=False)
        return
    file = Path(os.path.expanduser(out or f"{place.resolve().name}.toml"))
    try:
        with file.open("x", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError:
        raise SdaError(f"{file}: exists; nothing is overwritten: name another with --out") from None
    except OSError as error:
        raise SdaError(f"{file}: cannot be written: {error.strerror}") from None
    click.echo(f"{file}: edit what is marked with ?, then: sda doctor {shlex.quote(str(file))} --root {shlex.quote(folder)}")


@click.command()
@click.argument("dataset")
@click.option("--root", default="", metavar="DIR", help="Folder of the dataset.")
@click.option("--split", "splits", multiple=True, help="Split to look at; repeat for several.  [default: train, val]")
@click.option("--out", default="", metavar="DIR", help="Where report and contact sheet go.  [default: runs/doctor-DATASET]")
@click.option("--processes", type=click.IntRange(1), help="Files read at a time.  [default: one per core]")
@json_option
def doctor(dataset: str, root: str, splits: tuple[str, ...], out: str, processes: int | None, as_json: bool) -> None:
    """Read a whole dataset and say what is wrong with it; training then leaves the bad pairs out.

    DATASET is a name or a descriptor's TOML. Nothing below --root is written. What was read is remembered, so the same
    again is quick, and an interrupted scan goes on. Exit status: 0 all is well, 1 something is wrong, 2 it could not be read.
    """
    from sda.data import descriptor as descriptors
    from sda.data.assemble import find_root
    from sda.data.inspect.doctor import examine
    from sda.data.inspect.doctor_files import write_report
    from sda.runs import folder as run_folder

    place = run_folder.named(out) if out else run_folder.free(Path("runs"), f"doctor-{title_of(dataset)}")
    with Bars() as bars, bars.saying_logs():
        described = descriptors.load(dataset)
        folder = find_root(described, root, "--root", bars.count)
        found, listings = examine(
            dataset,
            described,
            folder,
            splits or ("train", "val"),
            lambda done, total: bars.count("reading", done, total),
            processes,
        )
    write_report(place, found, described, listings)
    if as_json:
        click.echo(json.dumps({**found.to_dict(), "out": str(place)}, indent=2))
    else:
        report.show_examination(found)
        click.echo(f"Report: {place / 'report.json'}\nContact sheet: {place / 'contact.png'}")
    if found.bad or found.advice:
        sys.exit(1)


@click.command()
@click.argument("dataset")
@click.option("--root", default="", metavar="DIR", help="Folder of the dataset.")
@click.option("--labels", type=click.IntRange(1), help="How many training images to list.")
@click.option("--by", default="", help="random, balanced (rare classes early), or a word of the layout.  [default: random]")
@click.option("--seed", type=click.IntRange(0), help="Of the rule.  [default: 0]")
@click.option("--hold-out", type=float, metavar="SHARE", help="Instead, images to validate on; whole groups with --by.")
@click.option("--from", "given", default="", metavar="FILE", help="Instead, another's list, or pickled indices.")
@click.option(
    "--order", default="sorted", show_default=True, metavar="ORDER", help="What indices count: sorted, walk, or a list's path."
)
@click.option("--entry", default="", metavar="KEY", help="Of a pickled dict.")
@click.option("--unimatch", is_flag=True, help="Write image and label path per line, as UniMatch reads them.")
@click.option("--out", default="", metavar="FILE", help="The list.  [default: DATASET-COUNT.txt here]")
def split(
    dataset: str,
    root: str,
    labels: int | None,
    by: str,
    seed: int | None,
    hold_out: float | None,
    given: str,
    order: str,
    entry: str,
    unimatch: bool,
    out: str,
) -> None:
    """Write a list of training images, for --split or --val-list of a recipe: one relative path per line.

    The same on every machine, and nested: the list of 100 begins the list of 200.
    """
    from sda.data import descriptor as descriptors
    from sda.data.assemble import find_root
    from sda.data.splits.lists import write_list
    from sda.data.splits.make import SplitRequest, make_split

    described = descriptors.load(dataset)
    with Bars() as bars:
        folder = find_root(described, root, "--root", bars.count)
        wish = SplitRequest(labels, by, seed, hold_out, given, order, entry)
        items, rows, notes = make_split(described, folder, wish, lambda done, total: bars.count("counting classes", done, total))
        for note in notes:
            bars.say(note)
    file = Path(os.path.expanduser(out or f"{title_of(dataset)}-{len(items)}.txt"))
    write_list(file, items, labels=unimatch)
    if rows:
        cells = [[row.name, str(row.images), f"{100 * row.share:.2f}"] for row in rows]
        report.show_table(["class", "images", "% of pixels"], cells)
    click.echo(f"{file}: {len(items)} images")


@click.command()
@click.argument("dataset")
@click.option("--root", default="", metavar="DIR", help="Folder of the dataset.")
@click.option("--size", nargs=2, type=click.IntRange(32), required=True, metavar="HEIGHT WIDTH", help="As the recipe's size.")
@click.option(
    "--split", "splits", multiple=True, help="Split to pack; repeat for several.  [default: train, val, those that are there]"
)
@click.option("--out", default="", metavar="FILE.h5", help="The pack.  [default: DATASET.h5 here]")
@click.option(
    "--compression", type=click.Choice(["none", "lzf", "gzip"]), default="none", show_default=True, help="Of the images."
)
@click.option("--bad-files", type=click.Choice(["error", "skip"]), default="error", show_default=True, help="Stop, or leave out.")
@click.option("--processes", type=click.IntRange(1), help="Files read at a time.  [default: one per core]")
def pack(
    dataset: str,
    root: str,
    size: tuple[int, int],
    splits: tuple[str, ...],
    out: str,
    compression: str,
    bad_files: str,
    processes: int | None,
) -> None:
    """Put a dataset into one file at training resolution, which is read many times faster; it works wherever a root does.

    The same command again goes on where it stopped. A pack that is older than the files it was made from is refused.
    """
    from sda.data import descriptor as descriptors
    from sda.data.assemble import find_root
    from sda.data.listing import list_splits
    from sda.data.make_pack import write_pack

    file = Path(os.path.expanduser(out or f"{title_of(dataset)}.h5"))
    with Bars() as bars:
        described = descriptors.load(dataset)
        folder = find_root(described, root, "--root", bars.count)
        wanted = splits or list(list_splits(described, folder))
        faults = write_pack(
            file, dataset, described, folder, size, wanted, compression, processes, bars.count, bad_files == "skip"
        )
        for fault in faults:
            bars.say(f"left out: {fault}")
    click.echo(f"{file}: {', '.join(wanted)} of {dataset} at {size[0]}x{size[1]}; use it in the place of {folder}")
