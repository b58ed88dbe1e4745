"""How much of a slow reward's time is hidden behind sampling.

    python benchmarks/overlap.py --repeats 5

The reward sleeps as long for each batch as the model takes to draw one, where hiding is hardest. Sampling
alone (a reward that costs nothing) and both, as a run does it, take turns. Hidden is (sampling + reward -
both) / the shorter of the two: 1 for an ideal overlap. The first batch has nothing to hide behind, so with
n batches 1 - 1/n is the most.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from burnish import load
from burnish.experience import Task, act
from burnish.policy import Policy
from burnish.portraits.prompts import Portraits
from burnish.randomness import Randomness
from burnish.rollout import Samples
from burnish.samplers import DDIM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(2)
    policy = Policy(load("portraits", guidance=2.0), DDIM(num_steps=8))
    prompts = Portraits(count=16).draw(options.samples, Randomness(0))
    batches = options.samples // options.batch

    def draw(reward) -> float:
        task = Task(policy, Portraits(), reward, options.samples, options.batch)
        began = time.perf_counter()
        act(task, prompts, Randomness(0))
        return time.perf_counter() - began

    def free(samples: Samples) -> torch.Tensor:
        return torch.zeros(len(samples))

    draw(free)  # warms up
    pause = statistics.median(draw(free) for _ in range(3)) / batches

    def slow(samples: Samples) -> torch.Tensor:
        time.sleep(pause)
        return torch.zeros(len(samples))

    print(f"{batches} batches of {options.batch}; the reward takes {pause:.3f} s a batch")
    print("| sampling, s | reward, s | both, s | hidden |")
    print("|---|---|---|---|")
    shares = []
    for _ in range(options.repeats):
        sampling, asking, both = draw(free), pause * batches, draw(slow)
        shares.append((sampling + asking - both) / min(sampling, asking))
        print(f"| {sampling:.2f} | {asking:.2f} | {both:.2f} | {shares[-1]:.3f} |")
    most = 1 - 1 / batches
    print(f"median {statistics.median(shares):.3f} of the ideal; the most is {most:.3f}")


if __name__ == "__main__":
    main()
