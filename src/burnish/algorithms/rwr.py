"""Reward-weighted regression (Lee et al. 2023, arXiv 2302.12192), as in Black et al. 2023, section 4.1.

Both draw samples, weight them by their reward, and fit the network to them by its own denoising loss: one
step of the sampler's chain is never looked at, so any sampler will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from burnish import advantages, losses, rows
from burnish.algorithms import Collection, Memory, endpoints

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness

Over = Literal["prompt", "collection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RWR:
    """Weights are a softmax of the rewards (eq. 5)."""

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    group_size = 1
    train_steps = None

    temperature: float = 0.2
    """Softness of the softmax, in standard deviations of the rewards: 1/5 in the paper's code."""
    over: Over = "prompt"
    """What is normalised together: the samples of a prompt, as in the paper, or all of the collection."""
    draws: int = 5
    """Rows a sample: noise levels at which it is fitted. The paper makes 5 passes over a collection."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature = {self.temperature}, expected a positive number")
        endpoints.check(self.draws)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Endpoints]:
        def weight(rewards: Tensor, prompts: tuple[str, ...]) -> Tensor:
            groups = prompts if self.over == "prompt" else ("",) * len(prompts)
            return advantages.softmax_weights(rewards, groups, self.temperature)

        return endpoints.collect(task, weight, memory, draws=self.draws, randomness=randomness)

    def loss(
        self, policy: Policy, minibatch: rows.Endpoints
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return losses.weighted_denoising(
            endpoints.error(policy, minibatch), minibatch.weight[minibatch.sample]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RWRSparse:
    """Weight 1 for the best of the rewards, 0 for the others (section 4.1)."""

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    group_size = 1
    train_steps = None

    top: float = 0.1
    """Share of the samples that is fitted: above the 0.9 quantile in the paper."""
    over: Over = "prompt"
    """Among which samples: those of a prompt, as in the paper, or all of the collection."""
    draws: int = 5
    """Rows a sample: noise levels at which it is fitted. The paper makes 5 passes over a collection."""

    def __post_init__(self) -> None:
        if not 0 < self.top <= 1:
            raise ValueError(f"top = {self.top}, expected a share in (0, 1]")
        endpoints.check(self.draws)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Endpoints]:
        def weight(rewards: Tensor, prompts: tuple[str, ...]) -> Tensor:
            groups = prompts if self.over == "prompt" else ("",) * len(prompts)
            return advantages.top_fraction(rewards, groups, self.top)

        return endpoints.collect(task, weight, memory, draws=self.draws, randomness=randomness)

    def loss(
        self, policy: Policy, minibatch: rows.Endpoints
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return losses.weighted_denoising(
            endpoints.error(policy, minibatch), minibatch.weight[minibatch.sample]
        )
