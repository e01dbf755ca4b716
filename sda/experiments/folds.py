"""Cross-validation: each part of the labelled target images is scored by a network that has not seen it."""

import itertools
import statistics
from pathlib import Path

import numpy as np
import torch

from sda.data import descriptor as descriptors
from sda.data.assemble import assemble
from sda.data.item import Item
from sda.data.opening import find_root, open_split
from sda.data.splits.choose import find_shared
from sda.data.splits.lists import list_text, write_list
from sda.data.splits.rules import rank
from sda.errors import SdaError
from sda.experiments import pool
from sda.recipe import Recipe
from sda.scoring import metrics
from sda.system import tables
from sda.system.atomic import write_json, write_text
from sda.system.owned import owned
from sda.system.progress import Bars
from sda.system.tables import mean_of_present

COLUMNS = ["fold", "trained on", "scored on", "mIoU"]


def run(recipe: Recipe, count: int, out: Path, device: torch.device, bars: Bars) -> dict:
    """Train `count` networks below `out`, each without one part of the labelled images, and score each on its part.

    The labelled images are those that the recipe trains on and, if they are training images, those that it validates on.
    Folds that are finished are not trained again. Writes folds.json, folds.md, and two lists of images per fold.

    Returns:
        `folds`, each with `name`, `trained` and `scored` (numbers of images) and `miou` (percent; None if it failed); `miou` and
        `iou` (class → percent) over the pixels of all folds together; `mean` and `spread` (standard deviation) of the folds'
        mIoU; `failed` (fold → error).

    Raises:
        SdaError: fewer labelled images than folds, or a folder below `out` has a run on other images or with other settings.
    """
    if count < 2:
        raise SdaError(f"--folds {count}: cross-validation needs at least two folds")
    with owned(out):
        keys = _labelled(recipe, bars)
        if len(keys) < max(count, 3):
            raise SdaError(
                f"--folds {count}: there are {len(keys)} labelled images; each fold needs one, and two others to train on"
            )
        jobs, folds = [], []
        for number in range(1, count + 1):
            scored = keys[number - 1 :: count]
            trained = [key for key in keys if key not in set(scored)]
            lists = {"val_list": scored, "split": trained}
            changes = {field: str(_write(out / "lists" / f"fold{number}-{field}.txt", images)) for field, images in lists.items()}
            name = f"fold {number}"
            jobs.append(pool.Job(name, recipe.model_copy(update=changes), out / f"fold{number}"))
            folds.append({"name": name, "trained": len(trained), "scored": len(scored)})
        results, failed = pool.scores_of(jobs, pool.default_size(device), device, bars)
        table = _summary(folds, results) | {"failed": failed}
        write_json(out / "folds.json", table)
        write_text(out / "folds.md", tables.markdown(COLUMNS, cells(table)) + "\n")
    return table


def cells(table: dict) -> list[list[str]]:
    """Return the table's rows as text, one cell per column of COLUMNS."""
    rows = [
        [fold["name"], str(fold["trained"]), str(fold["scored"]), "failed" if fold["miou"] is None else f"{fold['miou']:.2f}"]
        for fold in table["folds"]
    ]
    if table["miou"] is not None:
        spread = "" if table["spread"] is None else f" ± {table['spread']:.2f}"
        rows.append(["mean of the folds", "", "", f"{table['mean']:.2f}{spread}"])
        rows.append(["all images together", "", str(table["images"]), f"{table['miou']:.2f}"])
    return rows


def _labelled(recipe: Recipe, bars: Bars) -> list[str]:
    """Return the keys of the labelled target images that are training images, in a random order that `split_seed` fixes."""
    descriptor = descriptors.load(recipe.target)
    root = find_root(descriptor, recipe.target_root, "--target-root", bars.count)
    if root.is_file():
        raise SdaError(f"{root}: a pack holds resized labels, but scoring needs the originals: give the folder")
    data = assemble(recipe.model_copy(update={"in_memory": False}), bars.count)
    training = {
        item.image for item in open_split(recipe.target, descriptor, root, "train", recipe.image_size, [], recipe.fit).items
    }
    images = [item for stream in ("labelled", "held_out", "val") for item in data.lists.get(stream, []) if item.label is not None]
    images = [item for item in images if item.image in training]
    if copies := _copies(images):
        bars.say(f"{len(copies)} of the labelled images are copies of others and in no fold, such as {min(copies)}")
    return rank([item.key for item in images if item.key not in copies], recipe.split_seed)


def _copies(images: list[Item]) -> set[str]:
    """Return the keys of images that are copies of earlier ones. In two folds, a network would have seen what it is scored on."""
    by_size: dict[int, list[Item]] = {}
    for item in images:
        by_size.setdefault(item.image.stat().st_size, []).append(item)
    pairs = (pair for group in by_size.values() for pair in itertools.combinations(group, 2))
    return {other.key for one, other in pairs if find_shared([one], [other])}


def _write(file: Path, keys: list[str]) -> Path:
    """Write a list of images, or check that it has these images."""
    if not file.exists():
        write_list(file, keys)
    elif file.read_bytes() != list_text(keys).encode(errors="surrogateescape"):
        raise SdaError(f"{file}: these folds were made of other images, or their number was another; choose another --out")
    return file.absolute()


def _summary(folds: list[dict], results: dict[str, dict]) -> dict:
    scored = [{**fold, "miou": results[fold["name"]]["miou"] if fold["name"] in results else None} for fold in folds]
    found = [fold["miou"] for fold in scored if fold["miou"] is not None]
    if not found:
        return {"folds": scored, "images": 0, "miou": None, "iou": {}, "mean": None, "spread": None}
    names = list(next(iter(results.values()))["iou"])
    confusion = torch.from_numpy(np.sum([result["confusion"] for result in results.values()], axis=0))
    together = metrics.score(confusion, names)
    return {
        "folds": scored,
        "images": sum(result["images"] for result in results.values()),
        "miou": together["miou"],
        "iou": together["iou"],
        "mean": mean_of_present(found),
        "spread": statistics.stdev(found) if len(found) > 1 else None,
    }
