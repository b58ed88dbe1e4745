"""What importance weights leave of explored samples, on the embedded model without training.

    python benchmarks/exploration.py [--guidance 2] [--epsilon 0.05] [--seeds 3]

For each way to explore: the effective share of samples, the share of chains with an explored action,
and these chains' share of all weight. First, for each step, how far apart the guided and the unguided
mean are, in the step's standard deviations. Some seconds on a CPU.
"""

from __future__ import annotations

import argparse
import math
from statistics import fmean

import torch
from torch import Tensor

from burnish.advantages import effective_share
from burnish.algorithms.exploration import Exploration, Unguided, Wider
from burnish.config import load_recipe
from burnish.decays import LinearDecay
from burnish.experiment import assemble
from burnish.policy import Policy
from burnish.prompts import Prompt
from burnish.randomness import Randomness
from burnish.rollout import rollout

CHAINS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    recipe = load_recipe("compressibility", [f"--model.guidance={asked.guidance}"])
    policy = assemble(recipe).policy
    prompts = recipe.prompts.draw(CHAINS, Randomness(0).at("prompts"))
    print("step  median distance  largest")
    for step, distance in enumerate(distances(policy, prompts)):
        print(f"{step:4}  {distance.median():15.2f}  {distance.max():7.2f}")
    always = LinearDecay(start=asked.epsilon, end=asked.epsilon)
    print("exploration         effective share  explored chains  their share of the weight")
    for name, exploration in (
        ("wider", Wider(epsilon=always)),
        ("unguided, reach 2", Unguided(epsilon=always)),
        ("unguided, reach inf", Unguided(epsilon=always, reach=math.inf)),
    ):
        found = [worth(policy, prompts, exploration, asked.epsilon, i) for i in range(asked.seeds)]
        effective, explored, weight = (fmean(each) for each in zip(*found, strict=True))
        print(f"{name:20}{effective:15.3f}{explored:17.3f}{weight:27.3f}")


@torch.no_grad()
def distances(policy: Policy, prompts: list[Prompt]) -> list[Tensor]:
    """Of each step, of each chain: |guided mean - unguided mean| / std."""
    drawn = rollout(policy, prompts, Randomness(0), CHAINS)
    found = []
    for step in drawn.steps:
        at = torch.full((CHAINS,), step)
        own, other = policy.with_and_without_guidance(at, drawn.states[step], drawn.cond)
        found.append((own.mean - other.mean).flatten(1).norm(dim=1) / own.std)
    return found


def worth(
    policy: Policy, prompts: list[Prompt], exploration: Exploration, epsilon: float, seed: int
) -> tuple[float, float, float]:
    """The effective share, the share of explored chains, and the share of weight that these have."""
    randomness = Randomness(seed)
    explore = exploration.behaviour(policy, 0)
    drawn = rollout(policy, prompts, randomness, CHAINS, explore=explore)
    chance = torch.stack([randomness.at("explore", k).uniform(range(CHAINS)) for k in drawn.steps])
    explored, weight = (chance < epsilon).any(0), drawn.weight
    share = (weight[explored].sum() / weight.sum()).item()
    return effective_share(weight), explored.float().mean().item(), share


if __name__ == "__main__":
    main()
