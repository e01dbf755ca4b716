"""Draw two domains in one plane, coloured by class and by domain, with one row per network."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sda.analysis.gap import Comparison
from sda.system.atomic import written_picture

DOMAINS = ("#2468b7", "#c65a10")
MARKERS = ("o", "^")
LAYERS = 20  # pixels are drawn in random layers, so that neither domain hides the other


def draw(path: Path, comparison: Comparison) -> None:
    """Write the picture of a comparison.

    Raises:
        SdaError: the file cannot be written.
    """
    planes, classes = comparison.planes, comparison.classes
    figure = Figure(figsize=(11, 4.6 * len(planes) + 0.9), dpi=110, layout="constrained")
    axes = figure.subplots(len(planes), 2, squeeze=False)
    present = sorted({int(c) for groups in planes.values() for _, pixels in groups for c in np.unique(pixels.label)})
    names, colors = list(classes), np.array(list(classes.values())) / 255
    for (title, groups), (left, right) in zip(planes.items(), axes, strict=True):
        layers = [np.random.default_rng(0).integers(LAYERS, size=len(points)) for points, _ in groups]
        for layer in range(LAYERS):
            for (points, pixels), layer_of, marker, color in zip(groups, layers, MARKERS, DOMAINS, strict=True):
                here = layer_of == layer
                left.scatter(*points[here].T, s=14, c=colors[pixels.label[here]], marker=marker, linewidths=0)
                right.scatter(*points[here].T, s=14, c=color, marker=marker, linewidths=0, alpha=0.45)
        left.set_title(f"{title}: by class", fontsize=11)
        right.set_title(f"{title}: by domain", fontsize=11)
        for axis in (left, right):
            axis.set_xticks([])
            axis.set_yticks([])
    of_class = [axes[0, 0].scatter([], [], s=40, color=colors[c], label=names[c]) for c in present]
    figure.legend(handles=of_class, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    for axis, shades in zip(axes[0], (("black", "black"), DOMAINS), strict=True):
        of_domain = [
            axis.scatter([], [], s=40, color=color, marker=marker, label=name)
            for name, color, marker in zip(comparison.domains, shades, MARKERS, strict=True)
        ]
        axis.legend(handles=of_domain, loc="upper right", fontsize=9)
    with written_picture(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix(".").lower() or None)
