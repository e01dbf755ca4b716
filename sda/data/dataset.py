"""Read items as tensors: decoded, resized, and kept in memory on request."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sda.data.files import FileError, LabelCodec, read_image, read_pair
from sda.data.item import Item
from sda.pictures import resize_image, resize_nearest


@dataclass(frozen=True)
class Sample:
    """image: uint8 (3, H, W) RGB. label: uint8 (H, W) train ids, 255 = ignored; None for unlabelled images."""

    image: Tensor
    label: Tensor | None


class Dataset(torch.utils.data.Dataset):
    """The samples of a list of items, all resized to one size or each at its own size.

    Args:
        items: what to read.
        codec: decodes the labels of the items that have one; None reads images only.
        size: (height, width) to resize images to (bilinear, antialiased); None keeps their own sizes.
        native_labels: keep labels at their own size (for evaluation) instead of resizing them (nearest) with the image.
    """

    def __init__(self, items: list[Item], codec: LabelCodec | None, size: tuple[int, int] | None, native_labels: bool = False):
        self.items = items
        self.codec = codec
        self.size = size and (size[0], size[1])
        self.native_labels = native_labels
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
            image, label = read_pair(item.image, item.label, codec)
        if self.size:
            image = resize_image(image, self.size)
            if label is not None and not self.native_labels:
                label = np.array(resize_nearest(label, self.size))
        return _sample(np.array(image), label)


def _sample(image: np.ndarray, label: np.ndarray | None) -> Sample:
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    return Sample(tensor, None if label is None else torch.from_numpy(label))


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
