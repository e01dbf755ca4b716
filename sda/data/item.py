"""One image of a dataset and its label: their files, or their place in a pack."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from sda.data.files import LabelFile


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


class Drawn(Protocol):
    """A label that is not one image of ids or colours: annotations, or one mask per class."""

    @property
    def files(self) -> tuple[Path, ...]: ...  # that it is read from
    @property
    def name(self) -> str: ...  # in its file, if that has the labels of many images; else ""

    def read(self, image: Path) -> "LabelFile": ...  # raises FileError


@dataclass(frozen=True)
class Item:
    """One image.

    Attributes:
        key: its path relative to the root: the portable name in split lists.
        image, label: the files; label is None if there is none. For an image in a pack, the original files, which may be gone.
        stored: its place in a pack, if any.
        drawn: how to read the label, if it is not an image: `label` is then the first of its files.
    """

    key: str
    image: Path
    label: Path | None
    stored: Stored | None = None
    drawn: Drawn | None = None

    @property
    def label_files(self) -> tuple[Path, ...]:
        """All files that the label is read from; empty if there is no label."""
        if self.label is None:
            return ()
        return self.drawn.files if self.drawn else (self.label,)
