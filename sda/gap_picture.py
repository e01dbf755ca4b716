"""Two domains in one plane, coloured by class and by domain; several networks below each other."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sda.gap import Pixels

DOMAINS = ("#2468b7", "#c65a10")
MARKERS = ("o", "^")


def draw(
    path: Path, planes: dict[str, list[tuple[np.ndarray, Pixels]]], domains: list[str], classes: dict[str, list[int]]
) -> None:
    """Write a PNG.

    Args:
        planes: title of a network → for each domain its pixels' places (N, 2), and the pixels. classes: name → colour.
    """
    figure = Figure(figsize=(11, 4.6 * len(planes) + 0.9), dpi=110, layout="constrained")
    axes = figure.subplots(len(planes), 2, squeeze=False)
    present = sorted({int(c) for groups in planes.values() for _, pixels in groups for c in np.unique(pixels.label)})
    names, colors = list(classes), np.array(list(classes.values())) / 255
    for (title, groups), (left, right) in zip(planes.items(), axes, strict=True):
        for (places, pixels), marker, color in zip(groups, MARKERS, DOMAINS, strict=True):
            left.scatter(*places.T, s=9, c=colors[pixels.label], marker=marker, linewidths=0)
            right.scatter(*places.T, s=9, c=color, marker=marker, linewidths=0, alpha=0.45)
        left.set_title(f"{title}: by class", fontsize=11)
        right.set_title(f"{title}: by domain", fontsize=11)
        for axis in (left, right):
            axis.set_xticks([])
            axis.set_yticks([])
    of_class = [axes[0, 0].scatter([], [], s=40, color=colors[c], label=names[c]) for c in present]
    of_domain = [
        axes[0, 0].scatter([], [], s=40, color=color, marker=marker, label=name)
        for name, color, marker in zip(domains, DOMAINS, MARKERS, strict=True)
    ]
    figure.legend(handles=[*of_domain, *of_class], loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    figure.savefig(path)
