"""Objectives as pure functions of tensors: one row in, one row out; the loop takes the mean.

Each returns the rows' losses, whose mean is minimised, and the rows' diagnostics, without gradient.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, " rows"]


def score_function(
    log_prob: Rows, old_log_prob: Rows, advantage: Rows, event_size: int
) -> tuple[Rows, dict[str, Tensor]]:
    """REINFORCE on one denoising step: `-advantage * log p(x_s | x_t, c)` (DDPO-SF, eq. 3).

    log_prob: nats, summed over the event; carries the gradient
    old_log_prob: nats, from the rollout; a diagnostic only, since the estimator is on-policy
    advantage: treated as a constant
    event_size: number of event dimensions; the log-probability is divided by it, so that one
        learning rate serves every resolution
    """
    loss = -advantage.detach() * log_prob / event_size
    return loss, _ratio_rows(log_prob.detach() - old_log_prob, event_size)


def clipped_ratio(
    log_prob: Rows, old_log_prob: Rows, advantage: Rows, event_size: int, clip: float
) -> tuple[Rows, dict[str, Tensor]]:
    """PPO's clipped surrogate on one denoising step (DDPO-IS, eq. 4; Schulman et al. 2017, eq. 7).

    log_prob: nats, summed over the event; carries the gradient
    old_log_prob: nats, of the policy that drew the rollout; a constant
    advantage: treated as a constant
    event_size: number of event dimensions. The ratio is that of the geometric mean over them,
        exp((log_prob - old_log_prob) / event_size): the only convention in which the published
        clip of 1e-4 means anything
    clip: half-width of the interval around 1 within which the ratio earns, > 0
    """
    per_dim = (log_prob - old_log_prob.detach()) / event_size
    ratio = per_dim.exp()
    advantage = advantage.detach()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped)
    rows = _ratio_rows((log_prob - old_log_prob).detach(), event_size)
    outside = (ratio.detach() - 1).abs() > clip
    return loss, {**rows, "clip_fraction": outside.float()}


def _ratio_rows(log_ratio: Tensor, event_size: int) -> dict[str, Tensor]:
    """log_ratio: nats a dimension; approx_kl: nats a step, half the squared log-ratio (Schulman 2020)."""
    return {"log_ratio": log_ratio / event_size, "approx_kl": 0.5 * log_ratio.square()}
