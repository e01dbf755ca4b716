"""argv → functions, nothing else. PyTorch is imported only by the commands that need it."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch

from sda import __version__, recipe, report, shelf
from sda.errors import SdaError
from sda.interrupt import Interrupted
from sda.progress import Bars

DEVICES = ["auto", "cpu", "cuda", "mps"]
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
device_option = click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to compute.")


def main() -> None:
    """The entry point: user errors become one line and exit status 2."""
    # Threads that spin while they wait starve the loader processes on small machines.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        cli()
    except Interrupted as stop:
        click.echo(f"{stop}; to go on: the same command with --resume auto", err=True)
        sys.exit(128 + stop.number)
    except SdaError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Semi-supervised domain adaptation of semantic segmentation."""


class Recipes(click.Group):
    """One command per recipe on the shelf, and for any path that ends in .toml."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return shelf.names("recipes")

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        return train_command(name)


@cli.group(cls=Recipes, subcommand_metavar="RECIPE [OPTIONS]")
def train() -> None:
    """Train a recipe: a name (see `sda recipes`) or the path of a TOML file."""


def train_command(name: str) -> click.Command:
    """The command of one recipe: an option for each of its fields, and its values as their defaults."""
    values = recipe.load(name)
    title = title_of(name)
    options = [
        click.Option(["--out"], default="", metavar="DIR", help=f"Run folder.  [default: runs/{title}]"),
        click.Option(["--device"], type=click.Choice(DEVICES), default="auto", show_default=True, help="Where to compute."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON instead of a table."),
        click.Option(
            ["--resume", "resume_from"],
            default="",
            metavar="auto|FILE",
            help="Go on with an interrupted run: from the newest good checkpoint in its folder, if there is one, or from FILE.",
        ),
        click.Option(["--stop-at"], type=click.IntRange(1), metavar="STEP", help="End here, as an interruption would."),
        click.Option(
            ["--set", "changes"], multiple=True, metavar="KEY=VALUE", help="Any field below, by its name in the recipe."
        ),
    ]
    for key, field in recipe.Recipe.model_fields.items():
        shown = json.dumps(getattr(values, key))
        help_text = f"{field.description}  [{shown}]"
        options.append(click.Option([f"--{key.replace('_', '-')}", key], metavar="VALUE", help=help_text))
    help_text = f"{values.setting}: {values.description or title}"
    if values.expected:
        help_text += f"\n\nExpected: {values.expected}"
    path = shelf.find("recipes", name)
    for field, value, changes in recipe.variants(shelf.parse(path), path):
        also = ", ".join(f"{key} = {json.dumps(changed)}" for key, changed in changes.items())
        help_text += f"\n\n--{field.replace('_', '-')} {value} also changes {also}"
    return click.Command(
        title, callback=lambda **given: _train(name, given), params=options, help=help_text, short_help=values.description
    )


def title_of(name: str) -> str:
    """The name of a recipe; that of its run for the recipe.toml in a run folder."""
    path = Path(name)
    return path.absolute().parent.name if path.name == "recipe.toml" else path.stem


def _train(name: str, given: dict) -> None:
    out, device, pairs, as_json = (given.pop(key) for key in ("out", "device", "changes", "as_json"))
    resume_from, stop_at = given.pop("resume_from"), given.pop("stop_at")
    changes = {key: recipe.parse_value(key, text) for key, text in given.items() if text is not None}
    changes.update(recipe.parse_pair(pair, "--set") for pair in pairs)
    wanted = recipe.load(name, changes).with_absolute_paths()

    from sda import distributed, experiment

    with distributed.joined(experiment.pick_device(device)) as where:
        _train_here(name, wanted, out, resume_from, stop_at, where, as_json)


def _train_here(
    name: str, wanted: recipe.Recipe, out: str, resume_from: str, stop_at: int | None, device: "torch.device", as_json: bool
) -> None:
    """Train in this process, which may be one of several."""
    from sda import distributed, experiment, resume, run_folder

    title, resumed, leads = title_of(name), None, distributed.rank() == 0
    if resume_from:
        folder = resume.folder(resume_from, out, name, title)
        if (folder / "result.json").exists():
            if resume_from != "auto":
                raise SdaError(f"{folder}: this run came to its end; there is nothing to go on with")
            if leads:
                click.echo(f"{folder}: this run has come to its end")
            return
        resumed = resume.find(resume_from, folder)
        if not (resumed.lies_in(folder) if resumed else (folder / "recipe.toml").exists()):
            run_folder.named(str(folder))
    else:
        folder = run_folder.named(out) if out else run_folder.free(Path("runs"), title)
    with Bars(quiet=not leads) as bars:
        bars.say(f"{title}: {wanted.setting}, {wanted.steps} steps, seed {wanted.seed}, into {folder}")
        result = experiment.run(wanted, title, folder, device, bars, resumed, stop_at)
    if not leads:
        return
    if result is None:
        click.echo(f"Stopped at step {stop_at} of {wanted.steps}. To go on: the same command with --resume auto --out {folder}")
        return
    if as_json:
        click.echo(json.dumps({"run": str(folder), **result}, indent=2))
        return
    report.show_scores({title: result})
    click.echo(f"Run folder: {folder}")


@cli.command("eval")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--dataset", "datasets", multiple=True, help="Dataset or TOML; repeat for several.  [default: the run's target]")
@click.option("--root", "roots", multiple=True, help="Folder of the dataset of the same position.")
@click.option("--split", default="val", show_default=True, help="Split to score.")
@click.option("--checkpoint", type=click.Choice(["last", "best"]), default="last", show_default=True)
@click.option(
    "--bad-files", type=click.Choice(["error", "skip"]), default="error", show_default=True, help="Stop, or report and go on."
)
@device_option
@json_option
def evaluate(
    runs: tuple[str, ...],
    datasets: tuple[str, ...],
    roots: tuple[str, ...],
    split: str,
    checkpoint: str,
    bad_files: str,
    device: str,
    as_json: bool,
) -> None:
    """Per-class IoU of trained runs on one or several target domains."""
    if len(roots) > max(len(datasets), 1):
        raise SdaError(f"{len(roots)} --root for {max(len(datasets), 1)} --dataset: give one root per dataset, in the same order")

    from sda import experiment
    from sda.evaluate import protocol

    where, scores = experiment.pick_device(device), {}
    with Bars() as bars:
        loaded = {folder: experiment.load_run(Path(folder), checkpoint, where) for folder in runs}
        protocols = {protocol(run.recipe.input_size)["name"] for run in loaded.values()}
        tables = {tuple(run.table.names) for run in loaded.values()}
        if len(protocols) > 1 or len(tables) > 1:
            raise SdaError(
                f"these runs cannot stand in one table: their scores have different "
                f"{'protocols: ' + ', '.join(sorted(protocols)) if len(protocols) > 1 else 'classes'}; "
                "evaluate them one by one"
            )
        for folder, run in loaded.items():
            target = run.recipe.target
            for place, dataset in enumerate(datasets or (target,)):
                own = dataset == target or (dataset.endswith(".toml") and os.path.abspath(dataset) == target)
                root = roots[place] if place < len(roots) else run.recipe.target_root if own else ""
                score = experiment.score_run(run, dataset, root, split, bad_files == "skip", where, bars)
                for fault in score["skipped"]:
                    bars.say(f"left out: {fault}")
                title = f"{os.path.relpath(folder)} on {dataset}" if datasets else os.path.relpath(folder)
                facts = {"run": folder, "dataset": dataset, "split": split, "checkpoint": checkpoint, "step": run.step}
                scores[title] = {**facts, **score}
    if as_json:
        click.echo(json.dumps(list(scores.values()), indent=2))
    else:
        report.show_scores(scores)


@cli.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option(
    "--over", multiple=True, metavar="KEY=VALUE,…", help="Values of a field; several --over: every combination is a row."
)
@click.option("--row", "extra", multiple=True, metavar="'KEY=VALUE …'", help="One more row: the recipe with these changes.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Any field of the recipes, for all rows.")
@click.option("--root", default="", metavar="DIR", help="Folder that holds the datasets; as --set root=DIR.")
@click.option("--seeds", default="0,1,2", show_default=True, metavar="N,…", help="Seeds of every row.")
@click.option("--vary-split", is_flag=True, help="The seed also picks the labelled images.")
@click.option("--jobs", type=click.IntRange(0), default=0, help="Trainings at a time.  [default: 2 on a CPU, 1 on a GPU]")
@click.option("--out", default="runs/ablate", show_default=True, metavar="DIR", help="Where runs and table go.")
@device_option
@json_option
def ablate(
    recipes: tuple[str, ...],
    over: tuple[str, ...],
    extra: tuple[str, ...],
    pairs: tuple[str, ...],
    root: str,
    seeds: str,
    vary_split: bool,
    jobs: int,
    out: str,
    device: str,
    as_json: bool,
) -> None:
    """What each setting is worth: train rows of changed settings with several seeds, and compare them with the first row.

    The same command again goes on where it stopped, and runs nothing twice.

    \b
    sda ablate streets-ssda --over bank_selection=attention,random,recent
    sda ablate streets-ssda --row weight_entropy=0 --row "method=supervised unlabelled="
    sda ablate streets-joint streets-ssda --set labels=10 --seeds 0,1,2,3
    """
    try:
        numbers = list(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    except ValueError:
        raise SdaError(f"--seeds {seeds}: expected whole numbers with commas between them, such as 0,1,2") from None
    fixed = dict(recipe.parse_pair(pair, "--set") for pair in pairs) | ({"root": root} if root else {})
    axes = dict(recipe.parse_values(pair, "--over") for pair in over)
    if len(axes) < len(over):
        raise SdaError("--over: a field is named twice; give all its values at once, KEY=VALUE,VALUE")
    if "seed" in fixed or (vary_split and "split_seed" in {*fixed, *axes}):
        raise SdaError("--set seed: give --seeds; and --vary-split sets split_seed by itself")
    changes = [dict(recipe.parse_pair(pair, "--row") for pair in shlex.split(row)) for row in extra]

    from sda import ablate as ablation
    from sda import experiment

    rows = ablation.make_rows(list(recipes), axes, changes)
    with Bars() as bars:
        where = experiment.pick_device(device)
        table = ablation.run(rows, fixed, numbers, vary_split, Path(os.path.expanduser(out)), jobs, where, bars)
    if as_json:
        click.echo(json.dumps(table, indent=2))
    else:
        report.show_table(ablation.COLUMNS, ablation.cells(table))
        click.echo(f"{ablation.caption(table)}.\nTable: {Path(out) / 'ablation.md'}")
    if table["failed"]:
        raise SdaError(f"{len(table['failed'])} runs failed: " + "; ".join(f"{n}: {e}" for n, e in table["failed"].items()))


@cli.command()
@click.argument("folder", default="runs", metavar="[DIR]")
@json_option
def runs(folder: str, as_json: bool) -> None:
    """List the runs in a folder, how far they got, and their scores."""
    from sda import runs as known

    found = known.find(Path(os.path.expanduser(folder)))
    if as_json:
        click.echo(json.dumps([run.to_dict() for run in found], indent=2))
        return
    columns = ["run", "state", "setting", "method", "seed", "step", "mIoU", "protocol", "last sign of life"]
    rows = [
        [
            run.name,
            run.state,
            run.setting,
            run.method,
            "" if run.seed is None else str(run.seed),
            f"{run.step} of {run.steps}",
            "" if run.miou is None else f"{run.miou:.2f}",
            run.protocol,
            report.ago(run.age),
        ]
        for run in found
    ]
    report.show_table(columns, rows)


@cli.command()
@click.argument("name", required=False)
@json_option
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes that ship, or print one's file."""
    if name:
        _show(recipe.load(name).model_dump(), shelf.find("recipes", name), as_json)
        return
    loaded = {name: recipe.load(name) for name in shelf.names("recipes")}
    if as_json:
        rows = [{"name": name, "setting": values.setting, **values.model_dump()} for name, values in loaded.items()]
        click.echo(json.dumps(rows, indent=2))
        return
    rows = [
        [name, values.setting, values.source, values.target, str(values.labels), str(values.steps), values.description]
        for name, values in loaded.items()
    ]
    report.show_table(["recipe", "setting", "source", "target", "labels", "steps", "what for"], rows)


