"""Infinite seeded streams of samples. The sample at position n depends only on (seed, stream, n).

The number of workers therefore has no effect on the samples, and a resumed run simply starts at a later position.
"""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sda.data.assemble import Data
from sda.data.batch import STREAMS, Batch, Labelled
from sda.data.dataset import Dataset, Joint, Loader, Sample
from sda.data.files import FileError
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.recipe import Recipe
from sda.system import distributed

PATIENCE = 50  # batches without a labelled pixel after which training stops
CROPS = 10  # random crops that are tried, at most, for enough pixels of a rare class
BLOCK = 100  # positions of a stream with several datasets, within which their order is random
SHORTEST = 5  # the same for short runs: fewer batches of small crops may miss sparse labels by chance


class RareClassSampling:
    """Draws images by class, rare classes more often: Hoyer et al., DAFormer, CVPR 2022, section 3.3.

    It draws a class with P(c) ∝ exp((1 - f_c) / T), where f_c is the class's share of all pixels, and then one of the images
    that contain the class.

    Args:
        pixels: (N, C) number of pixels of each class in each image.
        temperature: T > 0; with small values, almost all draws are from the rarest classes. DAFormer: 0.01.
        least: number of pixels of the drawn class that a crop should have. DAFormer: 1,500 in crops of 512x512.
    """

    def __init__(self, pixels: np.ndarray, temperature: float, least: int = 0):
        self.pixels, self.temperature, self.least = pixels, temperature, least
        share = pixels.sum(axis=0) / max(1, pixels.sum())
        occurring = np.flatnonzero(share)
        weight = np.exp((1 - share[occurring]) / temperature - (1 - share[occurring]).max() / temperature)
        self._steps = np.cumsum(weight / weight.sum())
        self._classes = occurring
        self._images = [np.flatnonzero(pixels[:, index]) for index in occurring]

    def draw(self, random: np.random.Generator) -> tuple[int, int]:
        """Draw the index of an image, and the class for which it was drawn."""
        index = min(int(np.searchsorted(self._steps, random.random(), side="right")), len(self._steps) - 1)
        return int(random.choice(self._images[index])), int(self._classes[index])


class _DrawnSamples(torch.utils.data.Dataset):
    """Map position n of the infinite stream to a cropped sample and the errors of unusable files that were skipped."""

    def __init__(
        self, dataset: Dataset, crop: tuple[int, int], seed: int, stream: int, skip: bool, sampling: "RareClassSampling | None"
    ):
        self.dataset, self.crop, self.seed, self.stream, self.skip = dataset, crop, seed, stream, skip
        self.sampling = sampling
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def _choose(self, n: int) -> tuple[int, int | None]:
        """Return the index of the image at position n, and the class for which it was drawn, if it was."""
        if self.sampling is not None:
            return self.sampling.draw(np.random.default_rng([self.seed, self.stream, 2, n]))
        epoch, place = divmod(n, len(self.dataset))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, self.stream, 0, epoch]).permutation(len(self.dataset))
        return int(self._order[place]), None

    def __getitem__(self, n: int) -> tuple[Sample | None, list[str]]:
        random = np.random.default_rng([self.seed, self.stream, 1, n])
        index, wanted = self._choose(n)
        faults: list[str] = []
        for _ in range(20):
            try:
                return self._cropped(self.dataset[index], random, wanted), faults
            except FileError as error:
                faults.append(str(error))
                if not self.skip:
                    return None, faults
                index = int(random.integers(len(self.dataset)))
        return None, [f"20 unusable files in a row; last error: {faults[-1]}"]

    def _cropped(self, sample: Sample, random: np.random.Generator, wanted: int | None) -> Sample:
        """Crop a sample at random. If its class `wanted` should have a number of pixels, take the best of up to CROPS crops."""
        height, width = self.crop
        sample = _padded(sample, height, width)
        least = self.sampling.least if self.sampling else 0
        best, most = sample, -1
        for _ in range(CROPS if least else 1):
            top = int(random.integers(sample.image.shape[1] - height + 1))
            left = int(random.integers(sample.image.shape[2] - width + 1))
            window = (slice(top, top + height), slice(left, left + width))
            crop = Sample(sample.image[:, *window], None if sample.label is None else sample.label[window])
            count = int(crop.label.eq(wanted).sum()) if wanted is not None and crop.label is not None else 0
            if count > most:
                best, most = crop, count
            if count >= least:
                break
        return best


