"""Reward backpropagation: the reward is differentiated through the sampler into the weights.

DRaFT (Clark et al. 2023, arXiv 2309.17400), AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739), and ReFL
(Xu et al. 2023, arXiv 2304.05977). The reward must be differentiable; no step needs a density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from burnish import experience, losses, reward, rows
from burnish.algorithms import Collection, Memory

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness

PROBED = "reward_has_gradient"
"""In the memory, once the reward's gradient was seen to reach the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DRaFT:
    """DRaFT-K: the gradient flows through the last K steps of the chain, and stops there."""

    on_policy: ClassVar[bool] = True
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = True
    group_size = 1

    train_steps: int = 1
    """K: so many last steps. The paper favours few, down to 1; the sampler's number is the whole chain."""
    checkpointing: bool = True
    """Compute each step again in the backward pass, instead of holding all that it computed."""

    def __post_init__(self) -> None:
        _check(self.train_steps)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Contexts]:
        longest = _fitting(self.train_steps, task.policy)
        return _collect(task, [longest] * task.samples, memory, randomness)

    def loss(self, policy: Policy, minibatch: rows.Contexts) -> tuple[Tensor, Mapping[str, Tensor]]:
        x0 = rows.run_again(policy, minibatch, checkpointed=self.checkpointing)
        return _loss(policy, minibatch, x0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignProp:
    """As DRaFT-K, with a K of its own for each sample: early steps are trained too, at half the price
    of the whole chain.
    """

    on_policy: ClassVar[bool] = True
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = True
    group_size = 1

    train_steps: int | None = None
    """K is drawn uniformly from 1 to this; by default up to the whole chain, as in the paper."""
    checkpointing: bool = True
    """Compute each step again in the backward pass, instead of holding all that it computed."""

    def __post_init__(self) -> None:
        _check(self.train_steps)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Contexts]:
        longest = _fitting(self.train_steps, task.policy)
        return _collect(task, _drawn(longest, task.samples, randomness), memory, randomness)

    def loss(self, policy: Policy, minibatch: rows.Contexts) -> tuple[Tensor, Mapping[str, Tensor]]:
        x0 = rows.run_again(policy, minibatch, checkpointed=self.checkpointing)
        return _loss(policy, minibatch, x0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReFL:
    """One step of each chain is trained, by the reward of the clean sample that the network sees there."""

    on_policy: ClassVar[bool] = True
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = True
    group_size = 1

    train_steps: int = 10
    """The step is drawn from so many last ones; 10 of 40 in the paper."""

    def __post_init__(self) -> None:
        _check(self.train_steps)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Contexts]:
        longest = _fitting(self.train_steps, task.policy)
        return _collect(task, _drawn(longest, task.samples, randomness), memory, randomness)

    def loss(self, policy: Policy, minibatch: rows.Contexts) -> tuple[Tensor, Mapping[str, Tensor]]:
        return _loss(policy, minibatch, rows.jump(policy, minibatch))


def _collect(
    task: Task, lengths: Sequence[int], memory: Memory, randomness: Randomness
) -> Collection[rows.Contexts]:
    """One chain a prompt, drawn without gradient; `lengths` of their last steps are to carry one.

    The reward is asked here and once more in the loss; in a run's first iteration also of one sample, for its
    gradient. Raises `RewardError` if it has none.
    """
    prompts = task.prompts.draw(task.samples, randomness.at("prompts"))
    num_steps = task.policy.kernel.num_steps
    begins = sorted({num_steps - length for length in lengths})
    acted = experience.act(task, prompts, randomness, keep=begins, whole=True)
    probed = 0 if PROBED in memory else 1
    if probed:
        reward.check_differentiable(task.reward, acted.samples[:probed])
    return Collection(
        rows=rows.contexts(
            acted.trajectory,
            acted.samples,
            acted.rewards,
            task.reward,
            noise=experience.noise_of(randomness),
            lengths=lengths,
        ),
        scored=acted.scored,
        queries=2 * len(acted.samples) + probed,
        memory={**memory, PROBED: True},
        metrics={},
    )


def _loss(
    policy: Policy, minibatch: rows.Contexts, x0: Tensor
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Minus the reward of clean states; the media are on the CPU, where rewards find them always."""
    media = policy.denoiser.decode(x0.float()).float().cpu()
    earned = reward.differentiable(minibatch.reward, minibatch.ending_in(media))
    return losses.pathwise(earned.to(policy.device), minibatch.drawn)


def _drawn(longest: int, count: int, randomness: Randomness) -> list[int]:
    """A number from 1 to `longest`, with equal chances, for each sample."""
    chances = randomness.at("lengths").uniform(range(count)).tolist()
    return [1 + int(chance * longest) for chance in chances]


def _fitting(train_steps: int | None, policy: Policy) -> int:
    num_steps = policy.kernel.num_steps
    if policy.kernel.tail is not None:
        raise ValueError(
            "the reward is differentiated through the sampler's last steps, but this one has a solver in "
            "their place; take a sampler without a tail"
        )
    if train_steps is not None and train_steps > num_steps:
        raise ValueError(f"train_steps = {train_steps}, but the sampler has {num_steps} steps")
    return train_steps or num_steps


def _check(train_steps: int | None) -> None:
    if train_steps is not None and train_steps < 1:
        raise ValueError(f"train_steps = {train_steps}, expected at least 1")