@cli.command()
@click.argument("name", required=False)
@json_option
def datasets(name: str | None, as_json: bool) -> None:
    """List the datasets that sda can read, or print one's descriptor."""
    from sda.data import descriptor

    if name:
        _show(descriptor.load(name).model_dump(), shelf.find("datasets", name), as_json)
        return
    loaded = {name: descriptor.load(name) for name in shelf.names("datasets")}
    if as_json:
        click.echo(json.dumps([{"name": name, **values.model_dump()} for name, values in loaded.items()], indent=2))
        return
    rows = [[name, values.title, str(len(values.table().names)), values.licence, values.home] for name, values in loaded.items()]
    report.show_table(["dataset", "title", "classes", "licence", "home page"], rows)


def _show(values: dict, path: Path, as_json: bool) -> None:
    click.echo(json.dumps(values, indent=2) if as_json else path.read_text(encoding="utf-8").rstrip())


@cli.command("init-dataset")
@click.argument("folder", metavar="DIR")
@click.option("--out", default="", metavar="FILE", help="Where the descriptor goes; - prints it.  [default: NAME.toml here]")
def init_dataset(folder: str, out: str) -> None:
    """Look at the images and labels in DIR and propose a descriptor, a TOML file to edit."""
    from sda.data.propose import propose

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


