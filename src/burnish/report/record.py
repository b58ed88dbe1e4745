"""What a run folder says, as values; nothing is drawn here, and no torch is needed to read it."""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.folder import RunFolder, lines


class NoRunError(ValueError):
    """The folder holds no run that could be reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Rewards of one round of samples, in the reward's own unit.

    std: of the samples, not of the mean; population form
    """

    mean: float
    std: float
    min: float
    max: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of metrics.jsonl.

    number: iterations done; 0 is the base model
    queries: training rewards asked for so far
    reward: of this iteration's training samples; None for the base model
    held_out: None where the model was not evaluated
    guards: what else was measured on the held-out samples, such as `diversity` and `blank`
    by_step: for each metric, its mean at each denoising step, counted from noise
    """

    number: int
    queries: int
    reward: Spread | None
    held_out: Spread | None
    guards: Mapping[str, float]
    metrics: Mapping[str, float]
    by_step: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    image: Path
    prompt: str
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Mean difference after - before over the same prompts and noise, and its standard error."""

    mean: float
    error: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A run as its folder tells it.

    lines: in order, at least one
    seconds: of each iteration, by part
    held_out: the samples after so many iterations; always the same prompts and the same noise
    """

    name: str
    recipe: Mapping[str, Any]
    environment: Mapping[str, Any]
    lines: tuple[Line, ...]
    seconds: Mapping[int, Mapping[str, float]]
    held_out: Mapping[int, tuple[Sample, ...]]

    @property
    def done(self) -> int:
        """Iterations that were finished."""
        return self.lines[-1].number

    @property
    def asked(self) -> int:
        """Iterations that the recipe asks for."""
        return self.recipe.get("training", {}).get("iterations", self.done)

    @property
    def trained(self) -> tuple[tuple[int, Spread], ...]:
        return tuple((line.number, line.reward) for line in self.lines if line.reward)

    @property
    def evaluated(self) -> tuple[tuple[int, Spread], ...]:
        return tuple((line.number, line.held_out) for line in self.lines if line.held_out)

    @property
    def base(self) -> Spread | None:
        """The base model's held-out rewards."""
        return self.lines[0].held_out if self.lines[0].number == 0 else None

    @property
    def pairs(self) -> tuple[tuple[Sample, Sample], ...]:
        """The base model's held-out samples, each with the newest of the same prompt and noise."""
        numbers = sorted(self.held_out)
        if len(numbers) < 2:
            return ()
        before, after = self.held_out[numbers[0]], self.held_out[numbers[-1]]
        both = zip(before, after, strict=False)
        return tuple((old, new) for old, new in both if old.prompt == new.prompt)

    @property
    def change(self) -> Change | None:
        """How the held-out reward changed; None with fewer than two pairs."""
        differences = [after.reward - before.reward for before, after in self.pairs]
        if len(differences) < 2:
            return None
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        return Change(mean=statistics.fmean(differences), error=error, count=len(differences))

    @property
    def total_seconds(self) -> float:
        return sum(sum(parts.values()) for parts in self.seconds.values())


def read(folder: RunFolder) -> Record:
    """The run in the folder. Raises `NoRunError`, a ValueError, if there is none to report."""
    if not folder.recipe.is_file():
        raise NoRunError(
            f"{folder.path} is not a run folder: expected recipe.toml and metrics.jsonl in it, as "
            "`burnish train` writes them"
        )
    measured = tuple(_line(line) for line in lines(folder.metrics))
    if not measured:
        raise NoRunError(
            f"{folder.path} has nothing to report: expected at least one line in metrics.jsonl. The "
            "run stopped before the base model was evaluated; go on with burnish train --resume"
        )
    return Record(
        name=folder.path.resolve().name,
        recipe=tomllib.loads(folder.recipe.read_text(encoding="utf-8")),
        environment=_environment(folder.environment),
        lines=measured,
        seconds={line["iteration"]: _parts(line) for line in lines(folder.timing)},
        held_out=_held_out(folder, measured[-1].number),
    )


def _environment(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _line(line: Mapping[str, Any]) -> Line:
    held_out = line.get("held_out")
    return Line(
        number=line["iteration"],
        queries=line["queries"],
        reward=_spread(line.get("reward")),
        held_out=_spread(held_out),
        guards={k: v for k, v in (held_out or {}).items() if k not in Spread.__slots__},
        metrics=line.get("metrics", {}),
        by_step={k: _by_step(v) for k, v in line.get("by_step", {}).items() if v},
    )


def _spread(summary: Mapping[str, Any] | None) -> Spread | None:
    return Spread(**{name: summary[name] for name in Spread.__slots__}) if summary else None


def _by_step(values: Mapping[str, float]) -> Mapping[int, float]:
    return {int(step): value for step, value in values.items()}


def _parts(line: Mapping[str, Any]) -> Mapping[str, float]:
    return {name: each for name, each in line.items() if name not in ("iteration", "cache")}


def _held_out(folder: RunFolder, last: int) -> Mapping[int, tuple[Sample, ...]]:
    """Samples beyond the last line are left out: a crash cut their iteration short."""
    numbers = [number for number in folder.sampled("held-out") if number <= last]
    found = {number: _samples(folder.samples("held-out", number)) for number in numbers}
    return {number: samples for number, samples in found.items() if samples}


def _samples(folder: Path) -> tuple[Sample, ...]:
    return tuple(
        Sample(image=folder / entry["file"], prompt=entry["prompt"], reward=entry["reward"])
        for entry in lines(folder / "index.jsonl")
    )
