"""Group-relative policy optimisation of denoising chains (Flow-GRPO, arXiv 2505.05470; DanceGRPO,
arXiv 2505.07818)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from burnish import advantages, experience, rows
from burnish.algorithms import Collection, Memory, chains
from burnish.algorithms.exploration import Exploration, behaviour

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Experience, Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness
    from burnish.rollout import Explore


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPO:
    """The clipped ratio of DDPO-IS, with each sample's advantage relative to its prompt's group."""

    on_policy: ClassVar[bool] = False
    needs_density: ClassVar[bool] = True
    differentiates_reward: ClassVar[bool] = False

    group_size: int = 8
    """Samples of a prompt; 24 in Flow-GRPO, 12 in DanceGRPO, on clusters."""
    spread: Literal["group", "global"] = "group"
    """Whose standard deviation divides: the group's own, or that of all of the iteration's rewards
    (Flow-GRPO's `global_std`)."""
    clip: float = 1e-4
    """Half-width of the ratio's interval, on the mean log-ratio over dimensions; 1e-4 in both
    papers' code."""
    advantage_clip: float = 5.0
    """Advantages are clipped to +- this; 5 in both papers' code."""
    kl: float = 0.0
    """Weight of the exact KL to the base model, in advantages a nat; 0 asks for no reference. 0.04 in
    Flow-GRPO's code, 0 in DanceGRPO."""
    shared: int = 0
    """States that the chains of a group have in common, counted from noise: 1 for the initial noise
    (DanceGRPO), k + 1 for the chain up to step k, where the group branches."""
    refill: int = 0
    """How often prompts whose group has no spread, which carries no signal, are replaced by fresh ones."""
    train_steps: chains.TrainSteps = None
    """Which denoising steps are trained: all that have a density, so many drawn anew each
    iteration, or those listed (counted from noise)."""
    discount: float = 1.0
    """An advantage at step k of T is weighted by discount^(T - 1 - k); 1 in both papers."""
    exploration: Exploration | None = None
    """Draw some actions from another distribution, and weight the chains back; none in the papers."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size = {self.group_size}, expected at least 2")
        if not 0 < self.clip < 1:
            raise ValueError(f"clip = {self.clip}, expected a number between 0 and 1")
        for name in ("kl", "shared", "refill"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}, expected 0 or more")
        chains.check(self.advantage_clip, self.train_steps, self.discount)

    def collect(
        self, task: Task, *, memory: Memory, randomness: Randomness
    ) -> Collection[rows.Transitions]:
        explore = behaviour(self.exploration, task.policy, memory)
        acted, queries, dead = _groups(self, task, randomness, explore)
        found = chains.collection(
            task,
            acted,
            advantages.group_relative(acted.rewards, self.group_size, self.spread),
            memory,
            advantage_clip=self.advantage_clip,
            train_steps=self.train_steps,
            randomness=randomness,
            discount=self.discount,
            exploration=self.exploration,
        )
        redrawn = queries - len(acted.samples)
        found = replace(
            found,
            queries=found.queries + redrawn,
            metrics={**found.metrics, "groups_without_spread": dead},
        )
        return chains.with_reference(task, found) if self.kl else found

    def loss(
        self, policy: Policy, minibatch: rows.Transitions
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        return chains.clipped_loss(policy, minibatch, clip=self.clip, kl=self.kl)


def _groups(
    settings: GRPO, task: Task, randomness: Randomness, explore: Explore | None
) -> tuple[Experience, int, float]:
    """Samples group by group, the rewards asked for, and the share of groups without spread at first."""
    size, shared = settings.group_size, settings.shared
    acted = chains.act_in_groups(
        task, task.samples // size, size, randomness, shared=shared, explore=explore
    )
    queries = drawn = len(acted.samples)
    dead = first = advantages.without_spread(acted.rewards, size)
    for attempt in range(settings.refill):
        if not dead:
            break
        again = randomness.at("refill", attempt)
        fresh = chains.act_in_groups(task, len(dead), size, again, shared=shared, explore=explore)
        queries += len(fresh.samples)
        answered = dead[: len(fresh.samples) // size]  # fewer than asked for, if some had no reward
        acted = experience.replace_groups(acted, fresh, answered, size)
        dead = advantages.without_spread(acted.rewards, size)
    return acted, queries, len(first) * size / drawn
