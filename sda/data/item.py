"""One image of a dataset: its name, its files, or where it is stored."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


class Stored(Protocol):
    """An image and its label that are read from elsewhere than from files of their own."""

    @property
    def bytes(self) -> int: ...  # size of the image's file
    @property
    def sha256(self) -> str: ...  # of the image's file, in hexadecimal digits
    @property
    def path(self) -> Path: ...  # where it is read from

    def image(self) -> np.ndarray: ...  # (H, W, 3) uint8
    def label(self) -> np.ndarray: ...  # (H, W) uint8, train ids of the dataset's own table


@dataclass(frozen=True)
class Item:
    """One image: its path relative to the root (the portable name in split lists), its file and its label's, if any.

    Where it is `stored` in a pack, the files are the pack's originals and may be gone.
    """

    key: str
    image: Path
    label: Path | None
    stored: Stored | None = None
