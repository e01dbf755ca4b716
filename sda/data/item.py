"""One image of a dataset and its label: their files, or their place in a pack."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


class Stored(Protocol):
    """An image and its label that are stored in a pack, not in files of their own."""

    @property
    def bytes(self) -> int: ...  # size of the image's file
    @property
    def sha256(self) -> str: ...  # of the image's file, in hexadecimal digits
    @property
    def path(self) -> Path: ...  # of the pack

    def image(self) -> np.ndarray: ...  # (H, W, 3) uint8
    def label(self) -> np.ndarray: ...  # (H, W) uint8, train ids of the dataset's own table


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        key: its path relative to the root: the portable name in split lists.
        image, label: the files; label is None if there is none. For an image in a pack, the original files, which may be gone.
        stored: its place in a pack, if any.
    """

    key: str
    image: Path
    label: Path | None
    stored: Stored | None = None
