"""A prediction as a picture."""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image

from sda.data import descriptor as descriptors
from sda.data.descriptor import label_values, map_classes
from sda.errors import SdaError
from sda.labels import IGNORE
from sda.pictures import GREY, colorize, overlay
from sda.runs.trained import Prediction, Run


def id_values(run: Run, kinds: Iterable[str]) -> dict[str, np.ndarray]:
    """For those of `kinds` that hold ids, the (256,) uint8 table train id → value in the file.

    `ids`: as in the label files of the run's target. `cityscapes`: the label ids of Cityscapes (7 is road).

    Raises:
        SdaError: a class has no such id.
    """
    tables = {}
    for kind in kinds:
        if kind == "train_ids":
            tables[kind] = np.arange(256, dtype=np.uint8)
        elif kind in ("ids", "cityscapes"):
            described = descriptors.load(run.recipe.target if kind == "ids" else kind)
            try:
                mapping, _ = map_classes(described, run.table_name, run.table)
            except SdaError:  # nothing maps
                mapping = np.full(256, IGNORE, np.uint8)
            tables[kind], named = np.full(256, IGNORE, np.uint8), set()
            for value, train_id in label_values(described, "ids").items():
                index = mapping[train_id]
                if index != IGNORE and index not in named:
                    tables[kind][index] = value
                    named.add(index)
            lacking = [name for index, name in enumerate(run.table.names) if index not in named]
            if lacking:
                raise SdaError(
                    f"--as {kind}: {described.title} has no id for {', '.join(lacking[:4])}{', …' if lacking[4:] else ''} "
                    f"among this run's classes ({run.table_name}); --as train_ids takes any"
                )
    return tables


def render(kind: str, picture: Image.Image, prediction: Prediction, values: dict[str, np.ndarray]) -> Image.Image:
    """One output: RGB, or single-channel. Ids have a palette, the colours of the classes, but for the Cityscapes server.

    Args:
        picture: the RGB image that the prediction is of. values: of `id_values`.
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
    out = io.BytesIO()
    if suffix == ".jpg":
        image.save(out, "JPEG", quality=92, subsampling=0)
    else:
        image.save(out, "PNG")
    return out.getvalue()
