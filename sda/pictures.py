"""Pictures of labels and predictions: class colours, overlays, legends, tables of pictures."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GREY = (90, 90, 90)  # ignored pixels


def colorize(label: np.ndarray, colors: list[list[int]]) -> np.ndarray:
    """Return train ids as RGB in the colours of the class table.

    Args:
        label: (H, W) uint8; 255 becomes GREY. colors: RGB of each class.

    Returns:
        (H, W, 3) uint8.
    """
    lut = np.full((256, 3), GREY, np.uint8)
    lut[: len(colors)] = colors
    return lut[label]


def overlay(image: np.ndarray, mask: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Blend an RGB image with the colours of its label, both (H, W, 3) uint8. `opacity`: of the label, 0 to 1."""
    return np.asarray(Image.blend(Image.fromarray(image), Image.fromarray(mask), opacity))


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to (height, width): bilinear, antialiased."""
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def size_within(size: tuple[int, int], width: int) -> tuple[int, int]:
    """Return (height, width) to show a picture of `size` in its aspect ratio: in this width, or in twice this height."""
    if size[0] > 2 * size[1]:
        return 2 * width, max(1, round(2 * width * size[1] / size[0]))
    return max(1, round(width * size[0] / size[1])), width


def resize_nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label or other values (H, W), or a picture (H, W, 3), to (height, width): nearest pixel, no blending."""
    height, width = size
    if values.shape[:2] == (height, width):
        return values
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST))


def heat(values: np.ndarray) -> np.ndarray:
    """Return numbers from 0 to 1, (H, W), as grey levels, RGB (H, W, 3) uint8: 1 is white."""
    return np.repeat(np.round(255 * values.clip(0, 1)).astype(np.uint8)[..., None], 3, axis=2)


def picture_table(rows: list[list[np.ndarray]], titles: list[str], colors: dict[str, list[int]], width: int = 384) -> Image.Image:
    """Return a table of pictures under column titles, with a legend of the classes below.

    Args:
        rows: one RGB picture (H, W, 3) uint8 per title; those of a row have the same aspect ratio.
        colors: class → RGB. width: of each column in px.
    """
    sizes = [size_within(row[0].shape[:2], width) for row in rows]
    font = ImageFont.load_default(16)
    gap, head = 6, 30
    names = legend(colors, max(1, (len(titles) * (width + gap)) // 150))
    body = head + sum(height + gap for height, _ in sizes)
    sheet = Image.new("RGB", (len(titles) * (width + gap) + gap, body + names.height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((gap + column * (width + gap) + width / 2, head / 2), title, "black", font, anchor="mm")
    top = head
    for row, size in zip(rows, sizes, strict=True):
        for column, values in enumerate(row):
            left = gap + column * (width + gap) + (width - size[1]) // 2
            sheet.paste(Image.fromarray(resize_nearest(values, size)), (left, top))
        top += size[0] + gap
    sheet.paste(names, (0, body))
    return sheet


def legend(colors: dict[str, list[int]], per_line: int = 1) -> Image.Image:
    """Return a legend: the colour and name of each class, `per_line` classes per line."""
    font = ImageFont.load_default(16)
    last = max(150, *(30 + round(font.getlength(name)) for name in colors))
    size = 6 + 150 * (min(per_line, len(colors)) - 1) + last, -(-len(colors) // per_line) * 26 + 8
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for place, (name, color) in enumerate(colors.items()):
        x, y = 6 + place % per_line * 150, 6 + place // per_line * 26
        draw.rectangle((x, y, x + 18, y + 18), tuple(color), "black")
        draw.text((x + 24, y + 9), name, "black", font, anchor="lm")
    return sheet


def format_of(path: Path) -> str:
    """Return Pillow's name of the format that a file's suffix stands for. Raise ValueError if it stands for none."""
    try:
        return Image.registered_extensions()[path.suffix.lower()]
    except KeyError:
        raise ValueError(f"unknown file extension: {path.suffix}") from None


def contact_sheet(pictures: list[Image.Image], titles: list[str], width: int = 240, columns: int = 5) -> Image.Image:
    """Return pictures of any size in rows, each under its title, which is cut to the width of the picture.

    Args:
        width: of each picture, in px. columns: pictures per row.
    """
    font = ImageFont.load_default(13)
    small = [resize_image(picture, size_within(picture.size[::-1], width)) for picture in pictures]
    gap, head = 8, 20
    height = head + max(picture.height for picture in small) + gap
    lines = -(-len(small) // columns)
    sheet = Image.new("RGB", (gap + min(columns, len(small)) * (width + gap), gap + lines * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (picture, title) in enumerate(zip(small, titles, strict=True)):
        x, y = gap + place % columns * (width + gap), gap + place // columns * height
        most = width // 7  # characters of 7 px
        draw.text((x, y + head / 2), title[:most], "black", font, anchor="lm")
        sheet.paste(picture, (x, y + head))
    return sheet
