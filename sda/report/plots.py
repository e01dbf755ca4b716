"""Plots as inline SVG, in the colours of the page, and as PNG."""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter

# In the SVG, each of these colours is replaced with var(--NAME) of style.css, which has a light and a dark scheme.
COLORS = {
    "ink": "#1c2129",
    "muted": "#5a6573",
    "line": "#dde2e8",
    "on-accent": "#fffffe",
    "accent": "#2467b6",
    "c1": "#2468b7",
    "c2": "#c65a10",
    "c3": "#1a7f46",
    "c4": "#7f4fd0",
    "c5": "#b83280",
    "c6": "#0d7a8c",
    "negative": "#c4501b",
}
SERIES = [COLORS[f"c{number}"] for number in range(1, 7)]
MAX_POINTS = 300  # of a curve
MAX_LEGEND = 44  # characters
MAX_NUMBERED = 40  # classes: larger heat maps have no numbers in their cells
WIDTH = 4.4  # inches of a panel: a wide page has three side by side, a narrow one has one
_STYLE: Any = {  # Any: rc_context takes a dict whose keys are literals
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": COLORS["ink"],
    "axes.edgecolor": COLORS["line"],
    "axes.labelcolor": COLORS["muted"],
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "grid.color": COLORS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLORS["line"],
    "ytick.color": COLORS["line"],
    "xtick.labelcolor": COLORS["muted"],
    "ytick.labelcolor": COLORS["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.1,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.2,
}
Lines = dict[str, tuple[list[int], list[float]]]  # legend → steps and values


@dataclass(frozen=True)
class Plot:
    """One figure.

    Attributes:
        name: of the file. title: shown above the figure. svg: an <svg> element without the title, for an HTML page. width: in px;
            at this width, the text is as large as that of the page. png: the bytes of a PNG file that includes the title.
    """

    name: str
    title: str
    svg: str
    width: int
    png: bytes


def plot(name: str, title: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Plot:
    """Return what `paint` draws on a figure of `size`, (width, height) in inches."""
    with rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a browser has more fonts than matplotlib
        figure = Figure(size, layout="constrained")
        paint(figure)
        vector, pixels = io.BytesIO(), io.BytesIO()
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        if figure.legends:  # a title of the figure would cover the legend
            figure.legends[0].set_title(title, FontProperties(size=10, weight="bold"))
            figure.legends[0].set_alignment("left")
        else:
            figure.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold")
        figure.savefig(pixels, format="png", dpi=160, metadata={"Software": None})
    return Plot(name, title, _inline(vector.getvalue().decode()), round(size[0] * 86), pixels.getvalue())


def _inline(svg: str) -> str:
    """Return an SVG file as an element of a page, which sets its size, fonts and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg.strip()


def curves(
    name: str,
    title: str,
    lines: Lines,
    label: str,
    smooth: bool = False,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    marks: dict[str, tuple[int, float]] | None = None,
) -> Plot:
    """Draw curves over training steps.

    Args:
        label: of the y axis. smooth: draw a moving median, and the values themselves faintly behind it. log: use a logarithmic
            y axis. limits: of the y axis. marks: legend → a point to mark.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(True)
        top = 0.0
        for number, (legend, (steps, values)) in enumerate(lines.items()):
            color, style = SERIES[number % len(SERIES)], "-" if number < len(SERIES) else "--"
            finite = np.isfinite(values)
            x, y = np.asarray(steps, float)[finite], np.asarray(values, float)[finite]
            if smooth:
                axes.plot(*_thinned(x, y), color=color, alpha=0.25, linewidth=0.8)
                y = _moving_median(y)
            top = max(top, y.max(initial=0))
            marker = "o" if len(x) <= 30 and not smooth else None
            axes.plot(*_thinned(x, y), style, color=color, label=short(legend, MAX_LEGEND), marker=marker, markersize=3.5)
        for number, (legend, point) in enumerate((marks or {}).items()):
            symbol, size = (("*", 11), ("D", 6))[number % 2]
            axes.plot(
                *point, symbol, color=COLORS["ink"], markersize=size, markeredgewidth=0, linestyle="", label=legend, zorder=5
            )
        if log and top > 0:
            axes.set_yscale("log")
            axes.set_ylim(max(axes.get_ylim()[0], top / 3e4), None)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if limits:
            axes.set_ylim(*limits)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        if len(lines) + len(marks or {}) > 1:
            longest = max(map(len, lines))
            figure.legend(loc="outside upper left", ncols=3 if longest <= 12 else 2 if longest <= 22 else 1)

    return plot(name, title, (WIDTH, 3.0), paint)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring points so that at most MAX_POINTS remain."""
    if len(x) <= MAX_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _moving_median(y: np.ndarray) -> np.ndarray:
    """Return the median over a twentieth of the curve around each point; the window is smaller at the ends."""
    half = len(y) // 40
    return np.array([np.median(y[max(0, index - half) : index + half + 1]) for index in range(len(y))])


def matrix(name: str, title: str, values: np.ndarray, names: list[str], rows: str, columns: str, form: str) -> Plot:
    """Draw a heat map of numbers from -1 to 1, with the numbers in its cells if there is room.

    Args:
        values: (C, C); a cell with NaN is empty. names: of the rows and columns. rows, columns: labels of the axes.
        form: of the numbers, "percent" or "cosine".
    """
    shown = [short(each) for each in names]
    side, font = (0.42, 8.5) if len(names) <= 10 else (0.3, 7.5) if len(names) <= MAX_NUMBERED else (0.17, 0)
    margin = 0.35 + 0.075 * max(map(len, shown))
    width = max(3.4, side * len(names) + margin)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for (row, column), value in np.ndenumerate(values):
            text = "" if np.isnan(value) else _number(value, form)
            if not text:
                continue
            color = COLORS["accent"] if value >= 0 else COLORS["negative"]
            strength = min(abs(value), 1)
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, alpha=strength, linewidth=0))
            ink = COLORS["on-accent"] if strength > 0.55 else COLORS["ink"]
            if font:
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=font)
        place = range(len(names))
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
        axes.set_xticks(place, shown, rotation=90)
        axes.set_yticks(place, shown)
        axes.set_xticks(np.arange(-0.5, len(names)), minor=True)
        axes.set_yticks(np.arange(-0.5, len(names)), minor=True)
        axes.grid(True, which="minor", axis="both")
        axes.tick_params(which="both", length=0)
        axes.set_xlabel(columns)
        axes.set_ylabel(rows)

    return plot(name, title, (width, width), paint)


def _number(value: float, form: str) -> str:
    """Format a number in a heat map; "" if it rounds to 0 percent."""
    if form == "percent":
        return f"{100 * value:.0f}" if value >= 0.005 else ""
    return f"{round(value, 2) + 0.0:.2f}".replace("0.", ".").replace("-", "−")  # + 0.0 avoids −.00


def reliability(name: str, title: str, bins: list[dict]) -> Plot:
    """Draw a reliability diagram: accuracy over confidence, and the share of pixels in each bin below.

    Args:
        bins: `confidence` and `accuracy` in percent, and `share` of all pixels: see `sda.scoring.metrics.calibration`.
    """
    confidence, accuracy, share = (np.array([each[key] for each in bins]) for key in ("confidence", "accuracy", "share"))

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        upper.grid(True)
        upper.plot([0, 100], [0, 100], "--", color=COLORS["muted"], linewidth=1, label="perfect calibration")
        upper.vlines(confidence, np.minimum(confidence, accuracy), np.maximum(confidence, accuracy), SERIES[1], alpha=0.45, lw=4)
        upper.plot(confidence, accuracy, "o-", color=SERIES[0], markersize=4, label="this run")
        upper.set(ylim=(0, 102), xlim=(0, 101))
        upper.set_ylabel("accuracy, %")
        lower.bar(confidence, 100 * share, width=4.5, color=SERIES[0])
        lower.set_ylabel("pixels, %")
        lower.set_xlabel("confidence, %")
        figure.legend(loc="outside upper left", ncols=2)

    return plot(name, title, (WIDTH, 4.0), paint)


def shares(name: str, title: str, names: list[str], parts: dict[str, np.ndarray], label: str) -> Plot:
    """Draw a stacked horizontal bar for each name.

    Args:
        parts: legend → (C,) percentages, from left to right. label: of the x axis.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        left = np.zeros(len(names))
        for color, (legend, values) in zip(SERIES, parts.items(), strict=False):
            axes.barh(range(len(names)), values, left=left, height=0.7, color=color, label=legend)
            left = left + values
        axes.set(xlim=(0, 100), ylim=(len(names) - 0.4, -0.6))
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_yticks(range(len(names)), [short(each) for each in names])
        axes.tick_params(length=0)
        axes.set_xlabel(label)
        figure.legend(loc="outside upper left", ncols=3)

    return plot(name, title, (WIDTH, 1.0 + 0.23 * len(names)), paint)


def short(name: str, most: int = 22) -> str:
    """Shorten a name so that it fits next to a plot."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
