"""A list of items as tensors: decoded, resized, and kept in memory when asked."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sda.data.files import FileError, LabelCodec, read_image, read_pair
from sda.data.item import Item


@dataclass(frozen=True)
class Sample:
    """image: uint8 (3, H, W) RGB. label: uint8 (H, W) train ids, 255 = ignored; None for unlabelled images."""

    image: Tensor
    label: Tensor | None


class Dataset(torch.utils.data.Dataset):
    """Items, resized to one size or not at all.

    Args:
        items: what to read.
        codec: decodes the labels of those items that have one; None reads images alone.
        size: (height, width) that images are resized to (bilinear, antialiased); None leaves each at its own.
        native_labels: keep labels at their own size (evaluation) rather than resizing them (nearest) with the image.
    """

    def __init__(self, items: list[Item], codec: LabelCodec | None, size: tuple[int, int] | None, native_labels: bool = False):
        self.items = items
        self.codec = codec
        self.size = size and tuple(size)
        self.native_labels = native_labels
        self._memory: list[Sample | FileError] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`. Raises FileError when its files cannot be used."""
        if self._memory is None:
            return self._read(index)
        sample = self._memory[index]
        if isinstance(sample, FileError):
            raise sample
        return sample

    def preload(self, progress: Callable[[int, int], None] = lambda done, total: None, threads: int = 4) -> None:
        """Decode everything once and keep it: for sets that are small at training resolution."""

        def read(index: int) -> Sample | FileError:
            try:
                return self._read(index)
            except FileError as error:
                return error

        memory = []
        with ThreadPoolExecutor(threads) as pool:
            for sample in pool.map(read, range(len(self))):
                memory.append(sample)
                progress(len(memory), len(self))
        self._memory = memory

    def _read(self, index: int) -> Sample:
        item, label = self.items[index], None
        if item.stored is not None:
            label = None if self.codec is None or item.label is None else torch.from_numpy(self.codec.map(item.stored.label()))
            return Sample(torch.from_numpy(item.stored.image()).permute(2, 0, 1).contiguous(), label)
        if self.codec is None or item.label is None:
            image = read_image(item.image)
        else:
            image, label = read_pair(item.image, item.label, self.codec)
            if self.size and not self.native_labels and label.shape != self.size:
                label = np.asarray(Image.fromarray(label).resize(self.size[::-1], Image.Resampling.NEAREST))
            label = torch.from_numpy(np.array(label))
        if self.size and image.size != self.size[::-1]:
            image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
        return Sample(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), label)


class Guarded(torch.utils.data.Dataset):
    """Samples, or the faults in their place, so that a loader process can report a file by name."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Sample | FileError]:
        try:
            return index, self.dataset[index]
        except FileError as error:
            return index, error
