"""Write the doctor's report: report.json, and contact.png with pairs to look at."""

from pathlib import Path

import numpy as np
from PIL import Image

from sda.data.descriptor import Descriptor
from sda.data.files import LabelCodec, read_pair
from sda.data.inspect.doctor import Examination
from sda.data.item import Item
from sda.data.listing import Listing
from sda.pictures import colorize, overlay, picture_table, resize_image, resize_nearest, size_within
from sda.system.atomic import write_json, written_picture

PAIRS = 12  # maximum number of pairs on the contact sheet
WIDTH = 512  # maximum width of a picture on the contact sheet


def write_report(folder: Path, found: Examination, descriptor: Descriptor, listings: dict[str, Listing]) -> None:
    """Write report.json to a folder, and contact.png, with image, label and overlay of some good pairs, if there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", found.to_dict())
    bad, pairs = {problem.key for problem in found.bad}, []
    for listing in listings.values():
        codec = LabelCodec(descriptor, listing.encoding, np.arange(256, dtype=np.uint8))
        pairs += [(item, codec) for item in listing.items if item.label is not None and item.key not in bad]
    colors = descriptor.table().colors
    rows = [_pictures(item, codec, list(colors.values())) for item, codec in pairs[:: max(1, -(-len(pairs) // PAIRS))]]
    if rows:
        with written_picture(folder / "contact.png") as file:
            picture_table(rows, ["image", "label", "both"], colors).save(file, "PNG")


def _pictures(item: Item, codec: LabelCodec, colors: list[list[int]]) -> list[np.ndarray]:
    """Return a pair as three uint8 pictures (H, W, 3): image, label and overlay."""
    image, label = _read(item, codec)
    size = size_within((image.height, image.width), min(image.width, WIDTH))
    picture = np.asarray(resize_image(image, size))
    mask = colorize(resize_nearest(label, size), colors)
    return [picture, mask, overlay(picture, mask)]


def _read(item: Item, codec: LabelCodec) -> tuple[Image.Image, np.ndarray]:
    if item.stored is not None:
        return Image.fromarray(item.stored.image()), codec.map(item.stored.label())
    return read_pair(item, codec)
