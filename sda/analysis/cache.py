"""Read feature caches: a network's features and predictions for the pixels of one or several domains, in one HDF5 file.

docs/features.md describes the format.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from torch.utils.data import Dataset

from sda.data.item import Item
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.system.resumable import first_line

FORMAT = 3
KIND = "sda features"

# HDF5 datasets with a row per pixel, and with a row per image: name → type, unit and meaning. The file contains these texts.
PIXELS = {
    "features": ("float16", "", "(N, F) input of the classifier"),
    "projected": ("float16", "", "(N, D) features projected by the head g into the space of the bank; only for runs with one"),
    "label": ("uint8", "train id", "(N,) in the label file; 255: no label, or ignored"),
    "prediction": ("uint8", "train id", "(N,) most probable class: the pseudo-label"),
    "confidence": ("float32", "probability, 0 to 1", "(N,) of the predicted class"),
    "entropy": ("float32", "0 to 1", "(N,) entropy of the prediction, divided by log C"),
    "drawn": (
        "uint8",
        "bits",
        "(N,) 1: sampled by predicted class; 2: sampled by label, or by predicted class if the image has no label",
    ),
    "image": ("int32", "index into /images", "(N,) image that contains the pixel; ascending"),
    "position": ("int32", "pixels of the network's input", "(N, 2) row and column of the pixel's centre"),
}
IMAGES = {
    "path": ("text", "", "(M,) relative to the root of its dataset"),
    "domain": ("uint8", "index into the attribute domains", "(M,)"),
    "size": ("int32", "pixels", "(M, 2) height and width of the network's input"),
    "pixels": ("int64", "index into the pixels", "(M, 2) first row of the image's pixels, and the row after the last"),
    "mean": ("float16", "", "(M, F) mean of the features over the whole image"),
    "share": ("float32", "0 to 1", "(M, C) share of the image that is predicted as each class"),
    "class_entropy": ("float32", "0 to 1", "(M, C) mean entropy of these pixels, divided by log C; 0 if there are none"),
}

LISTS = {
    "left_out": "why files were skipped",
    "labelled": "target images whose labels the network was trained on",
    "scored": "target images that it was scored on",
}


def classes_of(block: dict[str, np.ndarray]) -> np.ndarray:
    """Return the class of each pixel of a block: its label, or its prediction if it has none."""
    return np.where(block["label"] == IGNORE, block["prediction"], block["label"])


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale rows (…, F) to length 1; rows of zeros stay zero."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(min=1e-12)


def texts(dataset: h5py.Dataset) -> list[str]:
    """Read a dataset of text."""
    return [text.decode(errors="surrogateescape") for text in dataset[:]]


def all_texts(file: h5py.File) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Read all text in a cache by the name of its dataset or attribute: lists of texts, and single texts."""
    lists = {name: texts(file[name]) for name in ("images/path", *LISTS)}
    lists |= {name: list(file.attrs[name]) for name in ("classes", "domains")}
    return lists, {name: file.attrs[name] for name in ("preprocessing", "network_sha256", "about")}


def text_hash(lists: dict[str, list[str]], single: dict[str, str]) -> str:
    """Return the SHA-256 of all text in a cache; HDF5 itself keeps no checksum of text."""
    return hashlib.sha256(json.dumps([*lists.values(), *single.values()]).encode()).hexdigest()


