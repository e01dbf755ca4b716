"""One mask per class: several files make the label of an image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sda.data.files import SKIP, FileError, LabelFile, read_label


@dataclass(frozen=True)
class Masks:
    """The masks of an image, and the class of each. Implements `Drawn`."""

    files: tuple[Path, ...]
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        return ", ".join(self.classes)

    def read(self, image: Path) -> LabelFile:
        """Paint the masks, each over those before it: what is not 0 is the class. A mask has one value besides 0.

        Raises:
            FileError: a mask cannot be read, has more values, or another size than the first.
        """
        values = np.zeros((0, 0), np.uint8)
        for number, path in enumerate(self.files, start=1):
            mask = read_label(path).values
            if len(found := np.unique(mask[mask != 0])) > 1:
                listed = ", ".join(map(str, found[:8]))
                raise FileError(f"{path}: a mask of one class has 0 and one other value, found {listed}; export it again, {SKIP}")
            if number == 1:
                values = np.zeros(mask.shape, np.uint16)
            elif mask.shape != values.shape:
                sizes = f"{mask.shape[1]}x{mask.shape[0]}, but {self.files[0].name} is {values.shape[1]}x{values.shape[0]}"
                raise FileError(f"{path}: this mask is {sizes}: the masks of an image must have one size; fix them, {SKIP}")
            values[mask != 0] = number
        return LabelFile(values, names=("", *self.classes))
