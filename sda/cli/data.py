"""The commands datasets, init-dataset, doctor, split and pack."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Literal

import click

from sda import shelf
from sda.cli import terminal
from sda.cli.options import Size, SizeCommand, bad_files_option, json_option, short_name, show_file
from sda.errors import SdaError
from sda.system.atomic import written_whole
from sda.system.progress import Bars


@click.command()
@click.argument("name", required=False)
@json_option
def datasets(name: str | None, as_json: bool) -> None:
    """List the known datasets, or print the descriptor of one."""
    from sda.data import descriptor

    if name:
        show_file(descriptor.load(name).model_dump(), shelf.find("datasets", name), as_json)
        return
    loaded = {name: descriptor.load(name) for name in shelf.names("datasets")}
    if as_json:
        click.echo(json.dumps([{"name": name, **values.model_dump()} for name, values in loaded.items()], indent=2))
        return
    rows = [[name, values.title, str(len(values.table().names)), values.licence, values.home] for name, values in loaded.items()]
    terminal.show_table(["dataset", "title", "classes", "licence", "home page"], rows)


@click.command("init")
@click.argument("folder", metavar="DIR")
@click.option(
    "--source", default="", metavar="NAME|DIR|TOML", help="Labelled source: a dataset of sda, a folder, or a descriptor."
)
@click.option("--root", default="", metavar="DIR", help="Folder of a source that is given by name or descriptor.")
@click.option("--out", default="", metavar="DIR", help="Folder to write.  [default: NAME-sda, NAME being that of DIR]")
def init(folder: str, source: str, root: str, out: str) -> None:
    """Start with your own photos: write a descriptor and a recipe.

    DIR has photos, a few of them with labels in any customary form. It is not changed. The new folder has a descriptor of the
    photos and a recipe that trains on them; edit both as you like, then run the command that is printed.
    """
    from sda.experiments.start import start

    place = Path(os.path.expanduser(folder))
    started = start(place, source, root, Path(os.path.expanduser(out or f"{place.resolve().name}-sda")))
    for note in started.notes:
        terminal.say(note, err=True)
    look = "look at the lines with ? in its descriptor, then run:" if started.guesses else "next, run:"
    terminal.say(f"{started.recipe.parent} is written; {look}", *started.steps)
    if started.problem:
        terminal.say(f"before that: {started.problem}", err=True)
        sys.exit(1)


@click.command("init-dataset")
@click.argument("folder", metavar="DIR")
@click.option("--out", default="", metavar="FILE", help="Descriptor to write; - prints it.  [default: NAME.toml]")
def init_dataset(folder: str, out: str) -> None:
    """Write a draft dataset descriptor for the files in DIR.

    The descriptor is a TOML file for you to edit. The exit status is 1 if there are files that may be labels but are not
    understood.
    """
    from sda.data.inspect.propose import propose

    place = Path(os.path.expanduser(folder))
    text, notes, unread = propose(place)
    if unread:
        terminal.say(*unread, f"{place}: no labels were understood, so no descriptor is written", err=True)
        sys.exit(1)
    for note in notes:
        terminal.say(note, err=True)
    if out == "-":
        click.echo(text, nl=False)
        return
    file = Path(os.path.expanduser(out or f"{place.resolve().name}.toml"))
    if os.path.lexists(file):
        raise SdaError(f"{file}: this file exists and is not overwritten; choose another --out")
    try:
        with written_whole(file) as written:
            written.write(text.encode())
    except OSError as error:
        raise SdaError(f"{file}: cannot write this file: {error.strerror}") from None
    terminal.say(
        f"{file}: edit the lines marked with ?, then run: sda doctor {shlex.quote(str(file))} --root {shlex.quote(folder)}"
    )


@click.command()
@click.argument("dataset")
@click.option("--root", default="", metavar="DIR", help="Folder of the dataset.")
@click.option("--split", "splits", multiple=True, help="Split to check; repeat for several.  [default: train, val]")
@click.option("--out", default="", metavar="DIR", help="Folder for the report and contact sheet.  [default: runs/doctor-DATASET]")
@click.option("--processes", type=click.IntRange(1, 512), help="Number of processes that read files.  [default: one per core]")
@json_option
def doctor(dataset: str, root: str, splits: tuple[str, ...], out: str, processes: int | None, as_json: bool) -> None:
    """Check all files of a dataset and report problems.

    Training then skips the bad pairs of image and label. DATASET is the name of a dataset or the path of a descriptor. The
    dataset's folder is not changed. Results are cached, so run the same command again to resume an interrupted
    check. The exit status is 0 if there are no problems, 1 if there are some, and 2 if the check failed.
    """
    from sda.data import descriptor
    from sda.data.assemble import find_root
    from sda.data.inspect.doctor import examine
    from sda.data.inspect.doctor_files import write_report
    from sda.runs.folder import first_free, require_empty
    from sda.system.owned import owned

    place = Path(os.path.expanduser(out)) if out else first_free(Path("runs"), f"doctor-{short_name(dataset)}")
    with Bars() as bars, bars.saying_logs(), owned(place):
        require_empty(place)
        described = descriptor.load(dataset)
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
        terminal.show_examination(found)
        terminal.say(f"Report: {place / 'report.json'}", f"Contact sheet: {place / 'contact.png'}")
    if found.bad or found.advice:
        sys.exit(1)


@click.command()
@click.argument("dataset")
@click.option("--root", default="", metavar="DIR", help="Folder of the dataset.")
@click.option("--labels", type=click.IntRange(1), help="Number of training images to list.")
@click.option(
    "--by",
    default="",
    help="Order: random, balanced (rare classes first), or a {word} of the layout, such as city.  [default: random]",
)
@click.option("--seed", type=click.IntRange(0), help="Random seed.  [default: 0]")
@click.option(
    "--hold-out",
    type=float,
    metavar="SHARE",
    help="List this share of the images instead, for validation; with --by, whole groups.",
)
@click.option("--from", "given", default="", metavar="FILE", help="Convert this list instead: paths, names or pickled indices.")
@click.option(
    "--order",
    default="sorted",
    show_default=True,
    metavar="ORDER",
    help="Order that indices refer to: sorted, walk, or the path of a list.",
)
@click.option("--entry", default="", metavar="KEY", help="Key to read if FILE is a pickled dict.")
@click.option(
    "--exclude",
    multiple=True,
    metavar="FILE",
    help="List of images to leave out, such as a list for --val-list; repeat for several.",
)
@click.option("--unimatch", is_flag=True, help="Write an image path and a label path on each line, as UniMatch does.")
@click.option("--out", default="", metavar="FILE", help="List to write.  [default: DATASET-COUNT.txt]")
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
    exclude: tuple[str, ...],
    unimatch: bool,
    out: str,
) -> None:
    """Write a list of training images.

    Pass the list to --split or --val-list of `sda train`. It has one relative path per line. Lists are the same on every
    machine, and nested: a list of 200 images starts with the list of 100. To draw images to label beside a list to validate
    on, exclude that list.
    """
    from sda.data import descriptor
    from sda.data.assemble import find_root
    from sda.data.splits.lists import write_list
    from sda.data.splits.make import SplitRequest, make_split

    described = descriptor.load(dataset)
    with Bars() as bars:
        folder = find_root(described, root, "--root", bars.count)
        request = SplitRequest(labels, by, seed, hold_out, given, order, entry, exclude)
        items, rows, notes = make_split(
            described, folder, request, lambda done, total: bars.count("counting classes", done, total)
        )
        for note in notes:
            bars.say(note)
    file = Path(os.path.expanduser(out or f"{short_name(dataset)}-{len(items)}.txt"))
    write_list(file, items, labels=unimatch)
    if rows:
        cells = [[row.name, str(row.images), f"{100 * row.share:.2f}"] for row in rows]
        terminal.show_table(["class", "images", "% of pixels"], cells)
    terminal.say(f"{file}: {len(items)} images")
    if hold_out is not None:
        name = shlex.quote(str(file))
        terminal.say(f"Train with --val-list {name}. If you make a list for --split, too, add --exclude {name} to its sda split")


@click.command(cls=SizeCommand)
@click.argument("dataset")
@click.option("--root", default="", metavar="DIR", help="Folder of the dataset.")
@click.option(
    "--size", type=Size(), required=True, metavar="HEIGHTxWIDTH", help="Size of the packed images; use the recipe's size."
)
@click.option(
    "--fit",
    type=click.Choice(["stretch", "inside"]),
    default="stretch",
    show_default=True,
    help="How images are resized to the size; use the recipe's fit.",
)
@click.option(
    "--split", "splits", multiple=True, help="Split to pack; repeat for several.  [default: train and val, if they exist]"
)
@click.option("--out", default="", metavar="FILE.h5", help="File to write.  [default: DATASET.h5]")
@click.option(
    "--compression", type=click.Choice(["none", "lzf", "gzip"]), default="none", show_default=True, help="Compression of images."
)
@bad_files_option
@click.option("--processes", type=click.IntRange(1, 512), help="Number of processes that read files.  [default: one per core]")
def pack(
    dataset: str,
    root: str,
    size: tuple[int, int],
    fit: Literal["stretch", "inside"],
    splits: tuple[str, ...],
    out: str,
    compression: str,
    bad_files: str,
    processes: int | None,
) -> None:
    """Pack a dataset into one file that loads many times faster.

    The file contains the images at training resolution. You can use the file wherever a command or recipe takes the folder of the
    dataset. Run the same command again to resume an interrupted pack. Using a pack whose source files have changed is an
    error.
    """
    from sda.data import descriptor
    from sda.data.assemble import find_root
    from sda.data.listing import list_splits
    from sda.data.packs.make import write_pack

    file = Path(os.path.expanduser(out or f"{short_name(dataset)}.h5"))
    with Bars() as bars:
        described = descriptor.load(dataset)
        folder = find_root(described, root, "--root", bars.count)
        listings = list_splits(described, folder, splits or ("train", "val"))
        for note in dict.fromkeys(note for listing in listings.values() for note in listing.notes):
            bars.say(note)
        wanted = splits or list(listings)
        faults = write_pack(
            file, dataset, described, folder, size, wanted, compression, processes, bars.count, bad_files == "skip", fit
        )
        for fault in faults:
            bars.say(f"skipped: {fault}")
    terminal.say(f"{file}: {', '.join(wanted)} of {dataset} at {size[0]}x{size[1]}; use it instead of {folder}")