class FeatureCache(Dataset):
    """A feature cache, read image by image or in blocks of pixels.

    It may be pickled and forked: every process opens the file itself when it first reads.

    Attributes:
        classes: name → colour, in the order of the train ids.
        domains: their names.
        paths, domain: of each image: its path relative to the root of its dataset, and the index of its domain.
        labelled, scored: the target images whose labels the network was trained on, and those that it was scored on.
        left_out: why files were skipped.
        about: how the cache was made.
        settings: everything that determines the contents.

    Raises:
        SdaError: the file is missing, truncated, damaged, or not a cache of this format.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._opened: tuple[int, h5py.File] | None = None
        with self._reading():
            file = self._file()
            if file.attrs.get("kind") != KIND or file.attrs.get("format") != FORMAT:
                raise SdaError(f"{path}: not a feature cache that this version of sda can read; make one with sda features")
            lists, single = all_texts(file)
            if text_hash(lists, single) != file.attrs["text_sha256"]:
                raise OSError("damaged: the checksum of its text is wrong")
            self.about: dict = json.loads(single["about"])
            self.paths = lists["images/path"]
            self.left_out, self.labelled, self.scored = (lists[name] for name in LISTS)
            self.has_projection = "projected" in file
            self._rows = file["images/pixels"][:]
            self.domain = file["images/domain"][:]
        self.classes: dict = self.about["classes"]
        self.domains = [domain["name"] for domain in self.about["domains"]]
        self.settings: dict = self.about["settings"]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Read all pixels of one image, by the names in PIXELS."""
        return self.block(*self._rows[index])

    def items(self, domain: str) -> list[Item]:
        """Return the images of a domain. Raise SdaError if the cache does not have it."""
        mine = self.images_of(domain)
        root = Path(self.about["domains"][self.domains.index(domain)]["root"])
        return [Item(self.paths[index], root / self.paths[index], None) for index in mine]

    def images_of(self, domain: str) -> np.ndarray:
        """Return the indices of a domain's images. Raise SdaError if the cache does not have it."""
        if domain not in self.domains:
            raise SdaError(f"{self.path}: has no domain {domain!r}, only {', '.join(self.domains)}")
        return np.flatnonzero(self.domain == self.domains.index(domain))

    @property
    def pixels(self) -> int:
        """The number of pixels."""
        return int(self._rows[-1, 1])

    def block(self, begin: int, end: int, *names: str) -> dict[str, np.ndarray]:
        """Read the pixels from `begin` to before `end`.

        Args:
            names: which of the datasets in PIXELS to read; by default all.

        Raises:
            SdaError: `projected` is requested, but the cache does not have it.
        """
        if "projected" in names and not self.has_projection:
            raise SdaError(f"{self.path}: has no projected features, which only networks trained with a memory bank have")
        with self._reading():
            file = self._file()
            return {name: file[name][begin:end] for name in names or [name for name in PIXELS if name in file]}

    def blocks(self, *names: str, rows: int = 65536) -> Iterator[dict[str, np.ndarray]]:
        """Read all pixels in blocks of `rows`, so that memory stays bounded."""
        for begin in range(0, self.pixels, rows):
            yield self.block(begin, min(begin + rows, self.pixels), *names)

    def of_images(self, name: str) -> np.ndarray:
        """Read one of the datasets in IMAGES."""
        with self._reading():
            return self._file()[f"images/{name}"][:]

    def image_row(self, name: str, index: int) -> np.ndarray:
        """Read one row of a dataset in IMAGES."""
        with self._reading():
            return self._file()[f"images/{name}"][index]

    def blocks_of_images(self, name: str, megabytes: int) -> Callable[[], Iterator[tuple[int, np.ndarray]]]:
        """Return a function that iterates over a dataset in IMAGES in blocks (first row, rows). A small one is kept in memory."""
        with self._reading():
            dataset = self._file()[f"images/{name}"]
            row, total = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:])), len(dataset)
        room = int(megabytes * 2**20) // (4 * row)  # a block is copied up to three times
        whole = self.of_images(name) if total <= room else None

        def iterate() -> Iterator[tuple[int, np.ndarray]]:
            for first in range(0, total, max(1, min(room, 8192))):
                last = first + max(1, min(room, 8192))
                if whole is not None:
                    yield first, whole[first:last]
                else:
                    with self._reading():
                        block = self._file()[f"images/{name}"][first:last]
                    yield first, block

        return iterate

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py has no exceptions of its own
            reason = "no such file" if not self.path.exists() else f"cannot be read ({first_line(error)})"
            raise SdaError(f"{self.path}: {reason}; make it with sda features") from None

    def _file(self) -> h5py.File:
        if self._opened is None or self._opened[0] != os.getpid():
            if self._opened is not None:  # inherited by a fork: HDF5 would return the parent's handle again
                self._opened[1].close()
            self._opened = os.getpid(), h5py.File(self.path, "r")
        return self._opened[1]
