"""Values that fall over the iterations of a run: functions of the iteration's number, counted from 0.

What a value means, and its bounds, are checked by the settings that have it. Nothing is remembered, so a
resumed run has the values of the one that was never stopped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearDecay:
    """From `start` to `end` in a straight line."""

    start: float
    """In the first iteration."""
    end: float = 0.0
    """After `iterations`, and from then on; also where there is no iteration (evaluation, drawing)."""
    iterations: int = 50
    """How many the decay takes."""

    def __post_init__(self) -> None:
        _check(self.start, self.end, "iterations", self.iterations)

    def at(self, iteration: int) -> float:
        return self.start + (self.end - self.start) * min(iteration / self.iterations, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineDecay:
    """From `start` to `end` along half a cosine: slowly, fast, slowly."""

    start: float
    """In the first iteration."""
    end: float = 0.0
    """After `iterations`, and from then on; also where there is no iteration (evaluation, drawing)."""
    iterations: int = 50
    """How many the decay takes."""

    def __post_init__(self) -> None:
        _check(self.start, self.end, "iterations", self.iterations)

    def at(self, iteration: int) -> float:
        share = min(iteration / self.iterations, 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialDecay:
    """From `start` towards `end`, whose distance is halved every `half_life` iterations."""

    start: float
    """In the first iteration."""
    end: float = 0.0
    """What it comes ever closer to; also the value where there is no iteration (evaluation, drawing)."""
    half_life: float = 10.0
    """Iterations in which the distance to `end` halves."""

    def __post_init__(self) -> None:
        _check(self.start, self.end, "half_life", self.half_life)

    def at(self, iteration: int) -> float:
        return self.end + (self.start - self.end) * 0.5 ** (iteration / self.half_life)


Decay = LinearDecay | CosineDecay | ExponentialDecay
Level = float | LinearDecay | CosineDecay | ExponentialDecay
"""A number, or one that falls."""


def bounds(level: Level) -> tuple[float, float]:
    """What a level ends at and what it starts from: all that it ever is lies between them."""
    return (level.end, level.start) if isinstance(level, Decay) else (level, level)


def settled(level: Level) -> float:
    """The level where there is no iteration: what it ends at."""
    return bounds(level)[0]


def at(level: Level, iteration: int) -> float:
    """The level in an iteration, counted from 0."""
    return level.at(iteration) if isinstance(level, Decay) else level


def moving(settings: Any, iteration: int) -> Mapping[str, float]:
    """The values that the decays among a dataclass's fields have in an iteration, by name; also those
    of the settings inside it."""
    found: dict[str, float] = {}
    for each in dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ():
        value = getattr(settings, each.name)
        if isinstance(value, Decay):
            found[each.name] = value.at(iteration)
        else:
            found |= moving(value, iteration)
    return found


def _check(start: float, end: float, name: str, duration: float) -> None:
    if not -math.inf < end <= start < math.inf:
        raise ValueError(f"start = {start} with end = {end}, expected end <= start: a decay falls")
    if duration <= 0:
        raise ValueError(f"{name} = {duration}, expected a positive number")
