"""Negative-aware fine-tuning on the forward process (DiffusionNFT: Zheng et al. 2025, arXiv 2509.16117)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from burnish import experience, losses, policy, rows
from burnish.algorithms import Collection, Memory, endpoints
from burnish.algorithms.ddpo import PerPrompt, WholeBatch

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness


@dataclass(frozen=True, slots=True, kw_only=True)
class NFT:
    """Samples are drawn by an old policy; the new one is pulled towards the good and pushed from the bad.

    No chain and no likelihood: any sampler draws, also a deterministic one.
    """

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = False
    differentiates_reward: ClassVar[bool] = False
    group_size = 1
    train_steps = None

    strength: float = 1.0
    """Share of the new policy in the positive one, beta of eq. 5; the update aims 1 / strength as far. 1 in
    the paper's faster recipes, 0.1 in its more careful ones."""
    advantage_clip: float = 5.0
    """The optimality of a sample runs from 0 to 1 as its advantage runs from - to + this; 5 in the authors'
    code."""
    baseline: PerPrompt | WholeBatch = field(default_factory=PerPrompt)
    """How rewards become advantages; groups of the iteration in the paper."""
    draws: int = 5
    """Rows a sample: noise levels at which it is fitted; the paper takes the sampler's steps."""
    decay_slope: float = 0.001
    """The old policy keeps min(decay_slope * i, decay_max) of itself when it follows the new one after
    iteration i; 0.001 in the authors' code, which counts optimiser steps."""
    decay_max: float = 0.5
    """The most that it keeps; 0.5 in the authors' code. 0 makes the old policy the new one of the iteration
    before."""

    def __post_init__(self) -> None:
        for name in ("strength", "advantage_clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}, expected a positive number")
        if self.decay_slope < 0 or not 0 <= self.decay_max < 1:
            raise ValueError(
                f"decay_slope = {self.decay_slope} and decay_max = {self.decay_max}, expected 0 or "
                "more, and a share in [0, 1)"
            )
        endpoints.check(self.draws)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Endpoints]:
        memory = self._follow(memory, task.policy)

        def output(some: rows.Endpoints) -> Tensor:
            return rows.predict(task.policy, rows.noised(task.policy, some))

        with policy.using(task.policy.denoiser, memory["old"]):
            prompts = task.prompts.draw(task.samples, randomness.at("prompts"))
            acted = experience.act(task, prompts, randomness)
            advantage, memory = self.baseline.advantages(
                acted.rewards, acted.samples.prompts, memory
            )
            found = endpoints.collection(
                acted,
                losses.optimality(advantage, self.advantage_clip),
                range(len(acted.samples)),  # an optimality of 0 is the strongest push there is
                memory,
                draws=self.draws,
                randomness=randomness,
            )
            old = experience.recorded(task, found.rows, output)
        return replace(found, rows=replace(found.rows, recorded={"old": old}))

    def loss(
        self, policy: Policy, minibatch: rows.Endpoints
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        at = rows.noised(policy, minibatch)
        return losses.negative_aware(
            rows.clean_estimate(policy, at, rows.predict(policy, at)),
            rows.clean_estimate(policy, at, minibatch.recorded["old"]),
            at.x0,
            minibatch.weight[minibatch.sample],
            self.strength,
        )

    def _follow(self, memory: Memory, now: Policy) -> Memory:
        """The memory with the old policy moved towards the one now; they are the same at first."""
        current = policy.snapshot(now.denoiser)
        iteration = memory.get("iteration", 0)
        keep = min(self.decay_slope * iteration, self.decay_max)
        before = memory.get("old", current)
        old = [b.lerp(c, 1 - keep) for b, c in zip(before, current, strict=True)]
        return {**memory, "old": old, "iteration": iteration + 1}