class _MixedSamples(torch.utils.data.Dataset):
    """Map position n of the infinite stream to the next sample of one of several datasets.

    Each BLOCK positions contain the datasets by their shares, to within two samples, in random order.
    """

    def __init__(self, parts: list[_DrawnSamples], shares: list[Fraction], seed: int, stream: int):
        self.parts, self.shares, self.seed, self.stream = parts, shares, seed, stream
        self._block, self._order, self._before = -1, np.empty(0, np.int64), [0]

    def __getitem__(self, n: int) -> tuple[Sample | None, list[str]]:
        part, earlier = self.find(n)
        return self.parts[part][earlier]

    def find(self, n: int) -> tuple[int, int]:
        """Return which dataset position n draws from, and how many earlier positions draw from it."""
        block, place = divmod(n, BLOCK)
        if block != self._block:
            self._block, self._before = block, apportion(block * BLOCK, self.shares)
            counts = np.subtract(apportion((block + 1) * BLOCK, self.shares), self._before)
            order = np.repeat(np.arange(len(counts)), counts)
            self._order = np.random.default_rng([self.seed, self.stream, 3, block]).permutation(order)
        part = int(self._order[place])
        return part, self._before[part] + int(np.count_nonzero(self._order[:place] == part))


def apportion(count: int, shares: list[Fraction]) -> list[int]:
    """Divide `count` by shares, which add up to 1, into whole numbers. None of them falls when `count` rises."""
    parts, rest = [], Fraction(1)
    for share in shares:
        parts.append(int(count * share / rest))
        count, rest = count - parts[-1], rest - share
    return parts


def _draw_samples(
    name: str, dataset: Dataset | Joint, crop: tuple[int, int], seed: int, skip: bool, sampling: RareClassSampling | None
) -> torch.utils.data.Dataset:
    """Return the samples of a stream by position. Each of several datasets has its own random numbers."""
    stream = STREAMS.index(name)
    if isinstance(dataset, Dataset):
        return _DrawnSamples(dataset, crop, seed, stream, skip, sampling)
    ends = itertools.accumulate(map(len, dataset.datasets))
    parts = []
    for number, (part, end) in enumerate(zip(dataset.datasets, ends, strict=True), start=len(STREAMS)):
        by_class = sampling and RareClassSampling(sampling.pixels[end - len(part) : end], sampling.temperature, sampling.least)
        parts.append(_DrawnSamples(part, crop, seed, number, skip, by_class))
    return _MixedSamples(parts, dataset.shares, seed, stream)


def _padded(sample: Sample, height: int, width: int) -> Sample:
    """Pad a sample at the bottom and right to at least the given size: mirror the image, and set the label to ignored."""
    down, right = max(0, height - sample.image.shape[1]), max(0, width - sample.image.shape[2])
    if not down and not right:
        return sample
    image = torch.from_numpy(np.pad(sample.image.numpy(), ((0, 0), (0, down), (0, right)), "symmetric"))
    label = sample.label if sample.label is None else F.pad(sample.label, (0, right, 0, down), value=IGNORE)
    return Sample(image, label)


def _collate(drawn: list[tuple[Sample | None, list[str]]]) -> tuple[Labelled | Tensor | None, list[str]]:
    faults = [fault for _, faults in drawn for fault in faults]
    samples = [sample for sample, _ in drawn if sample is not None]
    if len(samples) < len(drawn):
        return None, faults
    images = torch.stack([sample.image for sample in samples])
    labels = [sample.label for sample in samples if sample.label is not None]
    if not labels:
        return images, faults
    assert len(labels) == len(samples), "a stream has either all labels or none"
    return Labelled(images, torch.stack(labels)), faults


class _PositionSampler(torch.utils.data.Sampler):
    """Yields the positions of one process from step `start` on."""

    def __init__(self, start: int, batch: int, rank: int, size: int):
        self.start, self.batch, self.rank, self.size = start, batch, rank, size

    def __iter__(self) -> Iterator[int]:
        for step in itertools.count(self.start):
            first = (step * self.size + self.rank) * self.batch
            yield from range(first, first + self.batch)


