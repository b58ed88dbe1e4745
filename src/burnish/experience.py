"""Acting, and what is recorded of the policy that acted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.lanes import side_by_side
from burnish.policy import Denoiser, MediaEncoder, Policy, snapshot, using
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
    trajectory = rollout(task.policy, prompts, randomness.at("rollout"), task.batch)
    samples = decode(task.policy, trajectory.x0, prompts, task.batch)
    return Experience(trajectory, samples, score(task.reward, samples))


def present(task: Task, media: Sequence[Tensor], prompts: Sequence[Prompt]) -> Experience:
    """Given media and their rewards, as if they had been drawn: their chains have no steps.

    media: one a prompt, images (3, height, width) in [0, 1]
    Raises ValueError if the denoiser cannot encode media, or not of this size, and `RewardError`.
    """
    policy = task.policy
    encoder = policy.denoiser
    if not isinstance(encoder, MediaEncoder):
        raise ValueError(
            f"{type(encoder).__name__} has no encode_media, so it cannot learn from given images"
        )
    stacked = torch.stack(list(media))
    with torch.no_grad():
        parts = [encoder.encode_media(part.to(policy.device)) for part in stacked.split(task.batch)]
    x0 = torch.cat(parts).to(policy.storage)
    shape = tuple(policy.denoiser.event_shape)
    if x0.shape[1:] != shape:
        raise ValueError(
            f"images of {media[0].shape[2]} x {media[0].shape[1]} pixels are states of shape "
            f"{tuple(x0.shape[1:])}, but the model's are {shape}; bring the images to the model's size"
        )
    cond = policy.denoiser.encode([prompt.text for prompt in prompts])
    samples = Samples(
        media=stacked,
        prompts=tuple(prompt.text for prompt in prompts),
        metadata=tuple(prompt.metadata for prompt in prompts),
    )
    chains = Trajectory(x0[None], x0.new_empty(0, len(x0)), (), cond)
    return Experience(chains, samples, score(task.reward, samples))


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
