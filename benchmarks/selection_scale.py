"""Measure the time and memory of each strategy of `sda select` for a large target.

python benchmarks/selection_scale.py [--images 100000] [--budget 100] [--features 256] [--pixels 4] [--memory 16 1024]

Writes a cache of random numbers to a temporary folder and selects from it, each time in a new process. Memory is the increase of
the peak during the selection. The strategy bank reads all pixels, so its time grows with their number.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sda.analysis import select as selection
from sda.analysis.bank import Contents
from sda.analysis.cache import IMAGES, LISTS, PIXELS, FeatureCache
from sda.analysis.shards import Shard, Writer, describe, shard_path
from sda.labels import IGNORE
from sda.system import tables
from sda.system.resumable import new_hdf5

CLASSES, SPACE, BANK, BLOCK = 19, 256, 256, 4096


def write_cache(path: Path, images: int, features: int, pixels: int) -> None:
    random, kinds = np.random.default_rng(0), {name: kind for name, (kind, _, _) in (PIXELS | IMAGES).items()}
    classes = {f"class {c}": [c, c, c] for c in range(CLASSES)}
    about: dict[str, Any] = {"classes": classes, "target": "target", **{key: [] for key in LISTS}}
    about["domains"] = [{"name": "target", "split": "train", "root": "."}]
    with new_hdf5(path.parent, path) as file:
        with Writer(file, [], "lzf") as writer:
            for first in range(0, images, BLOCK):
                shard, last = Shard(), min(first + BLOCK, images)
                for number in range(first, last):
                    of_pixels = {
                        "label": np.full(pixels, IGNORE),
                        "prediction": random.integers(CLASSES, size=pixels),
                        "drawn": np.full(pixels, 3),
                        "projected": random.normal(size=(pixels, SPACE)).astype(kinds["projected"]),
                    }
                    of_image = {
                        "path": np.array(f"{number:07}.png"),
                        "size": np.array([96, 192]),
                        "mean": random.normal(size=features).astype(kinds["mean"]),
                        "share": random.dirichlet(np.full(CLASSES, 0.2)),
                        "class_entropy": random.random(CLASSES),
                    }
                    shard.add(0, of_pixels, of_image)
                writer.write(shard_path(path.parent, first, last), shard)
            writer.finish()
        describe(file, {"preprocessing": {}, "network": ""}, about)


def measure(path: Path, strategy: str, budget: int, megabytes: int) -> tuple[float, float]:
    """Return the seconds and the MB that a selection takes."""
    cache, random = FeatureCache(path), np.random.default_rng(1)
    shape = (CLASSES, BANK)
    entries = random.standard_normal((*shape, SPACE), np.float32)
    bank = Contents(cache.classes, 0, entries, *(np.ones(shape, kind) for kind in (bool, int, float, int)))
    before, began = peak(), time.perf_counter()
    selection.select(cache, "target", budget, strategy, [], bank=bank, megabytes=megabytes)
    return time.perf_counter() - began, peak() - before


def peak() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"images": 100_000, "budget": 100, "features": 256, "pixels": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", type=int, nargs="+", default=[16, 1024])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, rows = Path(folder) / "features.h5", []
        write_cache(path, given.images, given.features, given.pixels)
        for strategy in selection.STRATEGIES:
            for megabytes in given.memory:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    seconds, taken = pool.apply(measure, (path, strategy, given.budget, megabytes))
                rows.append([strategy, f"{megabytes} MB", f"{seconds:.1f}", f"{taken:.0f}"])
    print(f"{given.budget} of {given.images} images, {given.features} features, {given.pixels} pixels each\n")
    print(tables.markdown(["strategy", "--memory", "seconds", "MB taken"], rows, numbers=True))


if __name__ == "__main__":
    main()
