"""The live display of a run in the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from burnish.train.loop import Iteration


class Console:
    """A progress bar with the reward, its spread, the held-out reward and the time left.

    Where the output is not a terminal it prints a line an iteration instead.
    """

    def __init__(self, total: int, done: int = 0, terminal: Terminal | None = None) -> None:
        self._terminal = terminal or Terminal()
        self._total = total
        self._began = time.monotonic()
        self._first = done
        self._held_out = ""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("iteration"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[reward]}"),
            TextColumn("{task.fields[left]}"),
            console=self._terminal,
            disable=not self._terminal.is_terminal,
        )
        self._task = self._progress.add_task(
            "run", total=total, completed=done, reward="sampling the base model", left=""
        )

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
        self._progress.console.print(text, highlight=False)

    def evaluated(self, summary: Mapping[str, float]) -> None:
        self._held_out = f" | held-out {summary['mean']:.3f} ± {summary['std']:.3f}"
        self._progress.update(self._task, reward=self._held_out.removeprefix(" | "))

    def iterated(self, report: Iteration) -> None:
        mean, std = report.rewards.mean().item(), report.rewards.std(correction=0).item()
        reward = f"reward {mean:.3f} ± {std:.3f}{self._held_out}"
        left = f"{clock(self._left(report.number))} left"
        self._progress.update(self._task, completed=report.number, reward=reward, left=left)
        if self._progress.disable:
            self.say(f"iteration {report.number}/{self._total}: {reward} | {left}")

    def _left(self, number: int) -> float:
        pace = (time.monotonic() - self._began) / (number - self._first)
        return pace * (self._total - number)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as a clock shows them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
