"""Draw the pixels that are nearest to entries of a memory bank, to check whether the entries belong to their class."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sda.analysis.bank import Contents
from sda.analysis.cache import FeatureCache, classes_of, unit
from sda.data.files import read_image
from sda.labels import IGNORE
from sda.methods.parts.bank import SOURCE
from sda.pictures import GREY, format_of, legend, resize_image
from sda.system.atomic import written_picture

CROP = 112  # size of a crop in the figure, in pixels
HEAD = 20  # height of the text above a crop
CAPTION = 36  # height of the text below a crop
SEEN = 0.3  # height of a crop, as a share of the height of the image


@dataclass(frozen=True)
class Neighbour:
    """A pixel near an entry: cosine to the entry, index of the image, (row, column), and train id of the label or prediction."""

    cosine: float
    image: int
    position: tuple[int, int]
    label: int
    predicted: bool


def neighbours(contents: Contents, cache: FeatureCache, entries: int = 3, nearest: int = 3) -> dict[str, list[list[Neighbour]]]:
    """Find the pixels of a cache that are nearest to entries of each class; at most one pixel per image and entry.

    Args:
        entries: number of entries per class, evenly spaced from the newest to the oldest. nearest: pixels per entry.

    Returns:
        class → entry → its neighbours, the nearest first.

    Raises:
        SdaError: the cache has no projected features.
    """
    vectors = contents.unit()
    chosen = {name: [vectors[c, index] for index in _picks(contents, c, entries)] for c, name in enumerate(contents.classes)}
    queries = [(name, number) for name, picked in chosen.items() for number in range(len(picked))]
    found: dict[tuple[str, int], dict[int, Neighbour]] = {query: {} for query in queries}
    if not queries:
        return {name: [] for name in chosen}
    matrix = np.stack([chosen[name][number] for name, number in queries]).astype(np.float32)
    for block in cache.blocks("projected", "image", "position", "label", "prediction"):
        cosines = matrix @ unit(block["projected"].astype(np.float32)).T
        labels = classes_of(block)
        starts = np.flatnonzero(np.diff(block["image"], prepend=-1))  # first pixel of each image: pixels of an image are adjacent
        ends = np.append(starts[1:], len(labels))
        for query, row in zip(queries, cosines, strict=True):
            best = found[query]
            for segment in np.argsort(-np.maximum.reduceat(row, starts))[:nearest]:
                index = starts[segment] + row[starts[segment] : ends[segment]].argmax()
                image = int(block["image"][index])
                if image not in best or row[index] > best[image].cosine:
                    y, x = (int(value) for value in block["position"][index])
                    predicted = bool(block["label"][index] == IGNORE)
                    best[image] = Neighbour(float(row[index]), image, (y, x), int(labels[index]), predicted)
            kept = sorted(best.values(), key=lambda one: -one.cosine)[:nearest]
            found[query] = {one.image: one for one in kept}
    return {
        name: [sorted(found[name, number].values(), key=lambda one: -one.cosine) for number in range(len(picked))]
        for name, picked in chosen.items()
    }


def _picks(contents: Contents, c: int, entries: int) -> list[int]:
    """Return the indices of up to `entries` entries of class c, from the newest to the oldest."""
    filled = np.flatnonzero(contents.valid[c])
    steps = np.linspace(0, len(filled) - 1, min(entries, len(filled))).round().astype(int)
    return filled[np.unique(steps)].tolist()


def write_picture(path: Path, contents: Contents, cache: FeatureCache) -> None:
    """Write the figure of the entries' nearest pixels to an image file.

    Raises:
        SdaError: the cache has no projected features, one of its images is missing, or the file cannot be written.
    """
    figure = picture(contents, cache, neighbours(contents, cache))
    with written_picture(path) as file:
        figure.save(file, format_of(path))


def picture(contents: Contents, cache: FeatureCache, found: dict[str, list[list[Neighbour]]]) -> Image.Image:
    """Draw a row per class that has entries: for each entry, crops around its neighbours.

    The frame of a crop has the colour of the pixel's class: its label, or else its prediction.

    Raises:
        FileError: an image of the cache is missing.
    """
    font, head, gap = ImageFont.load_default(12), 130, 8
    entries = max([len(lists) for lists in found.values()] + [1])
    nearest = max([len(one) for lists in found.values() for one in lists] + [1])
    width = head + entries * (nearest * (CROP + gap) + 18)
    names = legend(contents.classes, max(1, width // 150))
    rows = {name: lists for name, lists in found.items() if lists}
    title = "entries of the bank, from the newest to the oldest, and the pixels nearest to each entry"
    if empty := [name for name in found if name not in rows]:
        title += f"; no entries: {', '.join(empty)}"
    lines = textwrap.wrap(title, width // 7)
    above = 14 + 16 * len(lines)
    body = above + len(rows) * (HEAD + CROP + CAPTION)
    sheet = Image.new("RGB", (max(width, names.width), body + names.height), "white")
    sheet.paste(names, (0, body))
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 8), "\n".join(lines), "black", font)
    colors = list(contents.classes.values())
    opened: dict[int, Image.Image] = {}
    sizes, roots = cache.of_images("size"), [Path(domain["root"]) for domain in cache.about["domains"]]
    for line, (name, lists) in enumerate(rows.items()):
        top = above + HEAD + line * (HEAD + CROP + CAPTION)
        draw.text((8, top + CROP / 2), name, "black", font, anchor="lm")
        c = list(contents.classes).index(name)
        for entry, (pixels, index) in enumerate(zip(lists, _picks(contents, c, len(lists)), strict=True)):
            domain = "source" if contents.domain[c, index] == SOURCE else "target"
            age, confidence = contents.at - contents.step[c, index], contents.confidence[c, index]
            text = f"{age} steps old, {domain}, confidence {confidence:.2f}"
            draw.text((head + entry * (nearest * (CROP + gap) + 18), top - 11), text, "black", font, anchor="lm")
            for column, pixel in enumerate(pixels):
                left = head + entry * (nearest * (CROP + gap) + 18) + column * (CROP + gap)
                if pixel.image not in opened:
                    image = read_image(roots[cache.domain[pixel.image]] / cache.paths[pixel.image])
                    opened = {
                        **dict(list(opened.items())[-32:]),
                        pixel.image: resize_image(image, tuple(sizes[pixel.image].tolist())),
                    }
                sheet.paste(_surroundings(opened[pixel.image], pixel.position), (left, top))
                color = tuple(colors[pixel.label]) if pixel.label < len(colors) else GREY
                draw.rectangle((left - 2, top - 2, left + CROP + 1, top + CROP + 1), outline=color, width=4)
                label = list(contents.classes)[pixel.label] if pixel.label < len(colors) else "ignored"
                origin = cache.domains[cache.domain[pixel.image]] + (", predicted" if pixel.predicted else "")
                draw.text((left, top + CROP + 10), _shortened(f"{pixel.cosine:.2f} {label}", font), "black", font, anchor="lm")
                draw.text((left, top + CROP + 23), _shortened(origin, font), GREY, font, anchor="lm")
    return sheet


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the text, shortened to the width of a crop."""
    if font.getlength(text) <= CROP:
        return text
    while font.getlength(f"{text}…") > CROP:
        text = text[:-1]
    return f"{text}…"


def _surroundings(image: Image.Image, position: tuple[int, int]) -> Image.Image:
    """Return a square crop around a pixel, which is marked by a small frame."""
    half = max(8, round(SEEN * min(image.size) / 2))
    row, column = position
    crop = image.crop((column - half, row - half, column + half, row + half)).resize((CROP, CROP), Image.Resampling.BILINEAR)
    middle = CROP // 2
    draw = ImageDraw.Draw(crop)
    draw.rectangle((middle - 5, middle - 5, middle + 5, middle + 5), outline="black")
    draw.rectangle((middle - 4, middle - 4, middle + 4, middle + 4), outline="white")
    return crop
