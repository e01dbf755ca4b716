"""Compare the images per second that are read from PNG files and from a pack.

    python benchmarks/pack.py [--images 40] [--rounds 5] [--workers 2] [--compression none]

Writes labelled 2048x1024 PNG files in the Cityscapes layout to a temporary folder and packs them at 512x1024. Then it reads all
of them at that size, alternately from the PNG files and from the pack, in this process and in loader processes. Both give the
same tensors, an image and a label in train ids, and both are read from the page cache.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sda.data import descriptor as descriptors
from sda.data.dataset import Dataset, Sample
from sda.data.descriptor import map_classes
from sda.data.files import LabelCodec
from sda.data.listing import list_items
from sda.data.packs.make import COMPRESSIONS, write_pack
from sda.data.packs.pack import Pack

NATIVE, SIZE = (1024, 2048), (512, 1024)
LABEL_IDS = np.array([0, 3, 7, 7, 7, 8, 11, 11, 17, 21, 21, 23, 24, 26, 26], np.uint8)  # frequent ones are repeated
DATASET = "cityscapes"


class Packed(torch.utils.data.Dataset):
    """The samples of a Dataset, read from a pack."""

    def __init__(self, pack: Pack, mapping: np.ndarray):
        self.pack, self.mapping = pack, mapping

    def __len__(self) -> int:
        return len(self.pack.splits["train"])

    def __getitem__(self, index: int) -> Sample:
        image = torch.from_numpy(self.pack.image("train", index)).permute(2, 0, 1).contiguous()
        return Sample(image, torch.from_numpy(self.mapping[self.pack.label("train", index)]))


def draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw clouds at all scales with camera noise (the PNG is about as large as that of a photo) and a label of large areas."""

    def clouds(cells: int, channels: int) -> np.ndarray:
        small = (Image.fromarray(random.random((cells, 2 * cells), np.float32)) for _ in range(channels))
        return np.stack([np.asarray(image.resize(NATIVE[::-1], Image.Resampling.BICUBIC)) for image in small], axis=2)

    light = np.sum([clouds(2**octave, 1) * 2.0**-octave for octave in range(1, 10)], axis=0)
    image = 120 * (light - light.mean()) / light.std() / 2 + 90 + 20 * clouds(4, 3)
    image += random.normal(0, 1.2, image.shape)
    areas = clouds(16, 1)[..., 0] + clouds(64, 1)[..., 0] / 4
    places = ((areas - areas.min()) / np.ptp(areas) * (len(LABEL_IDS) - 1)).astype(int)
    return image.clip(0, 255).astype(np.uint8), LABEL_IDS[places]


def write_images(root: Path, count: int) -> None:
    for number in range(count):
        image, label = draw(np.random.default_rng(number))
        for array, folder, what in ((image, "leftImg8bit", "leftImg8bit"), (label, "gtFine", "gtFine_labelIds")):
            path = root / folder / "train/aachen" / f"aachen_{number:06}_000019_{what}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


def rate(loader) -> float:
    """Return the samples per second of one pass."""
    start = time.perf_counter()
    count = sum(1 for _ in loader)
    return count / (time.perf_counter() - start)


def one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def first(samples: list[Sample]) -> Sample:
    return samples[0]


def compare(original: torch.utils.data.Dataset, packed: torch.utils.data.Dataset, workers: int, rounds: int) -> None:
    """Print the rates of both, read alternately; the first round only warms up the page cache and the workers."""
    options: dict[str, Any] = {
        "num_workers": workers,
        "collate_fn": first,
        "worker_init_fn": one_thread,
        "persistent_workers": workers > 0,
    }
    loaders = [torch.utils.data.DataLoader(dataset, **options) for dataset in (original, packed)]
    rates = [[rate(loader) for loader in loaders] for _ in range(rounds + 1)][1:]
    png, pack = (statistics.median(column) for column in zip(*rates, strict=True))
    ratios = sorted(each[1] / each[0] for each in rates)
    where = f"{workers} loader processes" if workers else "this process"
    print(
        f"{where:20} PNG {png:7.1f} images/s   pack {pack:7.1f} images/s   {statistics.median(ratios):5.1f} times as many "
        f"({ratios[0]:.1f} to {ratios[-1]:.1f} in {rounds} rounds)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--compression", choices=COMPRESSIONS, default="none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "data", Path(folder) / "pack.h5"
        write_images(root, options.images)
        descriptor = descriptors.load(DATASET)
        mapping, _ = map_classes(descriptor, DATASET, descriptor.table())
        start = time.perf_counter()
        write_pack(out, DATASET, descriptor, root, SIZE, ["train"], options.compression)
        seconds = time.perf_counter() - start
        listing = list_items(descriptor, root, "train")
        before = (
            sum(path.stat().st_size for item in listing.items for path in (item.image, item.label) if path) / 1e6 / options.images
        )
        after = out.stat().st_size / 1e6 / options.images
        print(f"{options.images} pairs of {before:.2f} MB as PNG, {after:.2f} MB packed ({options.compression})")
        print(f"packing: {options.images / seconds:.1f} images/s on {os.cpu_count()} cores, including the start of the processes")
        original = Dataset(listing.items, LabelCodec(descriptor, listing.encoding, mapping), SIZE)
        packed = Packed(Pack(out), mapping)
        for index in range(len(packed)):
            assert all(torch.equal(getattr(original[index], part), getattr(packed[index], part)) for part in ("image", "label"))
        compare(original, packed, 0, options.rounds)
        compare(original, packed, options.workers, options.rounds)


if __name__ == "__main__":
    main()
