"""What the algorithms share that learn from finished samples, noised anew, and not from chains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from burnish import experience, rows
from burnish.algorithms import Collection, Memory

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.experience import Experience, Task
    from burnish.policy import Policy
    from burnish.randomness import Randomness


def collect(
    task: Task,
    weight: Callable[[Tensor, tuple[str, ...]], Tensor],
    memory: Memory,
    *,
    draws: int,
    randomness: Randomness,
) -> Collection[rows.Endpoints]:
    """One sample a prompt; `weight` of (rewards, prompts) is theirs."""
    prompts = task.prompts.draw(task.samples, randomness.at("prompts"))
    acted = experience.act(task, prompts, randomness)
    weights = weight(acted.rewards, acted.samples.prompts)
    return collection(acted, weights, memory, draws=draws, randomness=randomness)


def collection(
    acted: Experience, weights: Tensor, memory: Memory, *, draws: int, randomness: Randomness
) -> Collection[rows.Endpoints]:
    """`draws` rows of each sample with its weight; samples of weight 0 get none, unless all have it."""
    chosen = [i for i, weight in enumerate(weights.tolist()) if weight] or [*range(len(weights))]
    chains = acted.trajectory.chains(chosen)
    found = rows.endpoints(
        chains.x0, chains.cond, weights[chosen], draws=draws, randomness=randomness.at("noised")
    )
    return Collection(
        rows=found,
        samples=acted.samples,
        rewards=acted.rewards,
        queries=len(acted.samples),
        memory=memory,
        metrics={"samples_used": len(chosen) / len(weights)},
    )


def error(policy: Policy, minibatch: rows.Endpoints) -> Tensor:
    """The network's squared error at each row, mean over the event; carries the gradient."""
    at = rows.noised(policy, minibatch)
    return rows.squared_error(rows.predict(policy, at), at.target)


def check(draws: int) -> None:
    """Raises ValueError for a number of draws that cannot be."""
    if draws < 1:
        raise ValueError(f"draws = {draws}, expected at least 1")
