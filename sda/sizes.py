"""Sizes of images as people write them: HEIGHTxWIDTH."""

import re
from collections.abc import Sequence
from typing import Literal

Fit = Literal["stretch", "inside"]  # how images are resized to a size: see `fitted`
LARGEST = 2**14  # side of an image, in pixels
SMALLEST = 32  # minimum side of a network's input, in pixels


def parse_size(text: str) -> list[int] | None:
    """Return [height, width] of a size such as `512x1024`; `512,1024` and `512 1024` are understood too. None: not a size."""
    match = re.fullmatch(r"[\[(]?\s*(\d{1,9})\s*[x×X,\s]\s*(\d{1,9})\s*[\])]?", text.strip())
    return [int(match[1]), int(match[2])] if match else None


def size_text(size: Sequence[int]) -> str:
    """Return a size as `parse_size` reads it."""
    return "x".join(map(str, size))


def check_size(value: object, words: tuple[str, ...] = ()) -> list[int] | str:
    """Return a size as [height, width], or one of the `words` instead of a size.

    Raises:
        ValueError: neither; the message says how to write a size.
    """
    if isinstance(value, str) and value in words:
        return value
    size = parse_size(value) if isinstance(value, str) else value
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and SMALLEST <= side <= LARGEST for side in size):
        return size
    side = str(value).strip()  # one number: suggest a square
    example = f"{side}x{side}" if re.fullmatch(r"\d{2,5}", side) and SMALLEST <= int(side) <= LARGEST else "512x1024"
    others = "".join(f", or {word}" for word in words)
    raise ValueError(f"expected HEIGHTxWIDTH, each from {SMALLEST} to {LARGEST}, such as {example}{others}")


def fitted(image: Sequence[int], size: Sequence[int] | None, fit: Fit) -> tuple[int, int]:
    """Return the (height, width) to which an image of (height, width) is resized.

    Args:
        size: the recipe's (height, width); None: the image is not resized.
        fit: "stretch": to exactly `size`, whatever the shape of the image. "inside": to the largest (height, width) inside of
            `size` with the image's aspect ratio, to within half a pixel; but each side has at least SMALLEST pixels, so images
            that are very narrow (1:32 for a square) become wider.
    """
    height, width = image
    if size is None:
        return height, width
    if fit == "inside" and height * size[1] >= width * size[0]:
        return size[0], max(min(SMALLEST, size[1]), (2 * width * size[0] + height) // (2 * height))
    if fit == "inside":
        return max(min(SMALLEST, size[0]), (2 * height * size[1] + width) // (2 * width)), size[1]
    return size[0], size[1]
