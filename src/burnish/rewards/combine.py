"""Several rewards as one: weighed sums, products, minima; gates; constraints whose weights adapt.

Everything here is arithmetic on what the parts say; `burnish.scoring` asks them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from burnish import decays
from burnish.decays import Level

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.reward import Reward
    from burnish.rollout import Samples
    from burnish.scoring import Scored, Told

R = TypeVar("R")
S = TypeVar("S")
"""A reward: in a recipe one of those that it may name, in Python any function of samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term(Generic[R]):
    """A reward that is to be high: clipped, then normalised, then weighed."""

    reward: R
    weight: Level = 1.0
    """By which it is multiplied; negative for a reward that is to be low. A weight that falls makes a bonus
    that is withdrawn: what is reported has the weight that it ends at."""
    clip: tuple[float, float] | None = None
    """The lowest and the highest that counts, in the reward's own unit."""
    normalise: Literal["z-score", "rank"] | None = None
    """For learning: deviation from the mean in standard deviations, or the share of the others that a sample
    beats, in [0, 1], where a tie counts half. Then terms of different units weigh alike, and no term drowns
    another whose spread is small. What is reported is not normalised."""
    over: Literal["prompt", "batch"] = "prompt"
    """Among which samples it is normalised: those of its prompt, or all that were drawn."""

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip = {list(self.clip)}, expected a lower and a higher number")
        if not all(map(math.isfinite, decays.bounds(self.weight))):
            raise ValueError(f"weight = {self.weight}, expected a finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate(Generic[R]):
    """A reward that a sample must reach, or the whole is `otherwise` for it."""

    reward: R
    at_least: float
    """In the reward's own unit."""
    otherwise: float
    """What a sample that fails is worth, in place of what its terms say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint(Generic[R]):
    """A reward whose mean is to stay at or above a bound, by a Lagrange multiplier that adapts.

    `multiplier * (reward - at_least)` is added to what is learned from. After each iteration the multiplier
    moves by `rate * (at_least - mean)`, and never below 0: projected dual ascent on the Lagrangian of
    "maximise the terms subject to E[reward] >= at_least" (Tessler et al. 2019, arXiv 1805.11074).
    """

    reward: R
    at_least: float
    """Bound on the mean over samples, in the reward's own unit."""
    rate: float = 1.0
    """Of the multiplier, an iteration."""
    initial: float = 0.0
    """The multiplier at first."""

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate = {self.rate}, expected a positive number")
        if self.initial < 0:
            raise ValueError(f"initial = {self.initial}, expected 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Combine(Generic[R]):
    """Terms put together, with gates and constraints.

    What is reported of a sample is `how` of the clipped and weighed terms, or a gate's `otherwise`: neither
    normalised nor with constraints, so it means the same from the first iteration to the last.
    """

    terms: Mapping[str, Term[R]]
    """By names of one's own, under which each is logged and plotted."""
    how: Literal["sum", "product", "minimum"] = "sum"
    """Of the terms."""
    gates: Mapping[str, Gate[R]] = field(default_factory=dict)
    """All have to be passed; the first that is not says what a sample is worth."""
    constraints: Mapping[str, Constraint[R]] = field(default_factory=dict)
    """On means; see `Constraint`."""

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("terms is empty, expected at least one")
        names = [*self.terms, *self.gates, *self.constraints]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} names two parts; each needs a name of its own")

    @property
    def parts(self) -> Mapping[str, R]:
        every: Mapping[str, Any] = {**self.terms, **self.gates, **self.constraints}
        return {name: part.reward for name, part in every.items()}

    def with_each(self, change: Callable[[R], S]) -> Combine[S]:
        """The same with `change` of each reward in its place."""

        def changed(parts: Mapping[str, Any]) -> dict[str, Any]:
            return {name: replace(part, reward=change(part.reward)) for name, part in parts.items()}

        return Combine(
            terms=changed(self.terms),
            how=self.how,
            gates=changed(self.gates),
            constraints=changed(self.constraints),
        )

    @property
    def differentiable(self) -> bool:
        """Whether all parts are, and what is learned of a sample depends on that sample alone."""
        alone = all(term.normalise is None for term in self.terms.values())
        smooth = all(getattr(part, "differentiable", True) for part in self.parts.values())
        return alone and smooth and self.unit == "sample"

    @property
    def unit(self) -> Literal["sample", "group"]:
        """What its values judge: a prompt's samples, if a part compares them."""
        units = {getattr(part, "unit", "sample") for part in self.parts.values()}
        return "sample" if units == {"sample"} else "group"

    @property
    def deterministic(self) -> bool:
        return all(getattr(part, "deterministic", True) for part in self.parts.values())

    def prepare(self) -> None:
        from burnish import reward

        for part in self.parts.values():
            reward.prepare(cast("Reward", part))

    def __call__(self, samples: Samples) -> Tensor:
        """The values of the samples."""
        return self.values(_told(self, samples))

    def values(self, told: Told) -> Tensor:
        weighed = [
            decays.settled(term.weight) * _clipped(term, told[name])
            for name, term in self.terms.items()
        ]
        return self._gated(told, _together(weighed, self.how))

    def rewards(self, told: Told, prompts: Sequence[str]) -> Tensor:
        return self.at(0, {}).rewards(told, prompts)

    def at(self, iteration: int, memory: Mapping[str, Any]) -> Weighed:
        return Weighed(self, iteration, {**self._initial(), **memory})

    def learned(self, scored: Scored, memory: Mapping[str, Any]) -> Mapping[str, Any]:
        now = {**self._initial(), **memory}
        return {
            name: max(
                0.0,
                now[name] + each.rate * (each.at_least - scored.parts[name].double().mean().item()),
            )
            for name, each in self.constraints.items()
        }

    def levels(self, iteration: int, memory: Mapping[str, Any]) -> Mapping[str, float]:
        falling = {
            f"weight {name}": term.weight.at(iteration)
            for name, term in self.terms.items()
            if isinstance(term.weight, decays.Decay)
        }
        now = {**self._initial(), **memory}
        return {**falling, **{f"multiplier {name}": now[name] for name in self.constraints}}

    def _initial(self) -> dict[str, float]:
        return {name: each.initial for name, each in self.constraints.items()}

    def _gated(self, told: Told, values: Tensor) -> Tensor:
        for name, gate in reversed([*self.gates.items()]):
            values = values.where(told[name] >= gate.at_least, gate.otherwise)
        return values


@dataclass(frozen=True, slots=True)
class Weighed:
    """A `Combine` in one iteration: its weights are numbers, and its constraints have multipliers."""

    combine: Combine[Any]
    iteration: int
    multipliers: Mapping[str, float]

    @property
    def parts(self) -> Mapping[str, Reward]:
        return self.combine.parts

    def __call__(self, samples: Samples) -> Tensor:
        """What is learned from, with its gradient."""
        return self.rewards(_told(self.combine, samples), samples.prompts)

    def values(self, told: Told) -> Tensor:
        return self.combine.values(told)

    def rewards(self, told: Told, prompts: Sequence[str]) -> Tensor:
        weighed = [
            decays.at(term.weight, self.iteration) * _normalised(term, told[name], prompts)
            for name, term in self.combine.terms.items()
        ]
        total = self.combine._gated(told, _together(weighed, self.combine.how))
        for name, each in self.combine.constraints.items():
            total = total + self.multipliers[name] * (told[name] - each.at_least)
        return total


def _told(combine: Combine[Any], samples: Samples) -> Told:
    from burnish.reward import answer

    return {name: answer(part, samples) for name, part in combine.parts.items()}


def _clipped(term: Term[Any], values: Tensor) -> Tensor:
    return values if term.clip is None else values.clamp(*term.clip)


def _normalised(term: Term[Any], values: Tensor, prompts: Sequence[str]) -> Tensor:
    from burnish import advantages

    clipped = _clipped(term, values)
    if term.normalise is None:
        return clipped
    groups = prompts if term.over == "prompt" else ("",) * len(prompts)
    if term.normalise == "rank":
        return advantages.ranks(clipped, groups)
    return advantages.within_groups(clipped, groups)


def _together(weighed: Sequence[Tensor], how: Literal["sum", "product", "minimum"]) -> Tensor:
    import torch

    stacked = torch.stack([*weighed])
    match how:
        case "sum":
            return stacked.sum(dim=0)
        case "product":
            return stacked.prod(dim=0)
        case "minimum":
            return stacked.amin(dim=0)
