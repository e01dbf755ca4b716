"""The feature cache as it is read: what a network makes of the pixels of one or several domains, in one HDF5 file
(docs/features.md)."""

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

FORMAT = 3
KIND = "sda features"

# What there is of each pixel and of each image: name → type, unit, and what it is.
PIXELS = {
    "features": ("float16", "", "(N, F) what the classifier reads, before it"),
    "projected": ("float16", "", "(N, D) features through the head g: the space of the bank; only of runs that have one"),
    "label": ("uint8", "train id", "(N,) from the label file; 255: none, or ignored"),
    "prediction": ("uint8", "train id", "(N,) the most probable class: the pseudo-label"),
    "confidence": ("float32", "probability, 0 to 1", "(N,) of that class"),
    "entropy": ("float32", "0 to 1", "(N,) of the prediction, over log C"),
    "drawn": (
        "uint8",
        "bits",
        "(N,) 1: drawn as a pixel of its predicted class; 2: of its label's, or predicted where the image has none",
    ),
    "image": ("int32", "index into /images", "(N,) where the pixel comes from; ascending"),
    "position": ("int32", "pixels of the network's input", "(N, 2) row and column of the pixel's centre"),
}
IMAGES = {
    "path": ("text", "", "(M,) relative to the root of its dataset"),
    "domain": ("uint8", "index into the attribute domains", "(M,)"),
    "size": ("int32", "pixels", "(M, 2) height and width of the network's input"),
    "pixels": ("int64", "index into the pixels", "(M, 2) first row of the image's pixels, and the row after the last"),
    "mean": ("float16", "", "(M, F) mean of the features over all of the image"),
    "share": ("float32", "0 to 1", "(M, C) share of the image's pixels that is predicted as each class"),
    "class_entropy": ("float32", "0 to 1", "(M, C) mean entropy of these, over log C; 0 where there are none"),
}

LISTS = {
    "left_out": "why files were left out",
    "labelled": "target images whose labels the network was trained on",
    "scored": "target images that it was scored on",
}


def classes_of(block: dict[str, np.ndarray]) -> np.ndarray:
    """The class of each pixel of a block: by its label where it has one, else by prediction."""
    return np.where(block["label"] == IGNORE, block["prediction"], block["label"])


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (…, F) at length 1; those of zeros stay."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(min=1e-12)


def texts(dataset: h5py.Dataset) -> list[str]:
    """What a dataset of text holds."""
    return [text.decode(errors="surrogateescape") for text in dataset[:]]


def all_texts(file: h5py.File) -> dict[str, list[str] | str]:
    """All text in a cache, by dataset or attribute."""
    held = {name: texts(file[name]) for name in ("images/path", *LISTS)}
    held |= {name: list(file.attrs[name]) for name in ("classes", "domains")}
    return held | {name: file.attrs[name] for name in ("preprocessing", "network_sha256", "about")}


def text_hash(held: dict[str, list[str] | str]) -> str:
    """SHA-256 of all text in a cache, which HDF5 keeps no checksum of."""
    return hashlib.sha256(json.dumps(list(held.values())).encode()).hexdigest()


