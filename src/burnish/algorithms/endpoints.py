"""What the algorithms share that learn from finished samples, noised anew, and not from chains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from burnish import experience, losses, rows
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
    """One sample a prompt; `weight` of (rewards, prompts) is theirs, and those of weight 0 get no rows."""
    prompts = task.prompts.draw(task.samples, randomness.at("prompts"))
    acted = experience.act(task, prompts, randomness)
    weights = weight(acted.rewards, acted.samples.prompts)
    return collection(acted, weights, weighty(weights), memory, draws=draws, randomness=randomness)


def weighty(weights: Tensor) -> list[int]:
    """The places whose weight is not 0, so that a loss that is multiplied by it has something to learn
    there; all places if there are none."""
    return [i for i, weight in enumerate(weights.tolist()) if weight] or [*range(len(weights))]


def collection(
    acted: Experience,
    weights: Tensor,
    places: Sequence[int],
    memory: Memory,
    *,
    draws: int,
    randomness: Randomness,
) -> Collection[rows.Endpoints]:
    """`draws` rows of each sample at `places`, with its weight."""
    found = rows.endpoints(
        acted.trajectory.x0.clone(),  # a view would keep all states of the chains
        acted.trajectory.cond,
        weights,
        draws=draws,
        randomness=randomness.at("noised"),
        places=places,
    )
    return Collection(
        rows=found,
        scored=acted.scored,
        queries=len(acted.samples),
        memory=memory,
        metrics={"samples_used": len(places) / len(weights)},
    )


def error(policy: Policy, minibatch: rows.Endpoints) -> Tensor:
    """The network's squared error at each row, mean over the event; carries the gradient."""
    at = rows.noised(policy, minibatch)
    return rows.squared_error(rows.predict(policy, at), at.target)


def weighted_loss(policy: Policy, minibatch: rows.Endpoints) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Each row's squared error times its sample's weight."""
    return losses.weighted_denoising(error(policy, minibatch), minibatch.weight[minibatch.sample])


def check(draws: int) -> None:
    """Raises ValueError for a number of draws that cannot be."""
    if draws < 1:
        raise ValueError(f"draws = {draws}, expected at least 1")
