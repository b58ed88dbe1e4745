"""Exploration: chains drawn from another distribution than the policy's, and weighted back to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from burnish import transitions
from burnish.decays import Decay, LinearDecay, bounds

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.algorithms import Memory
    from burnish.policy import Cond, Policy
    from burnish.rollout import Explore
    from burnish.transitions import Gaussian, Mixture


@dataclass(frozen=True, slots=True, kw_only=True)
class Wider:
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

    def behaviour(self, policy: Policy, iteration: int) -> Explore:
        epsilon = self.epsilon.at(iteration)

        def explore(step: Tensor, x: Tensor, cond: Cond) -> Mixture:
            own = policy.transition(step, x, cond)
            return transitions.Mixture(own, self.explored(own), epsilon)

        return explore

    def explored(self, own: Gaussian) -> Gaussian:
        """Of the explored actions, where `own` is of the policy's."""
        return transitions.widened(own, 1 + self.widening / own.mean[0].numel() ** 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unguided:
    """Now and then an action is drawn without classifier-free guidance, which holds samples together.

    Weighted as `Wider`. It needs a denoiser that is `Guided`, with a guidance other than 1.
    """

    epsilon: Decay = field(default_factory=lambda: LinearDecay(start=0.05))
    """Chance that an action (one step of one sample) is explored, falling over the iterations."""
    reach: float = 2.0
    """An explored action's mean is at most so many standard deviations from the policy's, on the way to the
    unguided mean: its weight is then about exp(-reach^2 / 2) or more, however large the event and the
    guidance. `inf` for the unguided mean always."""

    def __post_init__(self) -> None:
        _check(self.epsilon)
        if not self.reach > 0:
            raise ValueError(f"reach = {self.reach}, expected a positive number, or inf")

    def behaviour(self, policy: Policy, iteration: int) -> Explore:
        policy.guided()  # refused here, before anything is drawn
        epsilon = self.epsilon.at(iteration)

        def explore(step: Tensor, x: Tensor, cond: Cond) -> Mixture:
            own, unguided = policy.with_and_without_guidance(step, x, cond)
            other = transitions.towards(own, unguided, self.reach)
            return transitions.Mixture(own, other, epsilon)

        return explore


Exploration = Wider | Unguided


@runtime_checkable
class Explores(Protocol):
    """An algorithm that may explore."""

    @property
    def exploration(self) -> Exploration | None: ...


def behaviour(exploration: Exploration | None, policy: Policy, memory: Memory) -> Explore | None:
    """What this iteration draws from; None for the policy itself.

    Raises ValueError if the policy cannot be explored so.
    """
    return None if exploration is None else exploration.behaviour(policy, _iterations(memory))


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
