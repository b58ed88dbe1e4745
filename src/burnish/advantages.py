"""From raw rewards to advantages: baselines, normalisation, clipping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Rewards = Float[Tensor, " batch"]
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
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    updated = {prompt: list(values) for prompt, values in buffers.items()}
    advantages = torch.empty_like(rewards)
    for prompt, indices in groups.items():
        own = rewards[indices]
        updated[prompt] = [*updated.get(prompt, []), *own.tolist()][-size:]
        known = updated[prompt]
        enough = len(known) >= min_count
        reference = torch.tensor(known, dtype=torch.float64) if enough else rewards
        advantages[indices] = standardise(own, reference)
    return advantages, updated
