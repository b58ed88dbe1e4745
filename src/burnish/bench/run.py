"""Run a grid and write its page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from burnish.bench.cells import LOG, STOPPED, Outcome, check_folders, run_cells
from burnish.bench.grid import Cell, Grid
from burnish.bench.page import page
from burnish.bench.summary import summarise
from burnish.bench.tables import markdown


def bench(name: str, grid: Grid, cells: Sequence[Cell], out: Path, *, run: bool = True) -> int:
    """Run the cells that are not finished, then write `bench.html` and `table.md` into `out`.

    Returns 0 if every cell is finished, 1 if one failed, 130 if they were asked to stop before.
    """
    check_folders(cells, out)
    print(f"{len(cells)} cells in {out}", flush=True)
    outcome = run_cells(cells, out, grid.jobs) if run else Outcome({}, stopped=False)
    summary = summarise(name, grid, cells, out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.html").write_text(page(summary, outcome.faults), encoding="utf-8")
    (out / "table.md").write_text(markdown(summary), encoding="utf-8")
    print(f"Page:  {out / 'bench.html'}\nTable: {out / 'table.md'}")
    _tell(outcome.faults, out)
    if outcome.faults:
        return 1
    if outcome.stopped:
        print("Stopped; the same command goes on where it was.")
        return STOPPED
    return 0


def _tell(faults: Mapping[str, str], out: Path) -> None:
    for name, fault in faults.items():
        print(f"burnish: {name} failed: {fault}\n  {out / name / LOG}", file=sys.stderr)
