"""Write the whole dataset, in the layouts of GTA5 and Cityscapes."""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from sda.errors import SdaError, naming
from sda.streets.labels import COLOURS, LABEL_IDS
from sda.streets.scene import VERSION, render
from sda.system.atomic import write_json
from sda.system.children import ChildDied, run_tasks
from sda.system.owned import owned

GAME_COUNT, TRAIN_COUNT, VAL_COUNT = 320, 320, 60  # images in the default dataset
COUNT = GAME_COUNT + TRAIN_COUNT + VAL_COUNT
TRAIN_CITIES = ("aldheim", "brunnau", "carsted", "dorvik")
VAL_CITIES = ("elmsund", "farnholt")
VAL_OFFSET = 1_000_000  # number of the first validation scene, independent of the number of training scenes

_DRAWN = "drawn"  # in the temporary folder, beside its lock

Job = tuple[str, int, str, str]  # domain, index, image path and label path relative to the root


def write(
    root: Path,
    seed: int = 0,
    game: int = GAME_COUNT,
    camera_train: int = TRAIN_COUNT,
    camera_val: int = VAL_COUNT,
    progress: Callable[[int], None] | None = None,
    processes: int | None = None,
) -> None:
    """Write the dataset: `root`/game in the layout of GTA5, `root`/camera in that of Cityscapes. Write all of it or nothing.

    Args:
        root: a folder that does not exist, is empty, or holds this dataset already (then nothing happens).
        game, camera_train, camera_val: number of images of each.
        progress: called with the number of images drawn so far.
        processes: number of processes; one per core by default.

    Raises:
        SdaError: `root` holds something else, which is not changed, or a number is negative.
    """
    if min(seed, game, camera_train, camera_val) < 0:
        raise SdaError(f"streets: seed and counts cannot be negative: {seed}, {game}, {camera_train}, {camera_val}")
    root = Path(root).resolve()
    wanted = {"streets": VERSION, "seed": seed, "game": game, "camera_train": camera_train, "camera_val": camera_val}
    if holds(root, wanted):
        return
    part = root.with_name(f".{root.name}.part")
    with owned(part, shown=root):
        if holds(root, wanted):  # another process just finished it
            return
        shutil.rmtree(part / _DRAWN, ignore_errors=True)  # left by a kill
        try:
            todo = list(jobs(game, camera_train, camera_val))
            for folder in {(part / _DRAWN / path).parent for _, _, *paths in todo for path in paths}:
                folder.mkdir(parents=True, exist_ok=True)
            draw_all(part / _DRAWN, seed, todo, progress or (lambda done: None), processes or os.cpu_count() or 1)
            write_json(part / _DRAWN / "streets.json", wanted)
            (part / _DRAWN).replace(root)
        finally:
            shutil.rmtree(part / _DRAWN, ignore_errors=True)


def holds(root: Path, wanted: dict[str, int]) -> bool:
    """Return whether `root` holds the wanted dataset; False if it is missing or empty. Raise SdaError if it holds another."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    note = root / "streets.json"
    try:
        found = json.loads(note.read_text()) if note.is_file() else "no streets.json"
    except ValueError:
        found = "a streets.json that is not JSON"
    if found != wanted:
        raise SdaError(
            f"{root} is not the requested dataset: expected {wanted}, found {found}; "
            "nothing was changed: choose another folder, or remove this one"
        )
    return True


def jobs(game: int, camera_train: int, camera_val: int) -> Iterator[Job]:
    """Yield one job per scene."""
    for index in range(game):
        yield "game", index, f"game/images/{index + 1:05d}.png", f"game/labels/{index + 1:05d}.png"
    for split, count, cities, first in (
        ("train", camera_train, TRAIN_CITIES, 0),
        ("val", camera_val, VAL_CITIES, VAL_OFFSET),
    ):
        for index in range(count):
            city = cities[index % len(cities)]
            stem = f"{split}/{city}/{city}_{index // len(cities):06d}_000019"
            image, label = f"camera/leftImg8bit/{stem}_leftImg8bit.png", f"camera/gtFine/{stem}_gtFine_labelIds.png"
            yield "camera", first + index, image, label


def draw_all(folder: Path, seed: int, todo: list[Job], progress: Callable[[int], None], processes: int) -> None:
    """Draw all scenes, in one process or several."""
    batches, done = [todo[start : start + 8] for start in range(0, len(todo), 8)], 0
    if processes == 1 or len(batches) < 2:
        for batch in batches:
            done += draw_jobs(folder, seed, batch)
            progress(done)
        return
    draw = functools.partial(draw_jobs, folder, seed)
    with closing(run_tasks(draw, batches, min(processes, len(batches)))) as results:
        for _, count in results:
            if isinstance(count, ChildDied):
                raise SdaError(f"streets: while drawing, {count}; run the same command again")
            done += count
            progress(done)


def draw_jobs(folder: Path, seed: int, batch: list[Job]) -> int:
    """Render and save a batch of scenes, and return their number."""
    to_id = np.zeros(256, np.uint8)
    to_id[:19] = LABEL_IDS
    palette = np.zeros((256, 3), np.uint8)
    palette[list(LABEL_IDS)] = COLOURS
    for domain, index, image_path, label_path in batch:
        image, label = render(domain, seed, index)
        picture = Image.fromarray(to_id[label])
        if domain == "game":  # as in GTA5: the index is the id, the palette its colour
            picture.putpalette(palette.tobytes())
        for drawn, path in ((Image.fromarray(image), folder / image_path), (picture, folder / label_path)):
            with naming(path):
                drawn.save(path, compress_level=3)
    return len(batch)
