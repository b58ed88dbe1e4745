"""The README's picture: the first held-out samples of a run, the base model's above the trained one's.

    python scripts/before_after.py runs/compressibility docs/assets/before_after.png [--count 8]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from burnish.folder import RunFolder

SCALE = 2
"""Every pixel becomes a square of so many."""
GAP = 8
"""White pixels between two images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=8)
    arguments = parser.parse_args()
    folder = RunFolder(arguments.run)
    numbers = folder.sampled("held-out")
    rows = [
        _images(folder.samples("held-out", number), arguments.count)
        for number in (numbers[0], numbers[-1])
    ]
    _grid(rows).save(arguments.out, optimize=True)


def _images(folder: Path, count: int) -> list[Image.Image]:
    return [Image.open(folder / f"{i:04d}.png") for i in range(count)]


def _grid(rows: list[list[Image.Image]]) -> Image.Image:
    width, height = (side * SCALE for side in rows[0][0].size)
    columns = len(rows[0])
    size = (columns * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            enlarged = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (x * (width + GAP), y * (height + GAP)))
    return sheet


if __name__ == "__main__":
    main()
