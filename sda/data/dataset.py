"""Read items as tensors: decoded, resized, and kept in memory on request."""

import atexit
import errno
import functools
import io
import multiprocessing
import pickle
import signal
import traceback
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sda.data.files import FileError, LabelCodec, read_image, read_pair
from sda.data.item import Item
from sda.errors import SdaError, explained
from sda.pictures import resize_image, resize_nearest
from sda.sizes import Fit, fitted
from sda.system.signals import STOPPING


@dataclass(frozen=True)
class Sample:
    """image: uint8 (3, H, W) RGB. label: uint8 (H, W) train ids, 255 = ignored; None for unlabelled images."""

    image: Tensor
    label: Tensor | None


class Dataset(torch.utils.data.Dataset):
    """The samples of a list of items, resized to a size or each at its own size.

    Args:
        items: what to read.
        codec: decodes the labels of the items that have one; None reads images only.
        size: (height, width) to resize images to (bilinear, antialiased); None keeps their own sizes.
        native_labels: keep labels at their own size (for evaluation) instead of resizing them (nearest) with the image.
        fit: how images are resized to `size`: see `sda.sizes.fitted`. With "inside", samples have different sizes.
    """

    def __init__(
        self,
        items: list[Item],
        codec: LabelCodec | None,
        size: tuple[int, int] | None,
        native_labels: bool = False,
        fit: Fit = "stretch",
    ):
        self.items = items
        self.codec = codec
        self.size = size and (size[0], size[1])
        self.native_labels = native_labels
        self.fit = fit
        self._memory: list[Sample | FileError] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at `index`. Raise FileError if its files cannot be used."""
        if self._memory is None:
            return self._read(index)
        sample = self._memory[index]
        if isinstance(sample, FileError):
            raise sample
        return sample

    def preload(self, progress: Callable[[int, int], None] = lambda done, total: None, threads: int = 4) -> None:
        """Decode all samples and keep them in memory. Meant for datasets that are small at training resolution."""

        def read(index: int) -> Sample | FileError:
            try:
                return self._read(index)
            except FileError as error:
                return error

        memory: list[Sample | FileError] = []
        with ThreadPoolExecutor(threads) as pool:
            for sample in pool.map(read, range(len(self))):
                memory.append(sample)
                progress(len(memory), len(self))
        self._memory = memory

    def _read(self, index: int) -> Sample:
        item, codec = self.items[index], self.codec
        if item.stored is not None:
            label = None if codec is None or item.label is None else codec.map(item.stored.label())
            return _sample(item.stored.image(), label)
        if codec is None or item.label is None:
            image, label = read_image(item.image), None
        else:
            image, label = read_pair(item, codec)
        size = fitted(image.size[::-1], self.size, self.fit)
        if self.size and label is not None and not self.native_labels:
            label = np.array(resize_nearest(label, size))
        image = resize_image(image, size)
        return _sample(np.array(image), label)


def _sample(image: np.ndarray, label: np.ndarray | None) -> Sample:
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    return Sample(tensor, None if label is None else torch.from_numpy(label))


@dataclass(frozen=True)
class Joint:
    """Several datasets that one stream draws from.

    Attributes:
        datasets: two or more. shares: of each in the samples that are drawn, exact; they add up to 1.
    """

    datasets: list[Dataset]
    shares: list[Fraction]

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    @property
    def items(self) -> list[Item]:
        """The items of all datasets, one after the other."""
        return [item for dataset in self.datasets for item in dataset.items]

    def preload(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Decode all samples and keep them in memory, one dataset after the other (see `Dataset.preload`)."""
        for dataset in self.datasets:
            dataset.preload(progress)


class Guarded(torch.utils.data.Dataset):
    """Pairs (index, sample), with the FileError in place of a sample that cannot be read, so that loader processes survive it."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Sample | FileError]:
        try:
            return index, self.dataset[index]
        except FileError as error:
            return index, error


_OPEN: weakref.WeakSet["Loader"] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End the loader processes when the program ends because of an error: Python would wait for them for ever."""
    for loader in list(_OPEN):
        loader.close()


class Loader:
    """An iterator over the batches of a PyTorch DataLoader whose processes never keep the program waiting.

    - Batches come through pipes, not through shared memory, which is 64 MB in a Docker container: a process that finds it full
      would lose its batch without a word.
    - If a process dies, the next batch is an error.
    - `close`, or the end of the context, ends the processes whatever they are doing.

    Args:
        dataset, batch, sampler, collate: as of DataLoader.
        workers: number of processes; 0 reads in this process.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset,
        batch: int,
        sampler: Iterable[int],
        workers: int,
        collate: Callable[[list], Any] = list,
    ):
        packed = functools.partial(_packed, collate) if workers else collate
        loader = torch.utils.data.DataLoader(
            dataset, batch, sampler=sampler, num_workers=workers, collate_fn=packed, worker_init_fn=_begin_worker
        )
        before = set(multiprocessing.active_children())
        self._workers = workers
        try:
            self._batches: Any = iter(loader)
        except OSError as error:
            _kill(set(multiprocessing.active_children()) - before)
            for frame, _ in traceback.walk_tb(error.__traceback__):  # the unfinished iterator would complain when it is deleted
                if isinstance(unfinished := frame.f_locals.get("self"), _MultiProcessingDataLoaderIter):
                    unfinished._shutdown = True
            where = " in /dev/shm (in Docker: --shm-size)" if error.errno == errno.ENOSPC else ""
            raise SdaError(
                f"cannot start {workers} loader processes: {error.strerror}{where}; lower --workers, or set --workers 0"
            ) from None
        self._processes = set(multiprocessing.active_children()) - before
        _OPEN.add(self)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Any:
        """Return the next batch. Raise SdaError if a process died."""
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            raise explained(error) or error from None
        return pickle.loads(batch) if self._workers else batch

    def close(self) -> None:
        """End the loader processes."""
        if self._processes:
            if not self._batches._shutdown:
                # PyTorch's own way asks them to end and may wait for ever. It must not take their end for an error.
                torch.utils.data._utils.signal_handling._remove_worker_pids(id(self._batches))
                self._batches._worker_pids_set, self._batches._shutdown = False, True
            _kill(self._processes)
            self._batches, self._processes = iter(()), set()


def _kill(processes: set[multiprocessing.process.BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _begin_worker(_worker: int) -> None:
    """Limit a loader process to one thread, and make it ignore stopping signals: its parent may still need its batch."""
    torch.set_num_threads(1)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


class _Pickler(pickle.Pickler):
    """Pickles tensors with their values, as arrays."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _packed(collate: Callable[[list], Any], samples: list) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(collate(samples))
    return file.getvalue()
