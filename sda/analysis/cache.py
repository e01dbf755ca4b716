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
from pydantic import ConfigDict, Field, InstanceOf
from torch.utils.data import Dataset

from sda import shelf
from sda.data.descriptor import Color
from sda.data.item import Item
from sda.data.packs import hdf5
from sda.errors import SdaError
from sda.labels import IGNORE

FORMAT = 3
LARGEST = 2**24  # pixels of a side of an image
Text = InstanceOf[str]  # file names may not be valid Unicode, which pydantic's own type refuses
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


def all_texts(file: h5py.File) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Read all text in a cache by the name of its dataset or attribute: lists of texts, and single texts."""
    lists = {name: hdf5.texts(file, name) for name in ("images/path", *LISTS)}
    lists |= {name: hdf5.text_list(file, name) for name in ("classes", "domains")}
    return lists, {name: hdf5.text(file, name) for name in ("preprocessing", "network_sha256", "about")}


def text_hash(lists: dict[str, list[str]], single: dict[str, str]) -> str:
    """Return the SHA-256 of all text in a cache; HDF5 itself keeps no checksum of text."""
    return hashlib.sha256(json.dumps([*lists.values(), *single.values()]).encode()).hexdigest()


class _Domain(shelf.Strict):
    model_config = ConfigDict(extra="allow")

    name: Text
    root: Text


class _Settings(shelf.Strict):
    model_config = ConfigDict(extra="allow")

    network: str
    per_class: int


class _About(shelf.Strict):
    """The JSON in the attribute about: the fields that commands use."""

    model_config = ConfigDict(extra="allow")

    run: Text
    target: Text
    sources: list[Text] = Field([])
    classes: dict[str, Color]
    domains: list[_Domain]
    settings: _Settings


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
        SdaError: the file is missing, truncated, damaged, open for writing, or not a cache of this format; or its parts do not
            fit together.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._opened: tuple[int, h5py.File] | None = None
        self._datasets: dict[str, h5py.Dataset] = {}
        with self._reading():
            file = self._file()
            if not hdf5.is_kind(file, KIND) or hdf5.number(file, "format") != FORMAT:
                raise SdaError(f"{path}: not a feature cache that this version of sda can read; make one with sda features")
            lists, single = all_texts(file)
            if text_hash(lists, single) != hdf5.text(file, "text_sha256"):
                raise OSError("damaged: the checksum of its text is wrong")
            about = shelf.check(_About, json.loads(single["about"]), f"{path}: metadata")
            self.about: dict = about.model_dump()
            self.paths = lists["images/path"]
            self.left_out, self.labelled, self.scored = (lists[name] for name in LISTS)
            self.has_projection = "projected" in file
            self.classes: dict = self.about["classes"]
            self.domains = [domain.name for domain in about.domains]
            self.settings: dict = self.about["settings"]
            self._rows = self._dataset("images/pixels")[:]
            self._size = self._checked("size", self._dataset("images/size")[:])
            self.domain = self._dataset("images/domain")[:]
            self._check()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None, "_datasets": {}}

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
            wanted = names or [name for name in PIXELS if name != "projected" or self.has_projection]
            found = {name: self._checked(name, self._dataset(name)[begin:end]) for name in wanted}
            images = np.searchsorted(self._rows[:, 1], np.arange(begin, end), side="right")
            if "image" in found and (found["image"] != images).any():
                raise ValueError("image has another order than images/pixels")
            if "position" in found and (found["position"] >= self._size[images]).any():
                raise ValueError("position is outside of the image")
            return found

    def blocks(self, *names: str, rows: int = 65536) -> Iterator[dict[str, np.ndarray]]:
        """Read all pixels in blocks of `rows`, so that memory stays bounded."""
        for begin in range(0, self.pixels, rows):
            yield self.block(begin, min(begin + rows, self.pixels), *names)

    def of_images(self, name: str) -> np.ndarray:
        """Read one of the datasets in IMAGES."""
        with self._reading():
            return self._checked(name, self._dataset(f"images/{name}")[:])

    def image_row(self, name: str, index: int) -> np.ndarray:
        """Read one row of a dataset in IMAGES."""
        with self._reading():
            return self._checked(name, self._dataset(f"images/{name}")[index])

    def blocks_of_images(self, name: str, megabytes: int) -> Callable[[], Iterator[tuple[int, np.ndarray]]]:
        """Return a function that iterates over a dataset in IMAGES in blocks (first row, rows). A small one is kept in memory."""
        with self._reading():
            dataset = self._dataset(f"images/{name}")
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
                        block = self._checked(name, self._dataset(f"images/{name}")[first:last])
                    yield first, block

        return iterate

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except hdf5.FAULTS as error:
            raise SdaError(hdf5.unreadable(self.path, error, "make it with sda features")) from None

    def _file(self) -> h5py.File:
        if self._opened is None or self._opened[0] != os.getpid():
            if self._opened is not None:  # inherited by a fork: HDF5 would return the parent's handle again
                self._opened[1].close()
            self._opened, self._datasets = (os.getpid(), hdf5.open_file(self.path, locking=None)), {}
        return self._opened[1]

    def _dataset(self, name: str) -> h5py.Dataset:
        """Return one of the datasets in PIXELS or IMAGES, checked when it is first read."""
        file = self._file()
        if name not in self._datasets:
            table, rows = (IMAGES, len(self)) if name.startswith("images/") else (PIXELS, self.pixels)
            short = name.removeprefix("images/")
            self._datasets[name] = hdf5.dataset(file, name, table[short][0], (rows, *self._sides.get(short, ())))
        return self._datasets[name]

    @property
    def _sides(self) -> dict[str, tuple[int | None, ...]]:
        """The shapes of the rows of datasets; those that are not listed have one value per row."""
        classes, features = len(self.classes), None
        if (found := self._datasets.get("features")) is not None:
            features = found.shape[1]
        return {
            "features": (None,),
            "projected": (None,),
            "position": (2,),
            "size": (2,),
            "pixels": (2,),
            "mean": (features,),
            "share": (classes,),
            "class_entropy": (classes,),
        }

    def _check(self) -> None:
        """Check that every image belongs to a domain and has its own pixels, one after the other, and that the shapes agree."""
        begins, ends = self._rows.T
        if not len(self) or begins[0] != 0 or (begins[1:] != ends[:-1]).any() or (ends < begins).any():
            raise ValueError("images/pixels does not list the pixels of the images one after the other")
        if self.domain.max() >= len(self.domains):
            raise ValueError("images/domain names a domain that does not exist")
        for name in PIXELS:
            if name != "projected" or self.has_projection:
                self._dataset(name)
        for name in IMAGES:
            if name != "path":
                self._dataset(f"images/{name}")

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        """Return values that were read. Raise ValueError if they are not in the range of the dataset `name`."""
        if name == "prediction":
            bad = values >= len(self.classes)
        elif name == "label":
            bad = (values >= len(self.classes)) & (values != IGNORE)
        elif name in ("size", "position"):
            bad = (values < (name == "size")) | (values > LARGEST)
        elif values.dtype.kind == "f":
            bad = ~np.isfinite(values)
        else:
            return values
        if bad.any():
            raise ValueError(f"{name} has values out of range")
        return values
