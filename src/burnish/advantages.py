"""From raw rewards to advantages: baselines, normalisation, clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Rewards = Float[Tensor, " batch"]
Steps = Float[Tensor, "scored batch"]
"""One a scored step of each chain."""
Buffers = Mapping[str, Sequence[float]]
"""The latest raw rewards of each prompt, oldest first."""


def standardise(rewards: Rewards, reference: Tensor) -> Rewards:
    """`(rewards - mean) / std` with the mean and the population std of `reference`.

    Rewards without any spread carry no signal: their advantage is 0, never a rounding error divided
    by an epsilon.
    """
    reference = reference.double()
    mean, std = reference.mean(), reference.std(correction=0)
    scale = reference.abs().max().clamp(min=1e-30)
    if std <= 1e-7 * scale:
        return torch.zeros_like(rewards)
    return ((rewards.double() - mean) / std).to(rewards.dtype)


def whole_batch(rewards: Rewards) -> Rewards:
    """Standardised by the statistics of the batch itself."""
    return standardise(rewards, rewards)


def per_prompt(
    rewards: Rewards, prompts: Sequence[str], buffers: Buffers, *, size: int, min_count: int
) -> tuple[Rewards, dict[str, list[float]]]:
    """Standardised by a running buffer of each prompt's own rewards (Black et al. 2023, app. A).

    prompts: one a reward; rewards of the same text share a buffer
    buffers: as returned by the previous call; empty at first. It is not changed
    size: how many of a prompt's latest rewards a buffer holds
    min_count: while a prompt's buffer holds fewer, the statistics of this whole batch serve

    Returns the advantages and the new buffers. The new rewards enter the buffer before it is read.
    """
    updated = {prompt: list(values) for prompt, values in buffers.items()}
    advantages = torch.empty_like(rewards)
    for prompt, indices in _grouped(prompts).items():
        own = rewards[indices]
        updated[prompt] = [*updated.get(prompt, []), *own.tolist()][-size:]
        known = updated[prompt]
        enough = len(known) >= min_count
        reference = torch.tensor(known, dtype=torch.float64) if enough else rewards
        advantages[indices] = standardise(own, reference)
    return advantages, updated


def group_relative(rewards: Rewards, size: int, spread: Literal["group", "global"]) -> Rewards:
    """Deviations from the mean of each group of `size` neighbours, divided by a standard deviation (GRPO).

    spread: `group` divides by the group's own (population form), `global` by that of all rewards, so that
        a group counts the more the more it differs. Either way a group without spread has advantage 0.
    """
    groups = rewards.double().reshape(-1, size)
    own = torch.stack([standardise(group, group) for group in groups])
    if spread == "group":
        return own.flatten().to(rewards.dtype)
    deviation = groups - groups.mean(dim=1, keepdim=True)
    alive = own.any(dim=1, keepdim=True)
    relative = torch.where(alive, deviation / groups.std(correction=0), 0.0)
    return relative.flatten().to(rewards.dtype)


def without_spread(rewards: Rewards, size: int) -> list[int]:
    """The groups of `size` neighbours whose rewards are all the same: they carry no signal."""
    groups = rewards.double().reshape(-1, size)
    return [i for i, group in enumerate(groups) if not standardise(group, group).any()]


def discounted(
    advantages: Rewards | Steps, steps: Sequence[int], num_steps: int, discount: float
) -> Steps:
    """`discount^(num_steps - 1 - k) * advantage` at each step k of `steps`: the last step counts in full
    (Ren et al. 2024, arXiv 2409.00588).

    advantages: one a chain, or one for each of `steps` of each chain
    steps: counted from noise
    """
    remaining = [num_steps - 1 - step for step in steps]
    weight = advantages.new_tensor([discount**count for count in remaining])
    return weight[:, None] * advantages


def generalised(rewards: Rewards, values: Steps, decay: float) -> Steps:
    """GAE of chains that are rewarded at their end (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    The sum over l of decay^l (values[j + l + 1] - values[j + l]), with the reward for the value of the end.

    values: expected reward from the state before each scored step
    decay: lambda in [0, 1]. 1 is reward minus value: whatever the values, the policy gradient has no bias.
        0 is the change of value in one step: the least variance, and no bias where the values are true.

    Nothing is discounted here. For a discount g the textbook's values are g^n values, with n the steps
    that remain after this one, and its GAE(g, lambda) is g^n times this one: `discounted` of it.
    """
    changes = torch.cat([values[1:], rewards[None]]) - values
    advantage = torch.empty_like(changes)
    running = torch.zeros_like(rewards)
    for j in reversed(range(len(changes))):
        running = changes[j] + decay * running
        advantage[j] = running
    return advantage


def softmax_weights(rewards: Rewards, groups: Sequence[str], temperature: float) -> Rewards:
    """exp(reward / temperature), normalised to mean 1 within each group (Black et al. 2023, section 4.2).

    groups: one a reward; those of the same text are standardised and normalised together. A group without
        spread, or of one, has weights of 1
    temperature: > 0, in standard deviations of the group. The paper's 1 / 0.2 is in raw rewards
    """
    weights = torch.empty_like(rewards)
    for indices in _grouped(groups).values():
        scores = standardise(rewards[indices], rewards[indices]) / temperature
        weights[indices] = scores.softmax(0) * len(indices)
    return weights


def top_fraction(rewards: Rewards, groups: Sequence[str], fraction: float) -> Rewards:
    """1 for the best `fraction` of each group, else 0; ties at the boundary are all in.

    fraction: in (0, 1]; at least one of a group is in
    """
    weights = torch.zeros_like(rewards)
    for indices in _grouped(groups).values():
        own = rewards[indices]
        count = max(1, round(fraction * len(indices)))
        weights[indices] = (own >= own.topk(count).values[-1]).to(weights.dtype)
    return weights


def centred(values: Rewards, groups: Sequence[str]) -> Rewards:
    """Deviations from the mean of each group, in standard deviations of all of these (population form).

    groups: one a value; a value that is alone in its group is centred by the mean of all. Without spread, 0
    """
    deviation = values.double() - values.double().mean()
    for indices in _grouped(groups).values():
        if len(indices) > 1:
            own = values[indices].double()
            deviation[indices] = own - own.mean()
    spread = deviation.square().mean().sqrt()
    if spread <= 1e-7 * values.abs().max():
        return torch.zeros_like(values)
    return (deviation / spread).to(values.dtype)


def within_groups(rewards: Rewards, groups: Sequence[str]) -> Rewards:
    """Standardised within each group. groups: one a reward; a group without spread, or of one, has 0"""
    values = torch.zeros_like(rewards)
    for indices in _grouped(groups).values():
        values[indices] = standardise(rewards[indices], rewards[indices])
    return values


def ranks(rewards: Rewards, groups: Sequence[str]) -> Rewards:
    """The share of the others of its group that each beats, in [0, 1]; a tie counts half.

    groups: one a reward; a group of one has 0.5
    """
    values = torch.full_like(rewards, 0.5)
    for indices in _grouped(groups).values():
        own = rewards[indices]
        if len(own) > 1:
            ahead = (own[:, None] - own).sign().sum(dim=1)
            values[indices] = (ahead / (len(own) - 1) + 1) / 2
    return values


def best_of_group(rewards: Rewards, size: int) -> Rewards:
    """1 for the best of each group of `size` neighbours (the first, if several are), else 0.

    A group without spread has no best: all of it is 0.
    """
    weights = torch.zeros_like(rewards).reshape(-1, size)
    best = rewards.reshape(-1, size).argmax(1)
    weights[torch.arange(len(best)), best] = 1
    weights[without_spread(rewards, size)] = 0
    return weights.flatten()


def effective_share(weights: Rewards) -> float:
    """Kish's effective sample size of non-negative weights, as a share of their number.

    1 if all are the same, 1 / n if one of n has it all.
    """
    weights = weights.double()
    return (weights.sum().square() / weights.square().sum() / len(weights)).item()


def _grouped(keys: Sequence[str]) -> dict[str, list[int]]:
    """The places of each key, in order."""
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return groups
