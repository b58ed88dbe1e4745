"""Denoising diffusion policy optimisation (Black et al. 2023, arXiv 2305.13301)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from burnish import advantages, experience, losses, rows
from burnish.algorithms import Collection, Memory

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.policy import Policy
    from burnish.prompts import Prompt
    from burnish.randomness import Randomness
    from burnish.reward import Reward


class Baseline(Protocol):
    """How rewards become advantages."""

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

    clip: float = 1e-4
    """Half-width of the ratio's interval, on the mean log-ratio over dimensions; 1e-4 in the paper."""
    advantage_clip: float = 5.0
    """Advantages are clipped to +- this; 5 in the paper's PyTorch code, 10 in its JAX code."""
    baseline: PerPrompt | WholeBatch = field(default_factory=PerPrompt)
    """How rewards become advantages."""
    train_steps: int | tuple[int, ...] | None = None
    """Which denoising steps are trained: all that have a density, so many drawn anew each
    iteration, or those listed (counted from noise)."""

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1:
            raise ValueError(f"clip = {self.clip}, expected a number between 0 and 1")
        _check(self.advantage_clip, self.train_steps)

    def collect(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        reward: Reward,
        *,
        memory: Memory,
        randomness: Randomness,
        batch: int,
    ) -> Collection[rows.Transitions]:
        acted = experience.act(policy, prompts, reward, randomness=randomness, batch=batch)
        return _learnable(acted, self, memory, randomness)

    def loss(
        self, policy: Policy, minibatch: rows.Transitions
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return losses.clipped_ratio(
            rows.log_prob(policy, minibatch),
            minibatch.old_log_prob,
            minibatch.advantage,
            event_size=minibatch.event_size,
            clip=self.clip,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DDPOSF:
    """DDPO with the score function: REINFORCE on each denoising step (eq. 3).

    The estimator is exact only for the policy that drew the samples: one optimiser step an iteration.
    """

    on_policy: ClassVar[bool] = True
    needs_density: ClassVar[bool] = True

    advantage_clip: float = 5.0
    """Advantages are clipped to +- this; 5 in the paper's PyTorch code, 10 in its JAX code."""
    baseline: PerPrompt | WholeBatch = field(default_factory=PerPrompt)
    """How rewards become advantages."""
    train_steps: int | tuple[int, ...] | None = None
    """Which denoising steps are trained: all that have a density, so many drawn anew each
    iteration, or those listed (counted from noise)."""

    def __post_init__(self) -> None:
        _check(self.advantage_clip, self.train_steps)

    def collect(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        reward: Reward,
        *,
        memory: Memory,
        randomness: Randomness,
        batch: int,
    ) -> Collection[rows.Transitions]:
        acted = experience.act(policy, prompts, reward, randomness=randomness, batch=batch)
        return _learnable(acted, self, memory, randomness)

    def loss(
        self, policy: Policy, minibatch: rows.Transitions
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return losses.score_function(
            rows.log_prob(policy, minibatch),
            minibatch.old_log_prob,
            minibatch.advantage,
            event_size=minibatch.event_size,
        )


def _learnable(
    acted: experience.Experience, settings: DDPOIS | DDPOSF, memory: Memory, randomness: Randomness
) -> Collection[rows.Transitions]:
    advantage, memory = settings.baseline.advantages(acted.rewards, acted.samples.prompts, memory)
    clipped = advantage.clamp(-settings.advantage_clip, settings.advantage_clip)
    steps = chosen_steps(acted.trajectory.steps, settings.train_steps, randomness.at("steps"))
    return Collection(
        rows=rows.transitions(acted.trajectory, clipped, steps),
        samples=acted.samples,
        rewards=acted.rewards,
        memory=memory,
        metrics={"advantage_clipped": (advantage != clipped).float().mean().item()},
    )


def chosen_steps(
    stochastic: Sequence[int], asked: int | Sequence[int] | None, randomness: Randomness
) -> list[int]:
    """The denoising steps to train on, out of those that have a density.

    Raises ValueError if the sampler has no such steps, or fewer than asked for.
    """
    if not stochastic:
        raise ValueError(
            "this sampler is deterministic: no step has a density, so there is no policy gradient. "
            "Give it noise, for example sampler.eta = 1"
        )
    if asked is None:
        return list(stochastic)
    if isinstance(asked, int):
        if asked > len(stochastic):
            raise ValueError(
                f"train_steps = {asked}, but only {len(stochastic)} steps have a density"
            )
        return sorted(randomness.python().sample(list(stochastic), asked))
    return list(asked)


def _check(advantage_clip: float, train_steps: int | tuple[int, ...] | None) -> None:
    if advantage_clip <= 0:
        raise ValueError(f"advantage_clip = {advantage_clip}, expected a positive number")
    if train_steps == () or (isinstance(train_steps, int) and train_steps < 1):
        raise ValueError(f"train_steps = {train_steps}, expected at least one step")
