"""Charts as inline SVG. Colours and font are the page's: the style sheet decides light or dark.

Every chart is drawn in colours that stand for a name (`COLORS`), which are then replaced by the CSS
variables of that name. Sizes are in CSS pixels.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from burnish.report.record import Record

SERIES = tuple(f"series-{i}" for i in range(8))
NAMES = (
    *("ink", "muted", "rule", "before", "after", "train", "part-0", "part-1", "part-2", "part-3"),
    *SERIES,
)
COLORS = {name: f"#0000{i:02x}" for i, name in enumerate(NAMES, start=1)}
"""Stand-ins of the CSS variables; no other colour is ever drawn."""

PARTS = tuple(name for name in NAMES if name.startswith("part-"))

COLUMNS = 60
"""Cells or bars along the iterations; longer runs are averaged into so many groups."""

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "burnish",
    "figure.dpi": 72,
    "font.size": 11,
    "text.color": COLORS["muted"],
    "axes.edgecolor": COLORS["rule"],
    "axes.labelcolor": COLORS["muted"],
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["muted"],
    "grid.color": COLORS["rule"],
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """Size of a chart in pixels, and what a reader who cannot see it is told."""

    name: str
    label: str
    width: int
    height: int


def reward_curve(canvas: Canvas, record: Record, unit: str) -> str:
    """Training reward with its spread, held-out reward, and the base model's level and spread."""

    def paint(axes: Axes) -> None:
        if record.base:
            low, high = record.base.mean - record.base.std, record.base.mean + record.base.std
            axes.axhspan(low, high, color=COLORS["before"], alpha=0.16, linewidth=0)
            axes.axhline(record.base.mean, color=COLORS["before"], linewidth=1.2, dashes=(4, 3))
        if record.trained:
            x = [number for number, _ in record.trained]
            mean = np.array([reward.mean for _, reward in record.trained])
            std = np.array([reward.std for _, reward in record.trained])
            axes.fill_between(
                x, mean - std, mean + std, color=COLORS["train"], alpha=0.18, linewidth=0
            )
            _curve(axes, x, mean, "train")
        if record.evaluated:
            x = [number for number, _ in record.evaluated]
            mean = np.array([reward.mean for _, reward in record.evaluated])
            axes.plot(x, mean, color=COLORS["after"], marker="o", markersize=4.5, linewidth=2)
        axes.yaxis.set_major_locator(_ticks(7))
        _iterations(axes, 0, record.done)

    return _chart(canvas, unit, paint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve of several: its points, and half the width of a band about each of them.

    number: its place among all, which gives it its colour; beyond the last colour lines are dashed
    """

    number: int
    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float | None]

    @property
    def color(self) -> str:
        return SERIES[self.number % len(SERIES)]

    @property
    def dashed(self) -> bool:
        return self.number >= len(SERIES)


def comparison(
    canvas: Canvas, series: Sequence[Series], base: float, level: float, unit: str, along: str
) -> str:
    """Curves with their bands, the first on top; dashed: where they began; dotted: `level`.

    along: what the x axis counts, from 0
    """

    def paint(axes: Axes) -> None:
        axes.axhline(base, color=COLORS["before"], linewidth=1.2, dashes=(4, 3))
        axes.axhline(level, color=COLORS["before"], linewidth=1.2, linestyle=(0, (1, 2)))
        for each in reversed(series):
            _band(axes, each)
        for each in reversed(series):
            color, style = COLORS[each.color], (0, (5, 2)) if each.dashed else "solid"
            axes.plot(each.x, each.y, color=color, linewidth=1.9, linestyle=style)
            axes.plot(each.x[-1], each.y[-1], "o", color=color, markersize=4)
        _around(axes, series, (base, level))
        axes.set_xlim(0, 1.02 * max(each.x[-1] for each in series) or 1.0)
        axes.xaxis.set_major_locator(_ticks(6))
        axes.yaxis.set_major_locator(_ticks(7))
        axes.set_xlabel(along)

    return _chart(canvas, unit, paint)


def _band(axes: Axes, series: Series) -> None:
    low, high = _edges(series)
    axes.fill_between(series.x, low, high, color=COLORS[series.color], alpha=0.12, linewidth=0)


def _edges(series: Series) -> tuple[list[float], list[float]]:
    pairs = [(y, half or 0.0) for y, half in zip(series.y, series.half, strict=True)]
    return [y - half for y, half in pairs], [y + half for y, half in pairs]


def _around(axes: Axes, series: Sequence[Series], levels: Sequence[float]) -> None:
    """The y axis spans the lines, and of the bands what adds at most a quarter of that on each side."""
    lines = [*levels, *(y for each in series for y in each.y)]
    low, high = min(lines), max(lines)
    room = 0.25 * (high - low) or 1.0
    bands = [edge for each in series for side in _edges(each) for edge in side]
    bottom, top = (
        max(min(bands, default=low), low - room),
        min(max(bands, default=high), high + room),
    )
    margin = 0.04 * (high - low)
    axes.set_ylim(min(bottom, low) - margin, max(top, high) + margin)


def histogram(canvas: Canvas, before: Sequence[float], after: Sequence[float], unit: str) -> str:
    """Rewards of the same prompts before and after; the dashed lines are the means."""

    def paint(axes: Axes) -> None:
        edges = np.histogram_bin_edges([*before, *after], bins=_bins(len(before))).tolist()
        for values, name in ((before, "before"), (after, "after")):
            if len(values):
                axes.hist(values, edges, color=COLORS[name], histtype="stepfilled", alpha=0.35)
                axes.hist(values, edges, color=COLORS[name], histtype="step", linewidth=1.2)
                axes.axvline(float(np.mean(values)), color=COLORS[name], dashes=(4, 3))
        axes.yaxis.set_major_locator(_ticks(5, integer=True))
        axes.xaxis.set_major_locator(_ticks(5))
        axes.set_xlabel(unit)

    return _chart(canvas, "images", paint)


def line(canvas: Canvas, points: Mapping[int, float], unit: str) -> str:
    """One quantity over the iterations."""
    x, y = list(points), np.array(list(points.values()), dtype=float)
    factor, prefix = scale(y)

    def paint(axes: Axes) -> None:
        _curve(axes, x, y / factor, "train")
        _from_zero(axes, y / factor)
        axes.yaxis.set_major_locator(_ticks(4))
        _iterations(axes, min(x), max(x))

    return _chart(canvas, f"{prefix}{unit}", paint)


def heat_map(canvas: Canvas, columns: Mapping[int, Mapping[int, float]], unit: str) -> str:
    """A quantity at each iteration and denoising step; steps that were not trained stay empty.

    Strength of colour is size; values below zero have the other colour.
    """
    steps = sorted({step for column in columns.values() for step in column})
    values = np.array(
        [[column.get(step, math.nan) for column in columns.values()] for step in steps]
    )
    edges, values = _grouped(list(columns), values)
    factor, prefix = scale(values)
    values = values / factor
    largest = float(np.nanmax(np.abs(values))) or 1.0

    def paint(axes: Axes) -> None:
        axes.add_collection(_cells(edges, steps, values / largest))
        _iterations(axes, edges[0], edges[-1])
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(steps[-1] + 0.5, steps[0] - 0.5)
        axes.yaxis.set_major_locator(_ticks(5, integer=True))
        axes.set_ylabel("denoising step")
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        signed = bool((values < 0).any())
        _color_scale(axes, canvas, largest, f"{prefix}{unit}", signed=signed)

    return _chart(canvas, "", paint)


def stacked(
    canvas: Canvas, seconds: Mapping[int, Mapping[str, float]], parts: Sequence[str]
) -> str:
    """Seconds of each iteration, its parts on top of each other, in the order given."""
    values = np.array([[each.get(part, 0.0) for each in seconds.values()] for part in parts])

    def paint(axes: Axes) -> None:
        edges, grouped = _grouped(list(seconds), values)
        width, bottom = np.diff(edges), np.zeros(len(edges) - 1)
        for i, heights in enumerate(grouped):
            color = COLORS[PARTS[i % len(PARTS)]]
            axes.bar(edges[:-1] + width / 2, heights, 0.78 * width, bottom, color=color)
            bottom = bottom + heights
        _iterations(axes, edges[0], edges[-1])
        axes.yaxis.set_major_locator(_ticks(5))

    return _chart(canvas, "seconds", paint)


def scale(values: np.ndarray) -> tuple[float, str]:
    """A power of ten to divide by, and how the unit then begins; 1 and nothing for handy values."""
    sizes = np.abs(values[np.isfinite(values)])
    largest = float(sizes.max()) if sizes.size else 0.0
    if largest == 0 or 0.01 <= largest < 10_000:
        return 1.0, ""
    exponent = math.floor(math.log10(largest))
    return 10.0**exponent, f"×10{superscript(exponent)} "


def superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _chart(canvas: Canvas, unit: str, paint: Callable[[Axes], None]) -> str:
    """Axes with fixed margins, so that charts of one size align; `unit` stands above the y axis."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(canvas.width / 72, canvas.height / 72), facecolor="none")
        margin = {"left": 44, "right": 10, "top": 26, "bottom": 38}
        axes = figure.add_axes(_box(canvas, **margin), facecolor="none")
        _calm(axes)
        axes.set_xlabel("iteration")
        paint(axes)
        figure.text(0, 1 - 4 / canvas.height, unit, va="top", ha="left", color=COLORS["muted"])
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    return _inline(buffer.getvalue(), canvas)


def _box(
    canvas: Canvas, *, left: float, right: float, top: float, bottom: float
) -> tuple[float, float, float, float]:
    """Margins in pixels as matplotlib's (x, y, width, height), each a fraction of the figure."""
    width, height = canvas.width - left - right, canvas.height - top - bottom
    return (
        left / canvas.width,
        bottom / canvas.height,
        width / canvas.width,
        height / canvas.height,
    )


def _calm(axes: Axes) -> None:
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, pad=5)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _iterations(axes: Axes, first: float, last: float) -> None:
    """The x axis: whole numbers, with half an iteration of room if there is only one."""
    room = 0.5 if first == last else 0.015 * (last - first)
    axes.set_xlim(first - room, last + room)
    if last - first <= 2:
        axes.set_xticks(range(math.ceil(first), math.floor(last) + 1))
    else:
        axes.xaxis.set_major_locator(_ticks(6, integer=True))


