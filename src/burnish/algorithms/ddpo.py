"""Denoising diffusion policy optimisation (Black et al. 2023, arXiv 2305.13301)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from burnish import advantages, experience, losses, rows
from burnish.algorithms import Collection, Memory, chains
from burnish.algorithms.critic import Critic
from burnish.algorithms.exploration import Exploration, behaviour

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Experience, Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness


class Baseline(Protocol):
    """How rewards become advantages, from the rewards alone."""

    def advantages(
        self, rewards: Tensor, prompts: Sequence[str], memory: Memory
    ) -> tuple[Tensor, Memory]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PerPrompt:
    """Running statistics of each prompt, as in the paper (appendix A)."""

    size: int = 32
    """Latest rewards of a prompt that are remembered; the paper's code has 16 or 32."""
    min_count: int = 16
    """While fewer are remembered, the batch's statistics serve; from the paper's code."""

    def __post_init__(self) -> None:
        if not 2 <= self.min_count <= self.size:
            raise ValueError(
                f"min_count = {self.min_count}, expected 2 to size = {self.size}: a buffer "
                "never holds more than its size, so the prompt's own statistics would never serve"
            )

    def advantages(
        self, rewards: Tensor, prompts: Sequence[str], memory: Memory
    ) -> tuple[Tensor, Memory]:
        advantage, buffers = advantages.per_prompt(
            rewards,
            prompts,
            memory.get("rewards", {}),
            size=self.size,
            min_count=self.min_count,
        )
        return advantage, {**memory, "rewards": buffers}


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeBatch:
    """Statistics of the iteration's rewards, all prompts together."""

    def advantages(
        self, rewards: Tensor, prompts: Sequence[str], memory: Memory
    ) -> tuple[Tensor, Memory]:
        del prompts
        return advantages.whole_batch(rewards), memory


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPOIS:
    """DDPO with importance sampling: PPO's clipped ratio on each denoising step (eq. 4).

    Several optimiser steps an iteration are sound.
    """

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = True
    differentiates_reward: ClassVar[bool] = False
    group_size = 1

    clip: float = 1e-4
    """Half-width of the ratio's interval, on the mean log-ratio over dimensions; 1e-4 in the paper."""
    advantage_clip: float = 5.0
    """Advantages are clipped to +- this; 5 in the paper's PyTorch code, 10 in its JAX code."""
    baseline: PerPrompt | WholeBatch | Critic = field(default_factory=PerPrompt)
    """How rewards become advantages."""
    train_steps: chains.TrainSteps = None
    """Which denoising steps are trained: all that have a density, so many drawn anew each
    iteration, or those listed (counted from noise)."""
    discount: float = 1.0
    """An advantage at step k of T is weighted by discount^(T - 1 - k); 1 in the paper, less in 2409.00588."""
    exploration: Exploration | None = None
    """Draw some actions from another distribution, and weight the chains back; none in the paper."""

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1:
            raise ValueError(f"clip = {self.clip}, expected a number between 0 and 1")
        chains.check(self.advantage_clip, self.train_steps, self.discount)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Transitions]:
        return collect(self, task, memory, randomness)

    def loss(
        self, policy: Policy, minibatch: rows.Transitions
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return chains.clipped_loss(policy, minibatch, clip=self.clip, kl=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPOSF:
    """DDPO with the score function: REINFORCE on each denoising step (eq. 3).

    The estimator is exact only for the policy that drew the samples: one optimiser step an iteration.
    """

    on_policy: ClassVar[bool] = True
    needs_density: ClassVar[bool] = True
    differentiates_reward: ClassVar[bool] = False
    group_size = 1

    advantage_clip: float = 5.0
    """Advantages are clipped to +- this; 5 in the paper's PyTorch code, 10 in its JAX code."""
    baseline: PerPrompt | WholeBatch | Critic = field(default_factory=PerPrompt)
    """How rewards become advantages."""
    train_steps: chains.TrainSteps = None
    """Which denoising steps are trained: all that have a density, so many drawn anew each
    iteration, or those listed (counted from noise)."""
    discount: float = 1.0
    """An advantage at step k of T is weighted by discount^(T - 1 - k); 1 in the paper, less in 2409.00588."""
    exploration: Exploration | None = None
    """Draw some actions from another distribution, and weight the chains back; none in the paper."""

    def __post_init__(self) -> None:
        chains.check(self.advantage_clip, self.train_steps, self.discount)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Transitions]:
        return collect(self, task, memory, randomness)

    def loss(
        self, policy: Policy, minibatch: rows.Transitions
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, diagnostics = losses.score_function(
            rows.log_prob(policy, minibatch),
            minibatch.old_log_prob,
            minibatch.advantage,
            event_size=minibatch.event_size,
        )
        return chains.weighted(minibatch, loss), diagnostics


class Settings(Protocol):
    """What `collect` asks of an algorithm."""

    @property
    def advantage_clip(self) -> float: ...
    @property
    def baseline(self) -> Baseline | Critic: ...
    @property
    def train_steps(self) -> chains.TrainSteps: ...
    @property
    def discount(self) -> float: ...
    @property
    def exploration(self) -> Exploration | None: ...


def collect(
    settings: Settings, task: Task, memory: Memory, randomness: Randomness
) -> Collection[rows.Transitions]:
    """One chain a prompt, its advantage by the baseline."""
    prompts = task.prompts.draw(task.samples, randomness.at("prompts"))
    explore = behaviour(settings.exploration, task.policy, memory)
    acted = experience.act(task, prompts, randomness, explore=explore)
    advantage, memory, judged = _advantages(settings.baseline, acted, memory, randomness)
    found = chains.collection(
        task,
        acted,
        advantage,
        memory,
        advantage_clip=settings.advantage_clip,
        train_steps=settings.train_steps,
        randomness=randomness,
        discount=settings.discount,
        exploration=settings.exploration,
    )
    return replace(found, metrics={**found.metrics, **judged})


def _advantages(
    baseline: Baseline | Critic, acted: Experience, memory: Memory, randomness: Randomness
) -> tuple[Tensor, Memory, dict[str, float]]:
    """One a chain, or one for each scored step of each chain; the memory, and numbers to log."""
    if isinstance(baseline, Critic):
        return baseline.advantages(acted, memory, randomness.at("critic"))
    return *baseline.advantages(acted.rewards, acted.samples.prompts, memory), {}
