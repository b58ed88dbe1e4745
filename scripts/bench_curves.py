"""The docs' pictures of finished grids: each algorithm's held-out reward against reward queries.

python scripts/bench_curves.py docs/assets/curves paper=runs/bench/paper alignment=runs/bench/alignment
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from burnish.bench.grid import load_grid
from burnish.bench.summary import Comparison, Curve, Standing, summarise

INK, REST, BASE = "#b4451f", "#c9c5bd", "#8a857c"
"""The algorithm's own colour, that of the others, and that of the base model's level."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("grids", nargs="+", help="GRID=RUNS, of the same algorithms")
    arguments = parser.parse_args()
    comparisons: list[Comparison] = []
    names: list[str] = []
    for given in arguments.grids:
        name, _, runs = given.partition("=")
        grid, cells = load_grid(name)
        comparisons += summarise(name, grid, cells, Path(runs)).comparisons
        names += [each for each in grid.algorithms if each not in names]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        figure, axes = plt.subplots(
            1, len(comparisons), figsize=(3.2 * len(comparisons), 2.5), squeeze=False
        )
        for ax, comparison in zip(axes[0], comparisons, strict=True):
            _panel(ax, comparison, name)
        axes[0, 0].set_ylabel("held-out reward")
        figure.tight_layout()
        figure.savefig(arguments.out / f"{name}.png", dpi=110)
        plt.close(figure)


def _panel(ax: Axes, comparison: Comparison, name: str) -> None:
    """One reward: the algorithm with the 95% interval of its seeds' mean, all others without."""
    ax.axhline(comparison.base.mean, color=BASE, linewidth=0.8, linestyle=":")
    for standing in comparison.standings:
        if standing.algorithm != name:
            _line(ax, standing.curve, REST, 1.0)
    for standing in comparison.standings:
        if standing.algorithm == name:
            _line(ax, standing.curve, INK, 2.0)
            _band(ax, standing)
    ax.set_title(comparison.reward, fontsize=9)
    ax.set_xlabel("reward queries", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def _line(ax: Axes, curve: Curve, color: str, width: float) -> None:
    ax.plot(curve.queries, [each.mean for each in curve.held_out], color=color, linewidth=width)


def _band(ax: Axes, standing: Standing) -> None:
    curve = standing.curve
    low, high = zip(
        *((each.mean - (each.half or 0), each.mean + (each.half or 0)) for each in curve.held_out),
        strict=True,
    )
    ax.fill_between(curve.queries, low, high, color=INK, alpha=0.15, linewidth=0)


if __name__ == "__main__":
    main()
