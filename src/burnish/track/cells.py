"""The live display of many runs at once."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from burnish.track.console import clock


class Cells:
    """A bar for all runs with the time left, and below it one for each that is under way.

    Where the output is not a terminal it prints a line for each run that begins or ends.
    """

    def __init__(self, total: int, done: int, terminal: Terminal | None = None) -> None:
        self._terminal = terminal or Terminal()
        self._total = total
        self._first = self._done = done
        self._began = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[text]}"),
            console=self._terminal,
            disable=not self._terminal.is_terminal,
        )
        self._whole = self._progress.add_task("cells", total=total, completed=done, text="")
        self._tasks: dict[str, TaskID] = {}
        self._shares: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def began(self, name: str, iteration: int, iterations: int) -> None:
        self._tasks[name] = self._progress.add_task(
            name, total=iterations, completed=iteration, text="sampling the base model"
        )
        self._first += iteration / iterations  # was done before, and says nothing of the pace now
        self._shares[name] = iteration / iterations
        if self._progress.disable:
            self.say(f"{name}: began")

    def iterated(self, name: str, iteration: int, iterations: int, text: str) -> None:
        self._progress.update(self._tasks[name], completed=iteration, text=text)
        self._shares[name] = iteration / iterations
        self._progress.update(self._whole, text=self._left())

    def ended(self, name: str, text: str) -> None:
        """A run is over, by its end or by an error."""
        self._drop(name)
        self._done += 1
        self._progress.update(self._whole, completed=self._done, text=self._left())
        self.say(f"{name}: {text} ({self._done}/{self._total})")

    def stopped(self, name: str, text: str) -> None:
        """A run was asked to stop, and can go on."""
        self._drop(name)
        self.say(f"{name}: {text}")

    def _drop(self, name: str) -> None:
        self._progress.remove_task(self._tasks.pop(name))
        del self._shares[name]

    def _left(self) -> str:
        """Time left at the pace of now: cells, with the shares of those under way, a second."""
        done = self._done + sum(self._shares.values())
        if done <= self._first:
            return ""
        pace = (time.monotonic() - self._began) / (done - self._first)
        return f"{clock(pace * (self._total - done))} left"