class Stream:
    """An endless iterator of batches of random crops.

    Args:
        name: one of STREAMS; part of the seed.
        dataset: each of several datasets has its own sequence of samples; the stream takes the next sample of one of them (see
            `_MixedSamples`).
        batch: samples per step and process; all processes get different positions.
        crop: (height, width); smaller images are padded.
        start: the first step.
        workers: number of loader processes; 0 loads in this process (best for datasets in memory).
        skip: skip unusable files and add them to `faults`, instead of raising an error.
        sampling: draw images by class; with several datasets, within the one whose turn it is. None: each
            image once per epoch.
        patience: number of batches of labelled images, one of which must have a labelled pixel.

    Attributes:
        faults: errors of skipped files, in order and without duplicates (a dict used as an ordered set).
    """

    def __init__(
        self,
        name: str,
        dataset: Dataset | Joint,
        batch: int,
        crop: tuple[int, int],
        seed: int,
        start: int = 0,
        workers: int = 0,
        skip: bool = False,
        sampling: RareClassSampling | None = None,
        patience: int = PATIENCE,
    ):
        drawn = _draw_samples(name, dataset, crop, seed, skip, sampling)
        positions = _PositionSampler(start, batch, distributed.rank(), distributed.world_size())
        self.faults: dict[str, None] = {}
        self._name, self._blind, self._patience = f"{name} images, such as {dataset.items[0].key}", 0, patience
        self._batches = Loader(drawn, batch, positions, workers, _collate)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Labelled | Tensor:
        """Return the next step's batch.

        Raises:
            SdaError: a file is unusable and `skip` is not set, or no labelled pixel was found for `patience` batches.
        """
        batch, faults = next(self._batches)
        if batch is None:
            raise SdaError(faults[-1])
        self.faults.update(dict.fromkeys(faults))
        if isinstance(batch, Labelled) and self._blind < self._patience:
            self._look_for_labels(batch)
        return batch.pin_memory() if torch.cuda.is_available() else batch

    def close(self) -> None:
        """End the loader processes."""
        self._batches.close()

    def _look_for_labels(self, batch: Labelled) -> None:
        """Raise SdaError if this is the last of `patience` batches in which a labelled pixel should have been. Stop looking once
        one is found."""
        if (batch.labels != IGNORE).any():
            self._blind = self._patience
            return
        self._blind += 1
        if self._blind == self._patience:
            height, width = batch.labels.shape[1:]
            raise SdaError(
                f"no labelled pixel in the first {self._patience} batches of {self._name}: almost all pixels are void, or "
                f"resizing and crops of {height}x{width} lose the others; check the labels with sda doctor, and size and crop"
            )


def open_streams(recipe: Recipe, data: Data, step: int = 0) -> dict[str, Stream]:
    """Open the streams of a recipe, starting at `step`."""
    batches = {"source": recipe.batch_source, "labelled": recipe.batch_labelled, "unlabelled": recipe.batch_unlabelled}
    streams = {}
    for name, batch in batches.items():
        dataset = getattr(data, name)
        if dataset is None:
            continue
        by_class = recipe.rare_class_sampling and name in data.pixels
        streams[name] = Stream(
            name,
            dataset,
            batch,
            recipe.crop_size,
            recipe.seed,
            start=sum(takes_part(name, before, recipe) for before in range(step)),
            workers=0 if recipe.in_memory else recipe.workers,
            skip=recipe.bad_files == "skip",
            sampling=RareClassSampling(data.pixels[name], recipe.rare_class_sampling, recipe.rare_class_pixels)
            if by_class
            else None,
            patience=min(PATIENCE, max(recipe.steps, SHORTEST)),
        )
    return streams


def takes_part(stream: str, step: int, recipe: Recipe) -> bool:
    """Return whether a step draws from a stream.

    With `alternate`, steps alternate between source and labelled target images. The last `target_steps` have no source images.
    """
    if step >= recipe.steps - recipe.in_steps("target_steps"):
        return stream != "source"
    return not recipe.alternate or stream != ("labelled", "source")[step % 2]


def next_batch(streams: dict[str, Stream], step: int, recipe: Recipe, device: torch.device) -> Batch:
    """Draw the images of a step and copy them to the device."""
    drawn = {name: next(stream) for name, stream in streams.items() if takes_part(name, step, recipe)}
    parts: dict[str, Any] = {name: part.to(device, non_blocking=True) for name, part in drawn.items()}
    return Batch(**parts)
