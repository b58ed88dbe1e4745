"""Exploration: chains drawn from a wider distribution than the policy's, and weighted back to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from burnish import transitions
from burnish.decays import Decay, LinearDecay, bounds

if TYPE_CHECKING:
    from burnish.algorithms import Memory
    from burnish.rollout import Explore
    from burnish.transitions import Gaussian, Mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """Epsilon-greedy for a Gaussian policy: now and then an action is drawn with a wider deviation.

    Every row is weighted by its chain's density under the policy over that under the mixture, so the
    gradient stays that of the policy.
    """

    epsilon: Decay = field(default_factory=lambda: LinearDecay(start=0.05))
    """Chance that an action (one step of one sample) is explored, falling over the iterations."""
    widening: float = 1.0
    """An explored action's standard deviation is 1 + widening / sqrt(dimensions) times the policy's: its
    weight is then about exp(-widening^2), however large the event."""

    def __post_init__(self) -> None:
        _check(self.epsilon)
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


def _check(epsilon: Decay) -> None:
    end, start = bounds(epsilon)
    if not 0 <= end <= start < 1:
        raise ValueError(
            f"epsilon.start = {start} with epsilon.end = {end}, expected chances from 0 to less than 1: "
            "exploration never takes every action"
        )
