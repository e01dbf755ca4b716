"""Measure how much slower `sda features` is than the bare forward pass over the same images, in alternating rounds.

python benchmarks/features.py RUN [--rounds 3] [--images 24] [--per-class 32] [--dataset NAME --root DIR]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from sda.analysis.make_cache import Domain, open_domain, write_features
from sda.data.dataset import Dataset, Guarded
from sda.runs import trained
from sda.scoring.evaluate import batch_size
from sda.system.console import ignore_count
from sda.system.devices import pick_device


@torch.no_grad()
def forward(run: trained.Run, images: Dataset) -> float:
    """Return the seconds it takes to read all images and run the network on them."""
    began = time.perf_counter()
    for found in DataLoader(Guarded(images), batch_size(run.protocol()), num_workers=run.recipe.workers, collate_fn=list):
        run.network(run.normalise(torch.stack([sample.image for _, sample in found]).to(run.device)))
    if run.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def cached(run: trained.Run, domain: Domain, per_class: int) -> float:
    """Return the seconds of `sda features`: the same work and writing the cache."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        write_features(Path(folder) / "f.h5", run, [domain], per_class)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, help="use only the first images")
    parser.add_argument("--per-class", type=int, default=32)
    parser.add_argument("--dataset", default="")
    parser.add_argument("--root", default="")
    given = parser.parse_args()
    run = trained.load(given.run, "last", device=pick_device("auto"))
    domain, _ = open_domain(run, given.dataset or run.recipe.target, given.root, "train", ignore_count)
    images = domain.dataset
    images.items = images.items[: given.images]
    forward(run, images)  # load the files into the page cache
    shares = []
    for turn in range(given.rounds):
        bare, whole = forward(run, images), cached(run, domain, given.per_class)
        shares.append(bare / whole)
        rates = f"bare {len(images) / bare:.1f} images/s, sda features {len(images) / whole:.1f}/s"
        print(f"round {turn + 1}: {rates}: {shares[-1]:.0%}")
    print(f"median: {statistics.median(shares):.0%} of the bare forward pass, {len(images)} images, {run.device}")


if __name__ == "__main__":
    main()
