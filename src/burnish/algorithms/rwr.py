"""Reward-weighted regression (Lee et al. 2023, arXiv 2302.12192), as in Black et al. 2023, section 4.2.

Both draw samples, weight them by their reward, and fit the network to them by its own denoising loss: no
step of the sampler's chain is ever looked at, so any sampler will do.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from burnish import advantages, rows
from burnish.algorithms import Collection, Memory, endpoints

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness

Over = Literal["prompt", "collection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RWR:
    """Weights are a softmax of the rewards."""

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = False
    group_size = 1
    train_steps = None

    temperature: float = 0.2
    """Softness of the softmax, in standard deviations of the rewards. The paper multiplies raw rewards by
    0.2, that is a temperature of 5 kilobytes or aesthetic points, and has none for other rewards."""
    over: Over = "prompt"
    """What is normalised together: the samples of a prompt, as in the paper, or all of the collection, as
    in its code for compressibility."""
    draws: int = 5
    """Rows a sample: noise levels at which it is fitted; the paper's code makes 5 passes."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature = {self.temperature}, expected a positive number")
        endpoints.check(self.draws)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Endpoints]:
        def weight(rewards: Tensor, prompts: Sequence[str]) -> Tensor:
            return advantages.softmax_weights(
                rewards, _groups(self.over, prompts), self.temperature
            )

        found = endpoints.collect(task, weight, memory, draws=self.draws, randomness=randomness)
        share = advantages.effective_share(found.rows.weight)
        return replace(found, metrics={**found.metrics, "effective_samples": share})

    def loss(
        self, policy: Policy, minibatch: rows.Endpoints
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return endpoints.weighted_loss(policy, minibatch)


@dataclass(frozen=True, slots=True, kw_only=True)
class RWRSparse:
    """Weight 1 for the best of the rewards, 0 for the others."""

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = False
    group_size = 1
    train_steps = None

    top: float = 0.1
    """Share of the samples that is fitted: above the 0.9 quantile in the paper."""
    over: Over = "prompt"
    """Among which samples: those of a prompt, as in the paper, or all of the collection."""
    draws: int = 50
    """Rows a sample that is fitted: noise levels. The paper's code makes 50 passes over the best tenth, so
    that it has as many rows as RWR."""

    def __post_init__(self) -> None:
        if not 0 < self.top <= 1:
            raise ValueError(f"top = {self.top}, expected a share in (0, 1]")
        endpoints.check(self.draws)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Endpoints]:
        def weight(rewards: Tensor, prompts: Sequence[str]) -> Tensor:
            return advantages.top_fraction(rewards, _groups(self.over, prompts), self.top)

        return endpoints.collect(task, weight, memory, draws=self.draws, randomness=randomness)

    def loss(
        self, policy: Policy, minibatch: rows.Endpoints
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return endpoints.weighted_loss(policy, minibatch)


def _groups(over: Over, prompts: Sequence[str]) -> Sequence[str]:
    """Which samples are weighed against each other: one key a sample. Warns if each is alone."""
    if over == "collection":
        return ("",) * len(prompts)
    if len(set(prompts)) == len(prompts):
        warnings.warn(
            f"all {len(prompts)} samples have prompts of their own, so each has weight 1 whatever its "
            "reward, and nothing is learned; set algorithm.over = 'collection', or draw more samples of "
            "fewer prompts",
            stacklevel=2,
        )
    return prompts
