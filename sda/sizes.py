"""Sizes of images as people write them: HEIGHTxWIDTH."""

import re
from collections.abc import Sequence

LARGEST = 2**14  # side of an image, in pixels


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
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and 32 <= side <= LARGEST for side in size):
        return size
    side = str(value).strip()  # one number: suggest a square
    example = f"{side}x{side}" if re.fullmatch(r"\d{2,5}", side) and 32 <= int(side) <= LARGEST else "512x1024"
    others = "".join(f", or {word}" for word in words)
    raise ValueError(f"expected HEIGHTxWIDTH, each from 32 to {LARGEST}, such as {example}{others}")
