"""Render a prediction as an image."""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from sda.data import descriptor
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.pictures import GREY, colorize, overlay
from sda.runs.trained import Prediction, Run


def id_values(run: Run, kinds: Iterable[str]) -> dict[str, np.ndarray]:
    """Return a table (256,) uint8, train id → value in the file, for each of the `kinds` that contain ids.

    `ids`: ids in the label files of the target. `cityscapes`: label ids of Cityscapes (7 is road).

    Raises:
        SdaError: a class has no id.
    """
    tables: dict[str, np.ndarray] = {}
    for kind in kinds:
        if kind == "train_ids":
            tables[kind] = np.arange(256, dtype=np.uint8)
        elif kind in ("ids", "cityscapes"):
            dataset = descriptor.load(run.recipe.target if kind == "ids" else kind)
            try:
                mapping, _ = descriptor.map_classes(dataset, descriptor.Classes(run.table_name, run.table))
            except SdaError:  # the dataset has none of the classes
                mapping = np.full(256, IGNORE, np.uint8)
            tables[kind], found = np.full(256, IGNORE, np.uint8), set()
            for value, train_id in descriptor.label_values(dataset, "ids").items():
                index = int(mapping[train_id])
                if index != IGNORE and index not in found:
                    tables[kind][index] = value
                    found.add(index)
            missing = [name for index, name in enumerate(run.table.names) if index not in found]
            if missing:
                raise SdaError(
                    f"--as {kind}: {dataset.title} has no id for {', '.join(missing[:4])}{', …' if missing[4:] else ''}, "
                    f"classes of this run ({run.table_name}); use --as train_ids instead"
                )
    return tables


def render(kind: str, picture: Image.Image, prediction: Prediction, values: dict[str, np.ndarray]) -> Image.Image:
    """Return one output: an RGB image, or one channel. Ids get a palette of the class colours, except for the Cityscapes server.

    Args:
        picture: the RGB image that was segmented. values: see `id_values`.
    """
    if kind == "confidence":
        return Image.fromarray(np.round(255 * prediction.confidence.clip(0, 1)).astype(np.uint8))
    colors = list(prediction.table.colors.values())
    if kind in values:
        ids = Image.fromarray(values[kind][prediction.labels])
        if kind != "cityscapes":
            palette = np.full((256, 3), GREY, np.uint8)
            palette[values[kind][: len(colors)]] = colors
            ids.putpalette(palette.tobytes())
        return ids
    mask = colorize(prediction.labels, colors)
    return Image.fromarray(mask if kind == "color" else overlay(np.asarray(picture), mask))


def encode(image: Image.Image, suffix: str) -> bytes:
    """Return the content of an image file: JPEG for .jpg, else PNG."""
    out = io.BytesIO()
    if suffix == ".jpg":
        image.save(out, "JPEG", quality=92, subsampling=0)
    else:
        image.save(out, "PNG")
    return out.getvalue()
