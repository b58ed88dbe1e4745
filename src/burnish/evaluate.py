"""Evaluation: held-out prompts under fixed noise, so that before and after can be laid side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.policy import Policy
from burnish.prompts import Prompt
from burnish.randomness import Randomness
from burnish.reward import Reward
from burnish.rollout import Samples, decode, rollout
from burnish.scoring import Scored, assess, means

BLANK = 0.02
"""An image whose pixels deviate less than this from their mean, in [0, 1], counts as blank."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out samples with their rewards, as they are reported."""

    scored: Scored
    watched: Float[Tensor, " batch"] | None = None
    """Of another reward, which is not optimised."""

    @property
    def samples(self) -> Samples:
        return self.scored.samples

    @property
    def rewards(self) -> Float[Tensor, " batch"]:
        return self.scored.values

    def summary(self) -> dict[str, float]:
        """Rewards in their own unit; means of `watched` and of the rewards that a composite one is made of;
        `diversity` and `blank` in [0, 1]."""
        watched = {} if self.watched is None else {"watched": self.watched.double().mean().item()}
        return {
            **spread(self.rewards),
            "diversity": diversity(self.samples.media),
            "blank": blank_fraction(self.samples.media),
            **watched,
            **{f"held-out {name}": mean for name, mean in means(self.scored.parts).items()},
        }


def evaluate(
    policy: Policy,
    prompts: Sequence[Prompt],
    reward: Reward,
    *,
    seed: int,
    batch: int,
    watched: Reward | None = None,
) -> Evaluation:
    """One sample a prompt; the noise depends on `seed` only, never on the weights.

    prompts: a reward that compares samples needs each of them twice or more
    watched: another reward to measure. Raises `RewardError`.
    """
    trajectory = rollout(policy, prompts, Randomness(seed).at("evaluate"), batch)
    samples = decode(policy, trajectory.x0, prompts, batch)
    beside = None if watched is None else assess(watched, samples).values
    return Evaluation(assess(reward, samples), beside)


def spread(rewards: Float[Tensor, " batch"]) -> dict[str, float]:
    """Mean, population standard deviation, range and number of rewards."""
    rewards = rewards.double()
    return {
        "mean": rewards.mean().item(),
        "std": rewards.std(correction=0).item(),
        "min": rewards.min().item(),
        "max": rewards.max().item(),
        "count": len(rewards),
    }


def diversity(media: Float[Tensor, "batch channels height width"]) -> float:
    """Root mean square distance of two different images' pixels, averaged over all pairs.

    0 if all images are the same; 0 for a single image, which has no pair.
    """
    flat = media.flatten(1).double()
    if len(flat) < 2:
        return 0.0
    distances = torch.nn.functional.pdist(flat) / flat.shape[1] ** 0.5
    return distances.mean().item()


def blank_fraction(media: Float[Tensor, "batch channels height width"]) -> float:
    """Share of images that hardly vary: the standard deviation over a channel's pixels is < `BLANK`."""
    deviation = media.double().flatten(2).std(dim=2).amax(dim=1)
    return (deviation < BLANK).double().mean().item()
