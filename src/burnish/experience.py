"""Acting, and what is recorded of the policy that acted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.lanes import side_by_side
from burnish.policy import Denoiser, Policy, snapshot, using
from burnish.prompts import Prompt, PromptSource
from burnish.randomness import Randomness
from burnish.reward import Reward, score
from burnish.rollout import Samples, Trajectory, decode, join, join_samples, rollout
from burnish.rows import Rows

R = TypeVar("R", bound=Rows)


@dataclass(frozen=True, slots=True)
class Task:
    """Where an algorithm acts.

    samples: to be drawn an iteration
    batch: samples, or rows without gradient, computed at once
    """

    policy: Policy
    prompts: PromptSource
    reward: Reward
    samples: int
    batch: int


@dataclass(frozen=True, slots=True)
class Experience:
    """Chains, the samples they ended in, and one raw reward a sample (float32, on the CPU)."""

    trajectory: Trajectory
    samples: Samples
    rewards: Float[Tensor, " batch"]


def act(task: Task, prompts: Sequence[Prompt], randomness: Randomness) -> Experience:
    """Draw one sample a prompt and ask for its reward. Raises `RewardError`."""
    trajectory = rollout(task.policy, prompts, noise_of(randomness), task.batch)
    samples = decode(task.policy, trajectory.x0, prompts, task.batch)
    return Experience(trajectory, samples, score(task.reward, samples))


def noise_of(randomness: Randomness) -> Randomness:
    """Where the noise of the chains comes from that `act` draws with `randomness`."""
    return randomness.at("rollout")


def replace_groups(
    acted: Experience, fresh: Experience, groups: Sequence[int], size: int
) -> Experience:
    """`acted` with its groups of `size` neighbours `groups` replaced by those of `fresh`, in order."""
    order = torch.arange(len(acted.samples)).reshape(-1, size)
    order[list(groups)] = len(acted.samples) + torch.arange(len(fresh.samples)).reshape(-1, size)
    index = order.flatten().tolist()
    return Experience(
        trajectory=join([acted.trajectory, fresh.trajectory]).chains(index),
        samples=join_samples([acted.samples, fresh.samples]).pick(index),
        rewards=torch.cat([acted.rewards, fresh.rewards])[index],
    )


def keep_reference(memory: Mapping[str, Any], denoiser: Denoiser) -> Mapping[str, Any]:
    """The memory with the weights `reference`: those that the denoiser had when this was first asked."""
    return memory if "reference" in memory else {**memory, "reference": snapshot(denoiser)}


def recorded_under(
    task: Task, rows: R, measure: Callable[[R], Tensor], weights: Sequence[Tensor]
) -> Tensor:
    """`recorded`, while the denoiser has other weights."""
    with using(task.policy.denoiser, weights):
        return recorded(task, rows, measure)


def recorded(task: Task, rows: R, measure: Callable[[R], Tensor]) -> Tensor:
    """`measure` of all rows under the policy as it is now; no gradient.

    What a loss compares with (the prediction of a reference or of an old policy) is recorded once, when
    the rows are collected; so a loss never swaps weights.
    """

    @torch.no_grad()
    def part(index: Tensor) -> Tensor:
        return measure(rows[index])

    device = task.policy.device
    pieces = torch.arange(len(rows), device=device).split(task.batch)
    return torch.cat(list(side_by_side(part, pieces, device)))