class FeatureCache(Dataset):
    """A cache that is read: image after image, or in blocks of pixels. May be pickled and forked: every process opens the file
    itself, when it first reads.

    Attributes:
        classes: name → colour, in the order of the train ids. domains: their names. paths, domain: of each image.
        labelled: the target images whose labels the network was trained on; scored: those that it was scored on. left_out: why
            files are not in it.
        about: how it was made. settings: what decides what is in it.

    Raises:
        SdaError: no such file, cut short, damaged, or no cache of this format.
    """

    def __init__(self, path: Path):
        self.path, self._opened = Path(path), None
        with self._reading():
            file = self._file()
            if file.attrs.get("kind") != KIND or file.attrs.get("format") != FORMAT:
                raise SdaError(
                    f"{path}: not a feature cache of this version of sda; name another file, and make it with sda features"
                )
            held = all_texts(file)
            if text_hash(held) != file.attrs["text_sha256"]:
                raise OSError("damaged: its texts are not those that were written")
            self.about: dict = json.loads(held["about"])
            self.paths = held["images/path"]
            self.left_out, self.labelled, self.scored = (held[name] for name in LISTS)
            self.has_projection = "projected" in file
            self._rows = file["images/pixels"][:]
            self.domain = file["images/domain"][:]
        self.classes: dict = self.about["classes"]
        self.domains = [domain["name"] for domain in self.about["domains"]]
        self.settings: dict = self.about["settings"]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        """Images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """All pixels of one image, by the names in PIXELS."""
        return self.block(*self._rows[index])

    def items(self, domain: str) -> list[Item]:
        """The images of a domain. SdaError when the cache does not hold it."""
        mine = self.images_of(domain)
        root = Path(self.about["domains"][self.domains.index(domain)]["root"])
        return [Item(self.paths[index], root / self.paths[index], None) for index in mine]

    def images_of(self, domain: str) -> np.ndarray:
        """The numbers of a domain's images. SdaError when the cache does not hold it."""
        if domain not in self.domains:
            raise SdaError(f"{self.path}: holds no domain {domain!r}; it has {', '.join(self.domains)}")
        return np.flatnonzero(self.domain == self.domains.index(domain))

    @property
    def pixels(self) -> int:
        """How many there are."""
        return int(self._rows[-1, 1])

    def block(self, begin: int, end: int, *names: str) -> dict[str, np.ndarray]:
        """The pixels from `begin` to before `end`: those datasets that are named, or all.

        Raises:
            SdaError: `projected` is named, and the cache holds none.
        """
        if "projected" in names and not self.has_projection:
            raise SdaError(f"{self.path}: holds no projected features, which only networks trained with a memory bank have")
        with self._reading():
            file = self._file()
            return {name: file[name][begin:end] for name in names or [name for name in PIXELS if name in file]}

    def blocks(self, *names: str, rows: int = 65536) -> Iterator[dict[str, np.ndarray]]:
        """All pixels in blocks, so that memory stays bounded."""
        for begin in range(0, self.pixels, rows):
            yield self.block(begin, min(begin + rows, self.pixels), *names)

    def of_images(self, name: str) -> np.ndarray:
        """One of the datasets of images."""
        with self._reading():
            return self._file()[f"images/{name}"][:]

    def image_row(self, name: str, index: int) -> np.ndarray:
        """One row of such a dataset."""
        with self._reading():
            return self._file()[f"images/{name}"][index]

    def blocks_of_images(self, name: str, megabytes: int) -> Callable[[], Iterator[tuple[int, np.ndarray]]]:
        """A way to go through such a dataset, again and again: (first row, rows). It is kept in memory where that suffices."""
        with self._reading():
            dataset = self._file()[f"images/{name}"]
            row, total = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:])), len(dataset)
        room = int(megabytes * 2**20) // (4 * row)  # beside a block there are copies of it
        whole = self.of_images(name) if total <= room else None

        def go() -> Iterator[tuple[int, np.ndarray]]:
            for first in range(0, total, max(1, min(room, 8192))):
                last = first + max(1, min(room, 8192))
                if whole is not None:
                    yield first, whole[first:last]
                else:
                    with self._reading():
                        block = self._file()[f"images/{name}"][first:last]
                    yield first, block

        return go

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError) as error:  # h5py knows no exception of its own
            reason = "no such file" if not self.path.exists() else f"cannot be read ({str(error).splitlines()[0]})"
            raise SdaError(f"{self.path}: {reason}; make it with sda features") from None

    def _file(self) -> h5py.File:
        if self._opened is None or self._opened[0] != os.getpid():
            if self._opened is not None:  # inherited by a fork: HDF5 would hand out the parent's handle again
                self._opened[1].close()
            self._opened = os.getpid(), h5py.File(self.path, "r")
        return self._opened[1]
