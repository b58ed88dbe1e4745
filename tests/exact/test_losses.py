"""The objectives at hand-computed values, and what their gradients may and may not reach."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.losses import clipped_ratio, score_function

CLIP = 0.1
OBJECTIVES = [
    pytest.param(partial(score_function, event_size=2), id="score_function"),
    pytest.param(partial(clipped_ratio, event_size=2, clip=CLIP), id="clipped_ratio"),
]


def ppo(ratio: float, advantage: float, event_size: int = 1) -> tuple[float, float, dict]:
    """Loss, its derivative by log_prob, and diagnostics, of one row with the given ratio."""
    old = torch.tensor([-3.0])
    log_prob = (old + event_size * math.log(ratio)).requires_grad_()
    loss, rows = clipped_ratio(log_prob, old, torch.tensor([advantage]), event_size, CLIP)
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    return loss.item(), gradient.item(), rows


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.2, +2.0, -2 * 1.1, 0.0),  # good and already likelier: no more to earn
        (0.8, +2.0, -2 * 0.8, -2 * 0.8),  # good and less likely: pulled back
        (1.2, -2.0, +2 * 1.2, +2 * 1.2),  # bad and likelier: pushed down
        (0.8, -2.0, +2 * 0.9, 0.0),  # bad and already less likely: no more to earn
        (1.05, +2.0, -2 * 1.05, -2 * 1.05),  # inside the interval
        (0.95, -2.0, +2 * 0.95, +2 * 0.95),
        (1.0, +2.0, -2.0, -2.0),  # before any update
        (1.0, -2.0, +2.0, +2.0),
        (1.2, 0.0, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("event_size", [1, 4])
def test_ppo_clips_one_side_for_each_sign_of_the_advantage(
    ratio, advantage, loss, gradient, event_size
):
    found, slope, rows = ppo(ratio, advantage, event_size)
    assert found == pytest.approx(loss, rel=1e-5)
    assert slope == pytest.approx(gradient / event_size, rel=1e-5)
    assert rows["clip_fraction"].item() == float(abs(ratio - 1) > CLIP)
    assert rows["log_ratio"].item() == pytest.approx(math.log(ratio), abs=1e-6)
    assert rows["approx_kl"].item() == pytest.approx(
        (event_size * math.log(ratio)) ** 2 / 2, abs=1e-5
    )


def test_the_ratio_is_new_over_old_and_of_the_mean_over_dimensions():
    """exp((-2 - -8) / 3) = e^2; an advantage of -1 leaves it unclipped."""
    loss, _ = clipped_ratio(
        torch.tensor([-2.0]), torch.tensor([-8.0]), torch.tensor([-1.0]), 3, 0.1
    )
    assert loss.item() == pytest.approx(math.exp(2))


def test_score_function_at_hand_computed_values():
    """-A log p / d: -(2)(-6)/3 = 4 and -(-1)(3)/3 = 1."""
    log_prob = torch.tensor([-6.0, 3.0], requires_grad=True)
    loss, rows = score_function(log_prob, torch.tensor([-6.3, 3.6]), torch.tensor([2.0, -1.0]), 3)
    assert loss.tolist() == pytest.approx([4.0, 1.0])
    (gradient,) = torch.autograd.grad(loss.sum(), log_prob)
    assert gradient.tolist() == pytest.approx([-2 / 3, 1 / 3])
    assert rows["log_ratio"].tolist() == pytest.approx([0.1, -0.2], abs=1e-6)
    assert rows["approx_kl"].tolist() == pytest.approx([0.045, 0.18], abs=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_only_the_new_log_prob_carries_a_gradient(objective):
    new, old, advantage = (
        torch.tensor(values, requires_grad=True)
        for values in ([-1.0, -2.0], [-1.01, -2.01], [1.0, -1.0])
    )
    loss, _ = objective(new, old, advantage)
    loss.sum().backward()
    assert new.grad is not None
    assert new.grad.abs().min() > 0
    assert old.grad is None
    assert advantage.grad is None
    _, rows = objective(new, old.detach(), advantage)
    assert not any(value.requires_grad for value in rows.values())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_row_depends_on_no_other_row(objective):
    generator = torch.Generator().manual_seed(0)
    new, old, advantage = torch.randn(3, 8, generator=generator).unbind()
    together, rows = objective(new, old, advantage)
    for i in range(8):
        alone, own = objective(new[i : i + 1], old[i : i + 1], advantage[i : i + 1])
        assert alone[0] == together[i]
        assert all(own[name][0] == rows[name][i] for name in rows)


@given(st.floats(-0.3, 0.3), st.floats(-5, 5), st.integers(1, 100))
def test_the_clipped_loss_is_never_below_the_unclipped_one(per_dim, advantage, event_size):
    """A pessimistic bound (Schulman et al. 2017): clipping only ever takes reward away."""
    new = torch.tensor([per_dim * event_size])
    loss, _ = clipped_ratio(new, torch.zeros(1), torch.tensor([advantage]), event_size, CLIP)
    assert loss.item() >= -advantage * math.exp(per_dim) - 1e-4


def test_both_estimators_have_the_same_gradient_before_any_update():
    old = torch.tensor([-1.0, -2.0, 0.5])
    advantage = torch.tensor([1.0, -0.5, 2.0])
    gradients = []
    for (objective,) in (parameter.values for parameter in OBJECTIVES):
        new = old.clone().requires_grad_()
        loss, rows = objective(new, old, advantage)
        assert torch.equal(rows["log_ratio"].detach(), torch.zeros(3))
        gradients.append(torch.autograd.grad(loss.sum(), new)[0])
    assert torch.equal(*gradients)
