"""A learned baseline: a value function of (x_t, t, prompt), with GAE(lambda) over denoising steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from burnish import advantages, values

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.algorithms import Memory
    from burnish.experience import Experience
    from burnish.randomness import Randomness
    from burnish.values import Learner


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """A network of three layers, trained on each iteration's chains after it has judged them.

    So what it says of a chain does not depend on that chain's reward, and the gradient has no bias from it.
    """

    gae_lambda: float = 1.0
    """1: reward minus value, without bias whatever the critic says; less: more bias from a critic that is
    wrong, less variance; 0.95 in PPO (arXiv 1707.06347)."""
    width: int = 128
    """Hidden units of a layer."""
    learning_rate: float = 1e-3
    """Of its AdamW."""
    updates: int = 64
    """AdamW steps an iteration."""
    batch: int = 256
    """States a step, drawn from all scored steps of all chains."""

    def __post_init__(self) -> None:
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda = {self.gae_lambda}, expected a number from 0 to 1")
        for name in ("width", "updates", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate = {self.learning_rate}, expected a positive number")

    def advantages(
        self, acted: Experience, memory: Memory, randomness: Randomness
    ) -> tuple[Tensor, Memory, dict[str, float]]:
        """One for each scored step of each chain, all standardised together; not discounted.

        The last value: the share of the rewards' variance that the critic, before it saw them, explains.
        """
        chains = acted.trajectory
        seen = values.inputs(chains)
        rewards = acted.rewards.to(seen.device)
        learner = self._remembered(memory, seen, rewards, randomness)
        value = learner.value(seen)
        raw = advantages.generalised(rewards, value, self.gae_lambda)
        learned = values.fit(
            learner,
            seen.flatten(0, 1),
            rewards.repeat(len(seen)),
            chains.weight.repeat(len(seen)),
            learning_rate=self.learning_rate,
            updates=self.updates,
            batch=self.batch,
            randomness=randomness.at("fit"),
        )
        flat = raw.flatten()
        explained = {"critic_explained": _explained(rewards, value)}
        return (
            advantages.standardise(flat, flat).reshape(raw.shape),
            _into(memory, learned),
            explained,
        )

    def _remembered(
        self, memory: Memory, seen: Tensor, rewards: Tensor, randomness: Randomness
    ) -> Learner:
        if "critic" in memory:
            return values.Learner(
                weights=memory["critic"],
                moments=memory["critic_moments"],
                updates=memory["critic_updates"],
                unit=tuple(memory["critic_unit"]),
            )
        return values.beginner(seen.shape[-1], self.width, rewards, randomness.at("weights"))


def _into(memory: Memory, learner: Learner) -> Mapping[str, Any]:
    return {
        **memory,
        "critic": learner.weights,
        "critic_moments": learner.moments,
        "critic_updates": learner.updates,
        "critic_unit": list(learner.unit),
    }


def _explained(rewards: Tensor, value: Tensor) -> float:
    """1 - E[(reward - value)^2] / Var[reward] over all states; 0 where the rewards have no spread."""
    variance = rewards.var(correction=0)
    error = (rewards - value).square().mean()
    return (1 - error / variance).item() if variance > 0 else 0.0
