"""Objectives as pure functions of tensors: one row in, one row out; the loop takes the mean.

Each returns the rows' losses, whose mean is minimised, and the rows' diagnostics, without gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, " rows"]
Event = Float[Tensor, "rows *event"]


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


def weighted_denoising(error: Rows, weight: Rows) -> tuple[Rows, dict[str, Tensor]]:
    """`weight * error`: reward-weighted regression (Lee et al. 2023; Black et al. 2023, section 4.2).

    error: squared error of each row, mean over the event, >= 0; carries the gradient
    weight: >= 0, treated as a constant
    """
    return weight.detach() * error, {"denoising_error": error.detach()}


def optimality(advantage: Rows, clip: float) -> Rows:
    """0.5 + 0.5 * advantage / clip, within [0, 1]: how likely a sample is good (DiffusionNFT).

    advantage: the reward less its expectation, over a positive scale
    """
    return 0.5 + 0.5 * (advantage / clip).clamp(-1, 1)


def negative_aware(
    new: Event, old: Event, x0: Event, optimality: Rows, strength: float
) -> tuple[Rows, dict[str, Tensor]]:
    """DiffusionNFT (Zheng et al. 2025, eq. 5), on estimates of the clean sample, as in the authors' code.

    With x+ = (1 - b) old + b new and x- = (1 + b) old - b new, where b = `strength`, the loss is
    r |x+ - x0|^2 + (1 - r) |x- - x0|^2, each term divided by the detached mean |x - x0| of its row. The
    estimate is linear in the network's output, whatever that is, so mixing estimates mixes velocities. The
    code also divides by b and multiplies by the advantage clip: factors that AdamW does not see.

    new, old: estimates of x0 by the policy and by the old policy; `new` carries the gradient
    optimality: r in [0, 1], treated as a constant
    """
    r, old = optimality.detach(), old.detach()
    positive = _self_normalised((1 - strength) * old + strength * new - x0)
    negative = _self_normalised((1 + strength) * old - strength * new - x0)
    change = (new.detach() - old).square().flatten(1).mean(1)
    return r * positive + (1 - r) * negative, {"change_from_old": change}


def _self_normalised(error: Event) -> Rows:
    """Mean square of each row over its own detached mean absolute value."""
    size = error.detach().abs().flatten(1).mean(1).clamp(min=1e-5)
    return error.square().flatten(1).mean(1) / size


def preference(chosen: Rows, rejected: Rows, beta: float) -> tuple[Rows, dict[str, Tensor]]:
    """-log sigmoid(beta (chosen - rejected)) (Rafailov et al. 2023, eq. 7).

    chosen, rejected: how much likelier each is under the policy than under the reference (log-ratios, or
        falls of the denoising error); they carry the gradient. Nothing is clamped, so no gradient dies.
    """
    margin = beta * (chosen - rejected)
    correct = (margin.detach() > 0).float()
    return -F.logsigmoid(margin), {"margin": margin.detach(), "preferred": correct}


def divergence_penalty(kl: Rows, event_size: int, weight: float) -> tuple[Rows, dict[str, Tensor]]:
    """`weight * KL(policy || reference)` on one denoising step (Fan et al. 2023, eq. 8; Flow-GRPO, eq. 9).

    kl: nats, summed over the event, >= 0; carries the gradient
    event_size: as in the policy gradients, which are divided by it too; so `weight` is in advantages a nat
    """
    return weight * kl / event_size, {"kl_to_reference": kl.detach()}


def pathwise(reward: Rows, drawn: Rows) -> tuple[Rows, dict[str, Tensor]]:
    """`-reward`, to be differentiated through the chain that led to it (DRaFT: Clark et al. 2023).

    reward: in its own unit; carries the gradient. It is not normalised: that would change what is maximised
    drawn: reward of the sample as it was drawn; a diagnostic only
    """
    return -reward, {"reward_change": (reward.detach() - drawn).abs()}


def _ratio_rows(log_ratio: Tensor, event_size: int) -> dict[str, Tensor]:
    """log_ratio: nats a dimension; approx_kl: nats a step, half the squared log-ratio (Schulman 2020)."""
    return {"log_ratio": log_ratio / event_size, "approx_kl": 0.5 * log_ratio.square()}
