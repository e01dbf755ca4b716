"""Infinite seeded streams of samples. What a stream gives at position n depends on nothing but (seed, stream, n).

So the number of workers changes nothing, and resuming is starting at another n.
"""

import itertools
import signal
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from sda.data.assemble import Data
from sda.data.batch import STREAMS, Batch, Labelled
from sda.data.dataset import Dataset, Sample
from sda.data.files import FileError
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.recipe import Recipe
from sda.system import distributed


class RareClassSampling:
    """Images drawn by class, rare classes more often: Hoyer et al., DAFormer, CVPR 2022, section 3.3.

    A class is drawn with P(c) ∝ exp((1 - f_c) / T), f_c its share of all pixels; then one of the images that it occurs in.

    Args:
        pixels: (N, C) pixels of each class in each image.
        temperature: T > 0; small values draw the rarest classes almost alone. DAFormer: 0.01.
    """

    def __init__(self, pixels: np.ndarray, temperature: float):
        share = pixels.sum(axis=0) / max(1, pixels.sum())
        occurring = np.flatnonzero(share)
        weight = np.exp((1 - share[occurring]) / temperature - (1 - share[occurring]).max() / temperature)
        self._steps = np.cumsum(weight / weight.sum())
        self._images = [np.flatnonzero(pixels[:, index]) for index in occurring]

    def draw(self, random: np.random.Generator) -> int:
        """The index of an image."""
        index = min(int(np.searchsorted(self._steps, random.random(), side="right")), len(self._steps) - 1)
        return int(random.choice(self._images[index]))


class _Drawn(torch.utils.data.Dataset):
    """Position n of the infinite stream → a cropped sample, and the faults met on the way to it."""

    def __init__(
        self, dataset: Dataset, crop: tuple[int, int], seed: int, stream: int, skip: bool, sampling: "RareClassSampling | None"
    ):
        self.dataset, self.crop, self.seed, self.stream, self.skip = dataset, crop, seed, stream, skip
        self.sampling = sampling
        self._epoch, self._order = -1, None

    def _index(self, n: int) -> int:
        if self.sampling is not None:
            return self.sampling.draw(np.random.default_rng([self.seed, self.stream, 2, n]))
        epoch, place = divmod(n, len(self.dataset))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self.seed, self.stream, 0, epoch]).permutation(len(self.dataset))
        return int(self._order[place])

    def __getitem__(self, n: int) -> tuple[Sample | None, list[str]]:
        random = np.random.default_rng([self.seed, self.stream, 1, n])
        index, faults = self._index(n), []
        for _ in range(20):
            try:
                return self._cropped(self.dataset[index], random), faults
            except FileError as error:
                faults.append(str(error))
                if not self.skip:
                    return None, faults
                index = int(random.integers(len(self.dataset)))
        return None, [f"20 unusable files in a row, the last: {faults[-1]}"]

    def _cropped(self, sample: Sample, random: np.random.Generator) -> Sample:
        height, width = self.crop
        sample = _padded(sample, height, width)
        top = int(random.integers(sample.image.shape[1] - height + 1))
        left = int(random.integers(sample.image.shape[2] - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        return Sample(sample.image[:, *window], None if sample.label is None else sample.label[window])


def _padded(sample: Sample, height: int, width: int) -> Sample:
    """The sample at least as large as the crop: mirrored at the bottom and on the right, where the label is ignored."""
    down, right = max(0, height - sample.image.shape[1]), max(0, width - sample.image.shape[2])
    if not down and not right:
        return sample
    image = torch.from_numpy(np.pad(sample.image.numpy(), ((0, 0), (0, down), (0, right)), "symmetric"))
    label = sample.label if sample.label is None else F.pad(sample.label, (0, right, 0, down), value=IGNORE)
    return Sample(image, label)


def _collate(drawn: list[tuple[Sample | None, list[str]]]) -> tuple[Labelled | Tensor | None, list[str]]:
    faults = [fault for _, faults in drawn for fault in faults]
    samples = [sample for sample, _ in drawn]
    if None in samples:
        return None, faults
    images = torch.stack([sample.image for sample in samples])
    if samples[0].label is None:
        return images, faults
    return Labelled(images, torch.stack([sample.label for sample in samples])), faults


class _From(torch.utils.data.Sampler):
    """Positions from a step on: of each step's those of one process."""

    def __init__(self, start: int, batch: int, rank: int, size: int):
        self.start, self.batch, self.rank, self.size = start, batch, rank, size

    def __iter__(self) -> Iterator[int]:
        for step in itertools.count(self.start):
            first = (step * self.size + self.rank) * self.batch
            yield from range(first, first + self.batch)


def _begin_worker(_worker: int) -> None:
    """One thread each; signals that ask the training to stop are for the parent, which still wants batches."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Stream:
    """An endless iterator of batches of random crops.

    Args:
        name: one of `source`, `labelled`, `unlabelled`; part of the seed.
        batch: samples per step and process; no two processes get the same position.
        crop: (height, width); images that are smaller are padded.
        start: the step to begin at.
        workers: loader processes; 0 reads in this process (right for datasets kept in memory).
        skip: leave unusable files out and note them in `faults`, rather than raise.
        sampling: draw images by class; None takes each once per epoch.
    """

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        batch: int,
        crop: tuple[int, int],
        seed: int,
        start: int = 0,
        workers: int = 0,
        skip: bool = False,
        sampling: RareClassSampling | None = None,
    ):
        drawn = _Drawn(dataset, crop, seed, STREAMS.index(name), skip, sampling)
        loader = DataLoader(
            drawn,
            batch,
            sampler=_From(start, batch, distributed.rank(), distributed.size()),
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_begin_worker,
            pin_memory=torch.cuda.is_available(),
        )
        self.faults: dict[str, None] = {}  # an ordered set
        self._batches = iter(loader)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Labelled | Tensor:
        """The next step's batch. Raises SdaError naming the file when one is unusable and may not be skipped."""
        batch, faults = next(self._batches)
        if batch is None:
            raise SdaError(faults[-1])
        self.faults.update(dict.fromkeys(faults))
        return batch


def open_streams(recipe: Recipe, data: Data, step: int = 0) -> dict[str, Stream]:
    """Open the streams of a recipe, at the batches of `step`."""
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
            start=sum(takes_part(name, before, recipe.alternate) for before in range(step)) if recipe.alternate else step,
            workers=0 if recipe.in_memory else recipe.workers,
            skip=recipe.bad_files == "skip",
            sampling=RareClassSampling(data.pixels[name], recipe.rare_class_sampling) if by_class else None,
        )
    return streams


def takes_part(stream: str, step: int, alternate: bool) -> bool:
    """Whether a step draws from a stream: with `alternate`, source and labelled target images take turns."""
    return not alternate or stream != ("labelled", "source")[step % 2]


def next_batch(streams: dict[str, Stream], step: int, alternate: bool, device: torch.device) -> Batch:
    """Draw the images of a step and copy them to the device."""
    drawn = {name: next(stream) for name, stream in streams.items() if takes_part(name, step, alternate)}
    return Batch(**{name: part.to(device, non_blocking=True) for name, part in drawn.items()})