def _ticks(count: int, *, integer: bool = False) -> MaxNLocator:
    """At most so many intervals, of 1, 2 or 5 times a power of ten."""
    return MaxNLocator(count, steps=[1, 2, 5, 10], integer=integer)


def _curve(axes: Axes, x: Sequence[int], y: np.ndarray, color: str) -> None:
    """A line; a single point, which has no line, is a dot."""
    marker = "o" if len(x) == 1 else None
    axes.plot(x, y, color=COLORS[color], marker=marker, markersize=4.5, clip_on=False)


def _from_zero(axes: Axes, y: np.ndarray) -> None:
    """Begin the y axis at 0 where that costs at most half of its height."""
    finite = y[np.isfinite(y)]
    if not finite.size or finite.min() < 0:
        return
    if finite.max() == 0:
        axes.set_ylim(0, 1)
    elif finite.min() < 0.5 * finite.max():
        axes.set_ylim(bottom=0)


def _bins(count: int) -> int:
    """Twice the cube root of the sample size (Rice's rule), at least 8."""
    return max(8, round(2 * count ** (1 / 3)) * 2)


def _grouped(x: Sequence[int], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns averaged into at most `COLUMNS` neighbouring groups, and the groups' edges."""
    groups = np.array_split(np.arange(len(x)), min(len(x), COLUMNS))
    edges = np.array([x[group[0]] - 0.5 for group in groups] + [x[-1] + 0.5])
    return edges, np.stack([_mean(values[:, group]) for group in groups], axis=1)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is there; nan where nothing is."""
    there = np.isfinite(values)
    count = there.sum(axis=1)
    total = np.where(there, values, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _cells(edges: np.ndarray, steps: Sequence[int], values: np.ndarray) -> PolyCollection:
    """values: steps by columns, in [-1, 1] or nan"""
    corners, colors = [], []
    for row, step in zip(values, steps, strict=True):
        for left, right, value in zip(edges[:-1], edges[1:], row, strict=True):
            if math.isfinite(value):
                corners.append(_rectangle(left, right, step - 0.5, step + 0.5))
                colors.append(_shade(value))
    return PolyCollection(corners, facecolors=colors, linewidths=0, antialiaseds=False)


def _rectangle(left: float, right: float, bottom: float, top: float) -> list[tuple[float, float]]:
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _shade(value: float) -> tuple[float, float, float, float]:
    """Opacity is the size of `value`, in [-1, 1]; what is small stays just visible."""
    return to_rgba(COLORS["train" if value < 0 else "after"], 0.05 + 0.95 * abs(value))


def _color_scale(axes: Axes, canvas: Canvas, largest: float, unit: str, *, signed: bool) -> None:
    """A narrow key above the map, from 0 or minus the largest value to the largest, with its unit."""
    left, width = 44, 64
    box = _box(
        canvas, left=left, right=canvas.width - left - width, top=4, bottom=canvas.height - 13
    )
    key = axes.figure.add_axes(box)
    key.set_axis_off()
    edges = np.linspace(-1.0 if signed else 0.0, 1.0, 25)
    middles = (edges[:-1] + edges[1:]) / 2
    key.add_collection(_cells(edges, [0], middles[None]))
    key.set_xlim(edges[0], edges[-1])
    key.set_ylim(-0.5, 0.5)
    low = f"−{largest:.2g}" if signed else "0"
    at = {"transform": key.transAxes, "va": "center_baseline"}
    key.text(-0.08, 0.4, low, ha="right", **at)
    key.text(1.08, 0.4, f"{largest:.2g} {unit}", ha="left", **at)


def _inline(svg: str, canvas: Canvas) -> str:
    """The bare <svg> element: named, with its own ids, the page's colours and the page's font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", _opening(canvas), svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" id=\"(?![mp][0-9a-f]{10}\")[^\"]*\"", "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"( id=\"|url\(#|href=\"#)", rf"\g<1>{canvas.name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", svg).strip()


def _opening(canvas: Canvas) -> str:
    """A replacement pattern: the element's start, which keeps the view box."""
    label = escape(canvas.label).replace("\\", "\\\\")
    return rf'<svg \g<1> role="img" aria-label="{label}">'
