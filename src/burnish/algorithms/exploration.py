"""Exploration: chains drawn from a wider distribution than the policy's, and weighted back to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from burnish import transitions

if TYPE_CHECKING:
    from burnish.algorithms import Memory
    from burnish.rollout import Explore
    from burnish.transitions import Gaussian, Mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearDecay:
    """From `start` to `end` in a straight line."""

    start: float = 0.05
    """Chance that an action is explored in the first iteration."""
    end: float = 0.0
    """Chance after `iterations`, and from then on."""
    iterations: int = 50
    """How many the decay takes."""

    def __post_init__(self) -> None:
        _check(self.start, self.end, "iterations", self.iterations)

    def at(self, iteration: int) -> float:
        return self.start + (self.end - self.start) * min(iteration / self.iterations, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CosineDecay:
    """From `start` to `end` along half a cosine: slowly, fast, slowly."""

    start: float = 0.05
    """Chance that an action is explored in the first iteration."""
    end: float = 0.0
    """Chance after `iterations`, and from then on."""
    iterations: int = 50
    """How many the decay takes."""

    def __post_init__(self) -> None:
        _check(self.start, self.end, "iterations", self.iterations)

    def at(self, iteration: int) -> float:
        share = min(iteration / self.iterations, 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialDecay:
    """From `start`, halved every `half_life` iterations."""

    start: float = 0.05
    """Chance that an action is explored in the first iteration."""
    half_life: float = 10.0
    """Iterations in which the chance halves."""

    def __post_init__(self) -> None:
        _check(self.start, 0.0, "half_life", self.half_life)

    def at(self, iteration: int) -> float:
        return self.start * 0.5 ** (iteration / self.half_life)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """Epsilon-greedy for a Gaussian policy: now and then an action is drawn with a wider deviation.

    Every row is weighted by its chain's density under the policy over that under the mixture, so the
    gradient stays that of the policy.
    """

    epsilon: LinearDecay | CosineDecay | ExponentialDecay = field(default_factory=LinearDecay)
    """Chance that an action (one step of one sample) is explored, falling over the iterations."""
    widening: float = 1.0
    """An explored action's standard deviation is 1 + widening / sqrt(dimensions) times the policy's: its
    weight is then about exp(-widening^2), however large the event."""

    def __post_init__(self) -> None:
        if self.widening <= 0:
            raise ValueError(f"widening = {self.widening}, expected a positive number")

    def behaviour(self, iteration: int) -> Explore:
        """The distribution that actions are drawn from in this iteration, counted from 0."""
        epsilon = self.epsilon.at(iteration)

        def widened(policy: Gaussian) -> Mixture:
            scale = 1 + self.widening / policy.mean[0].numel() ** 0.5
            return transitions.Mixture(policy, epsilon, scale)

        return widened


def behaviour(exploration: Exploration | None, memory: Memory) -> Explore | None:
    """What this iteration draws from; None for the policy itself."""
    return None if exploration is None else exploration.behaviour(_iterations(memory))


def counted(exploration: Exploration | None, memory: Memory) -> tuple[Memory, dict[str, float]]:
    """The memory after an iteration of exploring, and the chance that it explored with."""
    if exploration is None:
        return memory, {}
    number = _iterations(memory)
    return {**memory, "explored_iterations": number + 1}, {
        "exploration_epsilon": exploration.epsilon.at(number)
    }


def _iterations(memory: Memory) -> int:
    return memory.get("explored_iterations", 0)


def _check(start: float, end: float, name: str, duration: float) -> None:
    if not 0 <= end <= start < 1:
        raise ValueError(
            f"start = {start} with end = {end}, expected 0 <= end <= start < 1: exploration falls, and "
            "it never takes every action"
        )
    if duration <= 0:
        raise ValueError(f"{name} = {duration}, expected a positive number")
