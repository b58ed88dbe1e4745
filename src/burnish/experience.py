"""Acting: a rollout together with what its samples earned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from burnish.policy import Policy
from burnish.prompts import Prompt
from burnish.randomness import Randomness
from burnish.reward import Reward, score
from burnish.rollout import Samples, Trajectory, decode, rollout


@dataclass(frozen=True, slots=True)
class Experience:
    """Chains, the samples they ended in, and one raw reward a sample (float32, on the CPU)."""

    trajectory: Trajectory
    samples: Samples
    rewards: Float[Tensor, " batch"]


def act(
    policy: Policy,
    prompts: Sequence[Prompt],
    reward: Reward,
    *,
    randomness: Randomness,
    batch: int,
) -> Experience:
    """Draw one sample a prompt and ask for its reward. Raises `RewardError`."""
    trajectory = rollout(policy, prompts, randomness.at("rollout"), batch)
    samples = decode(policy, trajectory.x0, prompts, batch)
    return Experience(trajectory, samples, score(reward, samples))