@cli.command()
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
    from sda import run_folder
    from sda.data import descriptor as descriptors
    from sda.data.assemble import find_root
    from sda.data.doctor import examine

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
    report.write_examination(place, found, described, listings)
    if as_json:
        click.echo(json.dumps({**found.to_dict(), "out": str(place)}, indent=2))
    else:
        report.show_examination(found)
        click.echo(f"Report: {place / 'report.json'}\nContact sheet: {place / 'contact.png'}")
    if found.bad or found.advice:
        sys.exit(1)


@cli.command()
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
    from sda.data.make_split import Wish, make_split
    from sda.data.split_lists import write_list

    described = descriptors.load(dataset)
    with Bars() as bars:
        folder = find_root(described, root, "--root", bars.count)
        wish = Wish(labels, by, seed, hold_out, given, order, entry)
        items, rows, notes = make_split(described, folder, wish, lambda done, total: bars.count("counting classes", done, total))
        for note in notes:
            bars.say(note)
    file = Path(os.path.expanduser(out or f"{title_of(dataset)}-{len(items)}.txt"))
    write_list(file, items, labels=unimatch)
    if rows:
        cells = [[row.name, str(row.images), f"{100 * row.share:.2f}"] for row in rows]
        report.show_table(["class", "images", "% of pixels"], cells)
    click.echo(f"{file}: {len(items)} images")


@cli.command()
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
    from sda.data.make_pack import write_pack

    file = Path(os.path.expanduser(out or f"{title_of(dataset)}.h5"))
    with Bars() as bars:
        described = descriptors.load(dataset)
        folder = find_root(described, root, "--root", bars.count)
        wanted = splits or list(descriptors.list_splits(described, folder))
        faults = write_pack(
            file, dataset, described, folder, size, wanted, compression, processes, bars.count, bad_files == "skip"
        )
        for fault in faults:
            bars.say(f"left out: {fault}")
    click.echo(f"{file}: {', '.join(wanted)} of {dataset} at {size[0]}x{size[1]}; use it in the place of {folder}")


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, metavar="DIR", help="Where the runs, picture and summary go.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all three trainings.")
@device_option
@json_option
def demo(out: str, seed: int, device: str, as_json: bool) -> None:
    """Draw the streets data, train three networks on it, and compare them on the camera domain."""
    from sda import demo as demonstration

    with Bars() as bars:
        summary = demonstration.run(Path(out), seed, device, bars)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    report.show_scores(summary["runs"])
    click.echo(f"Picture: {Path(out) / 'demo.png'}\nSummary: {Path(out) / 'summary.json'}")
