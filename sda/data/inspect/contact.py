"""The doctor's report as files: report.json and a contact sheet."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sda.data.descriptor import Descriptor
from sda.data.files import LabelCodec, read_pair
from sda.data.inspect.doctor import Report
from sda.data.item import Item
from sda.data.listing import Listing
from sda.pictures import colorize, overlay, picture_table, resize_nearest

CONTACTS = 12  # pairs on the contact sheet


def write_examination(folder: Path, found: Report, descriptor: Descriptor, listings: dict[str, Listing]) -> None:
    """Write report.json, and contact.png: pairs from all over the set, as image, label and both."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(found.to_dict(), indent=2) + "\n", encoding="utf-8")
    bad = {problem.key for problem in found.bad}
    codecs = {
        split: LabelCodec(descriptor, listing.encoding, np.arange(256, dtype=np.uint8)) for split, listing in listings.items()
    }
    good = [
        (item, codecs[split])
        for split, listing in listings.items()
        for item in listing.items
        if item.label is not None and item.key not in bad
    ]
    colors = descriptor.table().colors
    rows = []
    for item, codec in good[:: max(1, -(-len(good) // CONTACTS))]:
        image, label = _pair(item, codec)
        width = min(image.width, 512)
        size = (width, round(image.height * width / image.width))
        picture = np.asarray(image.resize(size))
        mask = colorize(resize_nearest(label, size[::-1]), list(colors.values()))
        rows.append([picture, mask, overlay(picture, mask)])
    if rows:
        picture_table(rows, ["image", "label", "both"], colors).save(folder / "contact.png")


def _pair(item: Item, codec: LabelCodec) -> tuple[Image.Image, np.ndarray]:
    if item.stored is not None:
        return Image.fromarray(item.stored.image()), codec.map(item.stored.label())
    return read_pair(item.image, item.label, codec)
