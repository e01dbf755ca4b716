"""Seconds and memory that each strategy of `sda select` takes for a large target.

python benchmarks/selection_scale.py [--images 100000] [--budget 100] [--features 256] [--pixels 4] [--memory 16 1024]

Writes a cache of random numbers in a temporary folder, and selects from it, each time in a process of its own. Memory is what it
takes above what it had when it began to select. The strategy bank reads all pixels: its time grows with their number.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from sda import select as selection
from sda import tables
from sda.bank_contents import Contents
from sda.feature_shards import create
from sda.features import FORMAT, IMAGES, KIND, LISTS, PIXELS, FeatureCache, text_hash

CLASSES, SPACE, BANK, BLOCK = 19, 256, 256, 4096


def write_cache(path: Path, images: int, features: int, pixels: int) -> None:
    random = np.random.default_rng(0)
    names = [f"{number:07}.png" for number in range(images)]
    with h5py.File(path, "w", libver=("v110", "v110")) as file:
        for name, shape in {
            "projected": (images * pixels, SPACE),
            **dict.fromkeys(("image", "prediction", "drawn"), (images * pixels,)),
            "images/pixels": (images, 2),
            "images/domain": (images,),
            "images/mean": (images, features),
            "images/share": (images, CLASSES),
            "images/class_entropy": (images, CLASSES),
        }.items():
            table = IMAGES if name.startswith("images/") else PIXELS
            create(file, name, shape, np.dtype(table[name.removeprefix("images/")][0]), "lzf")
        for first in range(0, images, BLOCK):
            last = min(first + BLOCK, images)
            here, mine = slice(first, last), slice(first * pixels, last * pixels)
            share = random.dirichlet(np.full(CLASSES, 0.2), last - first)
            file["images/mean"][here] = random.normal(size=(last - first, features))
            file["images/share"][here], file["images/class_entropy"][here] = share, random.random(share.shape)
            file["projected"][mine] = random.normal(size=(mine.stop - mine.start, SPACE))
            file["prediction"][mine] = random.integers(CLASSES, size=mine.stop - mine.start)
        ends = np.arange(1, images + 1) * pixels
        file["images/pixels"][:] = np.stack([ends - pixels, ends], axis=1)
        file["image"][:], file["drawn"][:] = np.repeat(np.arange(images), pixels), 3
        create(file, "images/path", (images,), h5py.string_dtype(), "none")[:] = names
        for name in LISTS:
            create(file, name, (0,), h5py.string_dtype(), "none")
        about = {"classes": {f"class {c}": [c, c, c] for c in range(CLASSES)}, "target": "target", "settings": {}}
        about["domains"] = [{"name": "target", "split": "train", "root": "."}]
        file.attrs["kind"], file.attrs["format"], file.attrs["about"] = KIND, FORMAT, json.dumps(about)
        file.attrs["text_sha256"] = text_hash(names, [], [], [])


def measure(path: Path, strategy: str, budget: int, megabytes: int) -> tuple[float, float]:
    """Seconds and MB."""
    cache, random = FeatureCache(path), np.random.default_rng(1)
    shape = (CLASSES, BANK)
    entries = random.standard_normal((*shape, SPACE), np.float32)
    bank = Contents(cache.classes, 0, entries, *(np.ones(shape, kind) for kind in (bool, int, float, int)))
    before, began = peak(), time.perf_counter()
    selection.select(cache, "target", budget, strategy, [], bank=bank, megabytes=megabytes)
    return time.perf_counter() - began, peak() - before


def peak() -> float:
    """MB that this process has had at most."""
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
