"""Advantage-weighted matching (AWM: Xue et al. 2025, arXiv 2509.25050)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from burnish import experience, losses, rows
from burnish.algorithms import Collection, Memory, endpoints
from burnish.algorithms.ddpo import PerPrompt, WholeBatch

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness


@dataclass(frozen=True, slots=True, kw_only=True)
class AWM:
    """A clipped policy gradient in which minus the denoising error stands for the log-likelihood.

    The error is that of pre-training, so policy optimisation and pre-training have one objective; any
    sampler draws.
    """

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = False
    group_size = 1
    train_steps = None

    clip: float = 1e-3
    """Half-width of the ratio's interval; the log-ratio is the fall of the error, a mean over dimensions. The
    authors' recipes have 1, where it hardly binds, and hold the policy by two penalties instead."""
    advantage_clip: float = 5.0
    """Advantages are clipped to +- this; 5 in the authors' code."""
    baseline: PerPrompt | WholeBatch = field(default_factory=PerPrompt)
    """How rewards become advantages; groups of the iteration in the paper."""
    draws: int = 5
    """Rows a sample: noise levels at which it is scored; 6 in the authors' recipes."""

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1:
            raise ValueError(f"clip = {self.clip}, expected a number between 0 and 1")
        if self.advantage_clip <= 0:
            raise ValueError(f"advantage_clip = {self.advantage_clip}, expected a positive number")
        endpoints.check(self.draws)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Endpoints]:
        prompts = task.prompts.draw(task.samples, randomness.at("prompts"))
        acted = experience.act(task, prompts, randomness)
        advantage, memory = self.baseline.advantages(acted.rewards, acted.samples.prompts, memory)
        clipped = advantage.clamp(-self.advantage_clip, self.advantage_clip)
        found = endpoints.collection(
            acted,
            clipped,
            endpoints.weighty(clipped),
            memory,
            draws=self.draws,
            randomness=randomness,
        )
        old = experience.recorded(task, found.rows, lambda some: endpoints.error(task.policy, some))
        return replace(found, rows=replace(found.rows, recorded={"old_error": old}))

    def loss(
        self, policy: Policy, minibatch: rows.Endpoints
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return losses.clipped_ratio(
            -endpoints.error(policy, minibatch),
            -minibatch.recorded["old_error"],
            minibatch.weight[minibatch.sample],
            event_size=1,
            clip=self.clip,
        )
