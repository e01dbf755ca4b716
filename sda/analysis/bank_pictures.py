"""The pixels that are nearest to a bank's entries, as pictures: a person sees whether the bank holds what it should."""

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
from sda.pictures import GREY, legend

CROP = 112  # side of a picture in the sheet
HEAD = 20  # room above it, for what the entry is
CAPTION = 36  # room below it
SEEN = 0.3  # of the image's height, that a crop shows


@dataclass(frozen=True)
class Neighbour:
    """A pixel near to an entry: its cosine, its image and place there, and its train id, which may be only predicted."""

    cosine: float
    image: int
    position: tuple[int, int]
    label: int
    predicted: bool


def neighbours(contents: Contents, cache: FeatureCache, entries: int = 3, nearest: int = 3) -> dict[str, list[list[Neighbour]]]:
    """The pixels of a cache that are nearest to some entries of each class, each of another image.

    Args:
        entries: how many of a class: from the newest to the oldest. nearest: pixels per entry.

    Returns:
        class → entry → its neighbours, the nearest first.

    Raises:
        SdaError: a cache without projected features.
    """
    held = contents.unit()
    chosen = {name: [held[c, pick] for pick in _picks(contents, c, entries)] for c, name in enumerate(contents.classes)}
    queries = [(name, place) for name, vectors in chosen.items() for place in range(len(vectors))]
    found: dict[tuple[str, int], dict[int, Neighbour]] = {query: {} for query in queries}
    if not queries:
        return {name: [] for name in chosen}
    matrix = np.stack([chosen[name][place] for name, place in queries]).astype(np.float32)
    for block in cache.blocks("projected", "image", "position", "label", "prediction"):
        cosines = matrix @ unit(block["projected"].astype(np.float32)).T
        labels = classes_of(block)
        starts = np.flatnonzero(np.diff(block["image"], prepend=-1))  # of the images, whose pixels lie side by side
        ends = np.append(starts[1:], len(labels))
        for query, row in zip(queries, cosines, strict=True):
            best = found[query]
            for number in np.argsort(-np.maximum.reduceat(row, starts))[:nearest]:
                index = starts[number] + row[starts[number] : ends[number]].argmax()
                image = int(block["image"][index])
                if image not in best or row[index] > best[image].cosine:
                    place = tuple(int(side) for side in block["position"][index])
                    predicted = bool(block["label"][index] == IGNORE)
                    best[image] = Neighbour(float(row[index]), image, place, int(labels[index]), predicted)
            kept = sorted(best.values(), key=lambda one: -one.cosine)[:nearest]
            found[query] = {one.image: one for one in kept}
    return {
        name: [sorted(found[name, place].values(), key=lambda one: -one.cosine) for place in range(len(vectors))]
        for name, vectors in chosen.items()
    }


def _picks(contents: Contents, c: int, entries: int) -> list[int]:
    """The places of up to so many entries of a class, from the newest to the oldest."""
    there = np.flatnonzero(contents.valid[c])
    steps = np.linspace(0, len(there) - 1, min(entries, len(there))).round().astype(int)
    return there[np.unique(steps)].tolist()


def picture(contents: Contents, cache: FeatureCache, found: dict[str, list[list[Neighbour]]]) -> Image.Image:
    """A row per class that has entries: the surroundings of each one's neighbours, framed in the colour of the class that the
    pixel is of, or is predicted as where it has no label.

    Raises:
        FileError: an image of the cache is gone.
    """
    font, head, gap = ImageFont.load_default(12), 130, 8
    entries = max([len(lists) for lists in found.values()] + [1])
    nearest = max([len(one) for lists in found.values() for one in lists] + [1])
    width = head + entries * (nearest * (CROP + gap) + 18)
    names = legend(contents.classes, max(1, width // 150))
    rows = {name: lists for name, lists in found.items() if lists}
    title = "entries of the bank, from the newest to the oldest, and the pixels nearest to each"
    if empty := [name for name in found if name not in rows]:
        title += f"; it holds nothing of {', '.join(empty)}"
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
        for entry, (pixels, pick) in enumerate(zip(lists, _picks(contents, c, len(lists)), strict=True)):
            domain = "source" if contents.domain[c, pick] == SOURCE else "target"
            words = f"{contents.at - contents.step[c, pick]} steps old, {domain}, confidence {contents.confidence[c, pick]:.2f}"
            draw.text((head + entry * (nearest * (CROP + gap) + 18), top - 11), words, "black", font, anchor="lm")
            for place, pixel in enumerate(pixels):
                left = head + entry * (nearest * (CROP + gap) + 18) + place * (CROP + gap)
                if pixel.image not in opened:
                    image = read_image(roots[cache.domain[pixel.image]] / cache.paths[pixel.image])
                    opened = {
                        **dict(list(opened.items())[-32:]),
                        pixel.image: image.resize(tuple(sizes[pixel.image][::-1].tolist())),
                    }
                sheet.paste(_surroundings(opened[pixel.image], pixel.position), (left, top))
                color = tuple(colors[pixel.label]) if pixel.label < len(colors) else GREY
                draw.rectangle((left - 2, top - 2, left + CROP + 1, top + CROP + 1), outline=color, width=4)
                said = list(contents.classes)[pixel.label] if pixel.label < len(colors) else "ignored"
                whence = cache.domains[cache.domain[pixel.image]] + (", predicted" if pixel.predicted else "")
                draw.text((left, top + CROP + 10), _fitting(f"{pixel.cosine:.2f} {said}", font), "black", font, anchor="lm")
                draw.text((left, top + CROP + 23), _fitting(whence, font), GREY, font, anchor="lm")
    return sheet


def _fitting(text: str, font: ImageFont.FreeTypeFont) -> str:
    """As much of a text as there is room for below a picture."""
    if font.getlength(text) <= CROP:
        return text
    while font.getlength(f"{text}…") > CROP:
        text = text[:-1]
    return f"{text}…"


def _surroundings(image: Image.Image, position: tuple[int, int]) -> Image.Image:
    """A square around a pixel, which a small frame marks."""
    half = max(8, round(SEEN * image.height / 2))
    row, column = position
    crop = image.crop((column - half, row - half, column + half, row + half)).resize((CROP, CROP), Image.Resampling.BILINEAR)
    middle = CROP // 2
    draw = ImageDraw.Draw(crop)
    draw.rectangle((middle - 5, middle - 5, middle + 5, middle + 5), outline="black")
    draw.rectangle((middle - 4, middle - 4, middle + 4, middle + 4), outline="white")
    return crop
