"""What a batch of samples is worth: what a reward's parts say, what is learned from, what is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.reward import Reward, name_of, score, score_answered, unit_of
from burnish.rollout import Samples, join_samples

Told = Mapping[str, Float[Tensor, " batch"]]
"""What each part of a reward says of each sample, by the part's name."""
Answer = Mapping[str, float]
"""What the parts of a reward say of one sample."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Samples with their rewards, float32, on the CPU.

    rewards: what is learned from
    values: what is reported: of each sample alone, in the reward's own unit. The rewards themselves, unless
        the reward is `Composite`
    parts: what the rewards that a `Composite` one is made of say; empty for any other
    """

    samples: Samples
    rewards: Float[Tensor, " batch"]
    values: Float[Tensor, " batch"]
    parts: Told = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.samples)

    def pick(self, index: Sequence[int]) -> Scored:
        """Those at these places, in this order."""
        places = list(index)
        return Scored(
            self.samples.pick(places),
            self.rewards[places],
            self.values[places],
            {name: values[places] for name, values in self.parts.items()},
        )


def join_scored(parts: Sequence[Scored]) -> Scored:
    return Scored(
        join_samples([part.samples for part in parts]),
        torch.cat([part.rewards for part in parts]),
        torch.cat([part.values for part in parts]),
        {name: torch.cat([part.parts[name] for part in parts]) for name in parts[0].parts},
    )


@runtime_checkable
class Composite(Protocol):
    """A reward that is made of others. Each is asked by itself; they are weighed when a batch is whole."""

    @property
    def parts(self) -> Mapping[str, Reward]: ...

    def __call__(self, samples: Samples) -> Tensor: ...

    def values(self, told: Told) -> Tensor:
        """What is reported of each sample, from what the parts say of that sample alone."""
        ...

    def rewards(self, told: Told, prompts: Sequence[str]) -> Tensor:
        """What is learned from; a sample's may depend on the whole batch."""
        ...


@runtime_checkable
class Adapts(Protocol):
    """What a reward may have besides, if it changes in the course of a run."""

    def at(self, iteration: int, memory: Mapping[str, Any]) -> Reward:
        """The reward of an iteration, counted from 0. memory: as `learned` gave it, {} at first"""
        ...

    def learned(self, scored: Scored, memory: Mapping[str, Any]) -> Mapping[str, Any]:
        """The memory after an iteration, of JSON values; the one that is passed in is not changed."""
        ...

    def levels(self, iteration: int, memory: Mapping[str, Any]) -> Mapping[str, float]:
        """What has changed, by name, to be logged."""
        ...


def parts_of(reward: Reward) -> Mapping[str, Reward]:
    """The rewards that are asked; of one that is not `Composite`, itself."""
    return reward.parts if isinstance(reward, Composite) else {name_of(reward): reward}


def ask(reward: Reward, samples: Samples, *, whole: bool) -> list[Answer | None]:
    """What the parts that judge single samples say of each; None of a sample that one of them gave up on.

    The parts that compare samples are left to `weigh`. So samples may be asked about some at a time.

    whole: no sample may go unanswered
    Raises `RewardError`.
    """
    alone = {n: part for n, part in parts_of(reward).items() if unit_of(part) == "sample"}
    answers: list[dict[str, float]] = [{} for _ in range(len(samples))]
    for name, part in alone.items():
        if whole:
            rewards, places = score(part, samples), range(len(samples))
        else:
            rewards, places = score_answered(part, samples)
        for place, value in zip(places, rewards.tolist(), strict=True):
            answers[place][name] = value
    return [answer if len(answer) == len(alone) else None for answer in answers]


def weigh(reward: Reward, samples: Samples, answers: Sequence[Answer]) -> Scored:
    """Ask the parts that compare samples, and weigh all.

    answers: what `ask` found of each of these samples
    Raises `RewardError`.
    """
    told = {
        name: torch.tensor([answer[name] for answer in answers])
        if unit_of(part) == "sample"
        else score(part, samples)
        for name, part in parts_of(reward).items()
    }
    if not isinstance(reward, Composite):
        (rewards,) = told.values()
        return Scored(samples, rewards, rewards)
    return Scored(samples, reward.rewards(told, samples.prompts), reward.values(told), told)


def assess(reward: Reward, samples: Samples) -> Scored:
    """All of the samples, at once. Raises `RewardError`."""
    return weigh(reward, samples, [answer or {} for answer in ask(reward, samples, whole=True)])


def means(parts: Told) -> dict[str, float]:
    """Of each part of a reward, over the samples."""
    return {name: values.double().mean().item() for name, values in parts.items()}
