"""Run the cells of a grid, some at a time, each in a process and a run folder of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.bench.grid import Cell
from burnish.experiment import Stop, asked_to_stop, check_same
from burnish.folder import RunFolder, lines
from burnish.recipe import Recipe
from burnish.track.cells import Cells

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

GLANCE = 0.5
"""Seconds between two looks at what the cells have got done."""

LOG = "log.txt"
"""What a cell prints, in its run folder."""

STOPPED = 130
"""Exit status of a cell that was asked to stop, and can go on."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """faults: of each cell that failed, by its name; stopped: by Ctrl-C, before all had run"""

    faults: Mapping[str, str]
    stopped: bool


def check_folders(cells: Sequence[Cell], out: Path) -> None:
    """Raises ConfigError if a cell's run folder belongs to another recipe, or has gone on for longer."""
    for cell in cells:
        folder = RunFolder(out / cell.path)
        if folder.recipe.exists():
            check_same(cell.recipe, folder)


def is_finished(cell: Cell, folder: RunFolder) -> bool:
    """True if the cell has done all its iterations, and its report, which comes last, is written."""
    done = folder.report.is_file() and folder.weights.is_dir()
    return done and _iteration(folder) == cell.recipe.training.iterations


def run_cells(cells: Sequence[Cell], out: Path, jobs: int) -> Outcome:
    """Run those that are not finished, `jobs` at a time; a half-done one goes on.

    The first Ctrl-C or SIGTERM lets the running ones stop after their iteration.
    """
    waiting = deque(cell for cell in cells if not is_finished(cell, RunFolder(out / cell.path)))
    display = Cells(len(cells), len(cells) - len(waiting))
    with display, asked_to_stop() as stop:
        pool = _Pool(out, jobs, waiting, display, stop)
        try:
            while pool.running or (waiting and not stop.asked):
                pool.fill()
                pool.look()
        finally:
            pool.terminate()
            pool.join()
    return Outcome(pool.faults, stopped=stop.asked)


@dataclass(slots=True)
class _Pool:
    """Cells that wait, cells that run, and what became of those that failed."""

    out: Path
    jobs: int
    waiting: deque[Cell]
    display: Cells
    stop: Stop
    running: dict[str, tuple[BaseProcess, Cell]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    told: bool = False

    def fill(self) -> None:
        while self.waiting and len(self.running) < self.jobs and not self.stop.asked:
            cell = self.waiting.popleft()
            self.running[str(cell)] = (_start(cell, self.out, self.jobs), cell)
            self.display.began(
                str(cell), _iteration(self._folder(cell)), cell.recipe.training.iterations
            )

    def look(self) -> None:
        """Wait a moment, pass a wish to stop on, and show how far the cells have come."""
        wait([process.sentinel for process, _ in self.running.values()], timeout=GLANCE)
        if self.stop.asked and not self.told:
            self.told = True
            self.terminate()
        for name, (process, cell) in list(self.running.items()):
            ended, folder = not process.is_alive(), self._folder(cell)
            self.display.iterated(
                name, _iteration(folder), cell.recipe.training.iterations, _reward(folder)
            )
            if ended:
                del self.running[name]
                self._end(name, process, folder)

    def terminate(self) -> None:
        """Ask the running cells to stop: once for after the iteration, twice for at once."""
        for process, _ in self.running.values():
            process.terminate()

    def join(self) -> None:
        for process, _ in self.running.values():
            process.join()

    def _end(self, name: str, process: BaseProcess, folder: RunFolder) -> None:
        if process.exitcode == 0:
            self.display.ended(name, _reward(folder))
        elif self.stop.asked:
            self.display.stopped(name, f"stopped after iteration {_iteration(folder)}")
        else:
            self.faults[name] = _fault(process, folder)
            self.display.ended(name, f"failed: {self.faults[name]}")

    def _folder(self, cell: Cell) -> RunFolder:
        return RunFolder(self.out / cell.path)


def _fault(process: BaseProcess, folder: RunFolder) -> str:
    """Why a cell failed: the last line of its log, or the signal that ended it."""
    status = process.exitcode or 0
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    log = (folder.path / LOG).read_text(encoding="utf-8", errors="replace").strip()
    return log.splitlines()[-1] if log else f"ended with status {status}"


def _last(folder: RunFolder) -> dict[str, Any]:
    return next(iter(reversed(list(lines(folder.metrics)))), {})


def _iteration(folder: RunFolder) -> int:
    return _last(folder).get("iteration", 0)


def _reward(folder: RunFolder) -> str:
    last = _last(folder)
    named = (("reward", last.get("reward")), ("held-out", last.get("held_out")))
    return " | ".join(f"{name} {reward['mean']:.3f}" for name, reward in named if reward)


# --- the process of a cell -----------------------------------------------------------------------


def _start(cell: Cell, out: Path, jobs: int) -> BaseProcess:
    path, threads = out / cell.path, max(1, cores() // jobs)
    process = _context().Process(target=_run, args=(cell.recipe, path, threads), name=str(cell))
    process.start()
    return process


def _context() -> SpawnContext | ForkServerContext:
    """Processes are forked off a server that has everything imported, where the system has such servers.

    The server is started deaf to Ctrl-C, which the terminal sends to it too.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["burnish.experiment", "burnish.models.stable_diffusion"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


def cores() -> int:
    """Of the processor, as far as this process may use them."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(recipe: Recipe, path: Path, threads: int) -> None:
    """In the child: train with this many threads, print into the log, and stop when the parent says so."""
    import torch

    from burnish.experiment import run

    path.mkdir(parents=True, exist_ok=True)
    with (path / LOG).open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if sys.platform != "win32":
        os.setpgrp()  # the terminal's Ctrl-C is for the parent, which then asks its children once
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    sys.exit(0 if run(recipe, RunFolder(path), resume=True) else STOPPED)


def _follow_parent() -> None:
    """Ask this process to stop when the one that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
