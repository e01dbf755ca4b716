"""Tell the colours that smoothing and slight loss made in labels from those of the classes. Colours are texts, "#rrggbb"."""

import numpy as np

from sda.data.descriptor import MOST_CLASSES

JUNCTION = 0.0005  # a colour that covers less of the pixels than this may be a mixture of three classes
_NOISE = 12  # lossy compression changes channels by as much as this
MOST_SMOOTH = 20_000  # most colours that are compared; the rest are rarer
ANCHORS = 32  # most colours that others are compared with
PEAK = 0.03  # of labels that look lossy, only values that cover more of the pixels than this are proposed


def smooth_among(share: dict[str, float]) -> set[str]:
    """Return the colours that smoothing made, if there are at least 8: rare ones, between two that are more frequent.

    If some of the others are nearly equal, they are the noise of lossy compression: then none is returned.

    Args:
        share: colour → its share of the pixels, 0 to 1.
    """
    ordered = sorted(share, key=lambda value: -share[value])[:MOST_SMOOTH]
    classes: list[str] = []
    smooth = set()
    for value in ordered:
        known = np.array([rgb(each) for each in classes[:ANCHORS]])
        rare = share[value] < PEAK and _is_between(np.array(rgb(value)), known)
        if rare or share[value] < JUNCTION:
            smooth.add(value)
        else:
            classes.append(value)
    if len(smooth) < 8 or not 1 < len(classes) <= MOST_CLASSES:
        return set()
    known = np.array([rgb(value) for value in classes])
    near = abs(known[:, None] - known).max(axis=2) <= _NOISE
    return set() if near.sum() > len(known) else smooth | (share.keys() - classes)


def unmixed(classes: list[str], share: dict[str, float]) -> list[str]:
    """Return the other colours that are frequent, and neither near the classes or each other nor mixtures of two of them.

    Args:
        share: colour → its share of the pixels, 0 to 1.
    """
    known = [*classes]
    for value in sorted(share.keys() - known, key=lambda value: -share[value]):
        if share[value] < JUNCTION:
            break
        if not known or not is_near(value, np.array([rgb(each) for each in known])):
            known.append(value)
    return known[len(classes) :]


def is_near(value: str, known: np.ndarray) -> bool:
    """Return whether a colour is nearly one of the known ones, (N, 3), or a mixture of two."""
    color = np.array(rgb(value))
    return bool(abs(known - color).max(axis=1).min() <= _NOISE) or _is_between(color, known)


def _is_between(color: np.ndarray, known: np.ndarray) -> bool:
    """Return whether a colour, (3,), is a mixture of two of the known ones, (N, 3), apart from rounding."""
    if len(known) < 2:
        return False
    first, second = np.triu_indices(len(known), 1)
    start, way = known[first], known[second] - known[first]
    part = (((color - start) * way).sum(axis=1) / (way * way).sum(axis=1)).clip(0, 1)
    return bool((abs(start + part[:, None] * way - color).max(axis=1) <= 3).any())


def rgb(colour: str) -> list[int]:
    """Return "#rrggbb" as [r, g, b]."""
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
