"""Measure how long `sda doctor` takes for a dataset of the size of GTA5, 25,000 pairs.

    python benchmarks/doctor.py [--images 16] [--pairs 25000] [--processes 1 2]

To avoid writing 60 GB, it measures two parts: pairs per second for full-size PNGs of 2048x1024, in one process and in several;
and the whole command on PAIRS pairs of 16x16 pixels, which shows the time without reading, first without a cache and then with
one.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from pack import write_images
from PIL import Image

from sda.data import descriptor as descriptors
from sda.data.inspect.doctor import examine

TARGET = 25_000


def seconds(root: Path, processes: int) -> float:
    """Return the time that the doctor takes for a Cityscapes folder without problems."""
    start = time.perf_counter()
    found, _ = examine("cityscapes", descriptors.load("cityscapes"), root, processes=processes)
    assert not found.bad
    return time.perf_counter() - start


def write_tiny(root: Path, count: int) -> None:
    """Write `count` random pairs of 16x16 pixels in the layout of Cityscapes."""
    random = np.random.default_rng(0)
    for number in range(count):
        image = random.integers(20, 255, (16, 16, 3), np.uint8)
        label = random.choice([7, 8, 11, 21, 23, 26], (16, 16)).astype(np.uint8)
        for array, folder, what in ((image, "leftImg8bit", "leftImg8bit"), (label, "gtFine", "gtFine_labelIds")):
            city = f"city{number % 20}"
            path = root / folder / "train" / city / f"{city}_{number:06}_000019_{what}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=TARGET)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_images(place / "large", options.images)
        for processes in options.processes:
            os.environ["SDA_CACHE"] = str(place / f"cache{processes}")
            rate = options.images / seconds(place / "large", processes)
            print(f"2048x1024, {processes} processes: {rate:.1f} pairs/s, {TARGET} pairs in {TARGET / rate / 60:.0f} min")
        write_tiny(place / "tiny", options.pairs)
        first, again = (seconds(place / "tiny", max(options.processes)) for _ in range(2))
        print(f"{options.pairs} pairs of 16x16: {first:.0f} s, and {again:.1f} s from the cache")


if __name__ == "__main__":
    main()
