"""Copies of a user's own descriptors and class tables in a run folder, so that the run can be moved to another place."""

import os
from collections import Counter
from pathlib import Path

from sda import shelf
from sda.data import descriptor as descriptors
from sda.recipe import Recipe
from sda.system.atomic import write_text

FOLDER = "datasets"


def write(folder: Path, recipe: Recipe) -> None:
    """Write RUN/datasets/NAME.toml for each descriptor that the recipe gives by its path, and RUN/datasets/classes/NAME.toml for
    class tables. Different descriptors of one name have no copies."""
    datasets = {*(source.dataset for source in recipe.sources), recipe.target}
    names = Counter(Path(dataset).name for dataset in datasets)
    for dataset in datasets:
        if _is_path(dataset) and names[Path(dataset).name] == 1:
            descriptor = descriptors.load(dataset)
            values = descriptor.model_dump(exclude_defaults=True)
            if isinstance(descriptor.classes, str) and _is_path(descriptor.classes):
                values["classes"] = f"classes/{_write_table(folder, descriptor.classes)}"
            _write(folder / FOLDER / Path(dataset).name, values)
    if _is_path(recipe.classes):
        _write_table(folder, recipe.classes)


def find(folder: Path, dataset: str) -> str:
    """Return the copy of a descriptor in a run folder if the file itself does not exist any more, else `dataset`."""
    return _find(folder / FOLDER, dataset)


def found(folder: Path, recipe: Recipe) -> Recipe:
    """Return a run's recipe, with copies in place of descriptors and class tables that do not exist any more."""
    source = recipe.source
    changes = {
        "source": find(folder, source) if isinstance(source, str) else [find(folder, each) for each in source],
        "target": find(folder, recipe.target),
        "classes": _find(folder / FOLDER / "classes", recipe.classes),
    }
    changed = {key: value for key, value in changes.items() if value != getattr(recipe, key)}
    return recipe.model_copy(update=changed) if changed else recipe


def _is_path(name: str) -> bool:
    return name.endswith(".toml")


def _find(folder: Path, name: str) -> str:
    copy = folder / Path(name).name
    return str(copy.absolute()) if _is_path(name) and not os.path.exists(name) and copy.is_file() else name


def _write_table(folder: Path, path: str) -> str:
    table = descriptors.class_table(path)
    _write(folder / FOLDER / "classes" / Path(path).name, table.model_dump(exclude_defaults=True))
    return Path(path).name


def _write(file: Path, values: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(f"{key} = {shelf.toml_value(value)}\n" for key, value in values.items()))
