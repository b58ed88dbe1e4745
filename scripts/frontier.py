"""What the settings of a search reach and what they pay: rise of the reward against prompt alignment.

python scripts/frontier.py tuning runs/bench/tuning docs/assets/frontier.png

Prints a table, in Markdown, and draws it. Alignment is the judge's on the last held-out images of each cell,
which are all in its run folder. Algorithms are told apart by their `algorithm.name`; the best setting of each
is that of the highest rise within `TOLERANCE` of the base model's alignment.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from burnish.bench.grid import Cell, load_grid
from burnish.folder import RunFolder
from burnish.images import read_image
from burnish.portraits.judge import load_judge
from burnish.report.record import read
from burnish.tables import as_table

TOLERANCE = 0.04
"""Of alignment, in [0, 1]: the standard error over 64 captions of two attributes each."""


@dataclass(frozen=True, slots=True)
class Point:
    """A cell: rise in standard deviations of the base model; alignment and diversity at the end."""

    cell: Cell
    rise: float
    alignment: float
    diversity: float

    @property
    def algorithm(self) -> str:
        return as_table(self.cell.recipe)["algorithm"]["name"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid")
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    _, cells = load_grid(arguments.grid)
    points = [_point(cell, RunFolder(arguments.runs / cell.path)) for cell in cells]
    base = _alignment(cells[0], RunFolder(arguments.runs / cells[0].path), first=True)
    best = _best(points, base)
    print(f"base model: alignment {base:.2f}\n\n{_table(points, best)}")
    _draw(points, best, base, arguments.out)


def _point(cell: Cell, folder: RunFolder) -> Point:
    lines = [line for line in read(folder).lines if line.held_out]
    first, last = lines[0].held_out, lines[-1].held_out
    assert first is not None
    assert last is not None
    return Point(
        cell,
        (last.mean - first.mean) / first.std,
        _alignment(cell, folder, first=False),
        lines[-1].guards["diversity"],
    )


def _alignment(cell: Cell, folder: RunFolder, *, first: bool) -> float:
    number = folder.sampled("held-out")[0 if first else -1]
    files = sorted(folder.samples("held-out", number).glob("*.png"))
    prompts = cell.recipe.prompts.held_out(len(files))
    media = torch.stack([read_image(file, 64, 64) for file in files])
    return load_judge().accuracy(media, [prompt.metadata for prompt in prompts]).mean().item()


def _best(points: Sequence[Point], base: float) -> dict[str, Point]:
    """Of each algorithm, as far as one of its settings keeps the alignment; of equal ones the first."""
    found: dict[str, Point] = {}
    for point in sorted(points, key=lambda each: -each.rise):
        if point.alignment >= base - TOLERANCE:
            found.setdefault(point.algorithm, point)
    return found


def _table(points: Sequence[Point], best: dict[str, Point]) -> str:
    rows = ["| algorithm | settings | rise | alignment | diversity |", "|---|---|---:|---:|---:|"]
    for point in sorted(points, key=lambda each: each.algorithm):
        name = point.algorithm
        bold = "**" if best.get(name) is point else ""
        rows.append(
            f"| {bold}{name}{bold} | {_settings(point.cell)} | {point.rise:.2f} | "
            f"{point.alignment:.2f} | {point.diversity:.2f} |"
        )
    return "\n".join(rows)


def _settings(cell: Cell) -> str:
    table = as_table(cell.recipe)
    algorithm, training = table["algorithm"], table["training"]
    parts = [f"learning rate {table['optimizer']['learning_rate']:g}"]
    parts += [f"{training['updates']} updates", f"{training['samples']} samples"]
    parts += [f"{k} {algorithm[k]:g}" for k in SHOWN if k in algorithm]
    return ", ".join(parts)


SHOWN = ("clip", "advantage_clip", "group_size", "draws")
"""Settings of an algorithm that the table tells."""


def _draw(points: Sequence[Point], best: dict[str, Point], base: float, out: Path) -> None:
    figure, ax = plt.subplots(figsize=(7, 4))
    ax.axhline(base - TOLERANCE, color="#8a857c", linewidth=0.8, linestyle=":")
    for number, name in enumerate(dict.fromkeys(point.algorithm for point in points)):
        own = [point for point in points if point.algorithm == name]
        color = f"C{number}"
        ax.scatter([p.rise for p in own], [p.alignment for p in own], color=color, s=18, label=name)
        if name in best:
            ax.scatter(best[name].rise, best[name].alignment, color=color, s=90, marker="*")
    ax.set_xlabel("rise of the held-out reward, standard deviations of the base model", fontsize=8)
    ax.set_ylabel("prompt alignment", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
