"""DPO and D3PO: values and gradients derived by hand in the closed-form world."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import ALPHA_BAR, COARSE, PROMPTS, affine_steps, linear, nearness

from burnish import rows
from burnish.algorithms import Collection, endpoints
from burnish.algorithms.dpo import D3PO, DPO
from burnish.experience import Task
from burnish.losses import preference
from burnish.models.linear import Linear
from burnish.policy import Policy, snapshot
from burnish.randomness import Randomness
from burnish.samplers.ddim import DDIM

SAMPLER, TARGET, LOG_STD = DDIM(num_steps=4), (3.0, -2.0), -0.3
NEARNESS = nearness(TARGET)
ALGORITHMS = [
    pytest.param(DPO(beta=7.0, draws=3), id="dpo"),
    pytest.param(D3PO(beta=0.7), id="d3po"),
]


def model(mean: tuple[float, float] = (0.5, -0.5)) -> Linear:
    return linear(mean, LOG_STD, COARSE, {"a cat": 1.0})


def collected(
    algorithm,
    of: Linear,
    reward=NEARNESS,
    *,
    samples: int = 40,
    memory: Mapping[str, Any] | None = None,
) -> Collection:
    task = Task(Policy(of, SAMPLER), PROMPTS, reward, samples=samples, batch=samples)
    return algorithm.collect(task, memory=memory or {}, randomness=Randomness(0))


def losses_of(algorithm, of: Linear, found: Collection) -> tuple[Tensor, Mapping[str, Tensor]]:
    return algorithm.loss(Policy(of, SAMPLER), found.rows)


def gradient(loss: Tensor, of: Linear) -> Tensor:
    parts = torch.autograd.grad(loss, [of.mean, of.log_std])
    return torch.cat([part.flatten() for part in parts])


def test_the_preference_by_hand():
    """2 (3 - 1) = 4: log(1 + e^-4); 2 (1 - 3) = -4: log(1 + e^4); the slope is -2 sigmoid(-margin)."""
    chosen, rejected = (
        torch.tensor(values, requires_grad=True) for values in ([3.0, 1.0, 0.5], [1.0, 3.0, 0.5])
    )
    loss, found = preference(chosen, rejected, 2.0)
    expected = [math.log1p(math.exp(-4)), math.log1p(math.exp(4)), math.log(2)]
    assert loss.tolist() == pytest.approx(expected)
    assert found["margin"].tolist() == [4, -4, 0]
    assert found["preferred"].tolist() == [1, 0, 0]
    loss.sum().backward()
    slopes = [-2 / (1 + math.exp(margin)) for margin in (4, -4, 0)]
    assert chosen.grad.tolist() == pytest.approx(slopes)
    assert rejected.grad.tolist() == pytest.approx([-slope for slope in slopes])
    assert not any(value.requires_grad for value in found.values())


def test_a_margin_however_wrong_keeps_its_gradient():
    """Nothing is clamped: a pair that is far on the wrong side is pulled with all of beta."""
    chosen = torch.tensor([-1000.0], requires_grad=True)
    loss, _ = preference(chosen, torch.tensor([1000.0]), 2.0)
    assert loss.item() == pytest.approx(4000)
    loss.backward()
    assert chosen.grad.item() == pytest.approx(-2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_at_the_reference_the_loss_is_log_2_and_nothing_is_preferred(algorithm):
    base = model()
    loss, found = losses_of(algorithm, base, collected(algorithm, base))
    assert torch.equal(found["margin"], torch.zeros(len(loss)))
    assert loss.tolist() == pytest.approx([math.log(2)] * len(loss))


def slope_and_signal(pairs: rows.Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At each row: the network's slope, its derivative by log_std, the signal, and x_chosen - x_rejected.

    E[e | x] = slope (x - signal m), with slope = sigma / (signal^2 exp(2 log_std) + sigma^2).
    """
    chosen = pairs.chosen
    time = (chosen.quantile * len(ALPHA_BAR)).long()
    signal, sigma = ALPHA_BAR[time].sqrt(), (1 - ALPHA_BAR[time]).sqrt()
    spread = signal**2 * math.exp(2 * LOG_STD)
    slope = sigma / (spread + sigma**2)
    turn = -2 * spread * sigma / (spread + sigma**2) ** 2
    apart = (chosen.x0 - pairs.rejected.x0)[chosen.sample].flatten(1).double()
    return slope.unsqueeze(1), turn.unsqueeze(1), signal.unsqueeze(1), apart


def test_dpos_gradient_at_the_reference_is_the_hand_derived_one():
    """With the same level and noise e on both sides the residual r = slope (x - signal m) - e differs by
    slope signal (x0_c - x0_r), whatever m and e are. So the loss, -log sigmoid(beta (fall_c - fall_r)), has
    at margin 0 the gradient beta / 2 d(error_c - error_r)/dm = -beta / size slope^2 signal^2 (x0_c - x0_r).
    """
    base, algorithm = model(), DPO(beta=7.0, draws=3)
    found = collected(algorithm, base)
    slope, _, signal, apart = slope_and_signal(found.rows)
    by_hand = -(7.0 / 2) * (slope**2 * signal**2 * apart).mean(0)
    loss, _ = losses_of(algorithm, base, found)
    torch.testing.assert_close(
        gradient(loss.mean(), base)[:2].double(), by_hand, rtol=1e-4, atol=1e-5
    )


def test_dpos_gradient_by_the_width_is_the_hand_derived_one():
    """d error / d log_std = 2 / size sum r slope' (x - signal m), with the residuals r of each side."""
    base, algorithm = model(), DPO(beta=7.0, draws=3)
    found = collected(algorithm, base)
    slope, turn, signal, _ = slope_and_signal(found.rows)
    sides = []
    for side in (found.rows.chosen, found.rows.rejected):
        at = rows.noised(Policy(base, SAMPLER), side)
        centre = torch.tensor([[0.5, -0.5]]) + at.cond["shift"].unsqueeze(1)
        centred = at.x.flatten(1).double() - signal * centre
        sides.append((slope * centred - at.target.flatten(1)) * turn * centred)
    by_hand = (7.0 / 2) * (sides[0] - sides[1]).sum(1).mean()  # 2 / size = 1
    loss, _ = losses_of(algorithm, base, found)
    assert gradient(loss.mean(), base)[2].item() == pytest.approx(by_hand.item(), rel=1e-3)


def test_dpos_implicit_reward_by_hand():
    """Moving m by d moves both residuals by -slope signal d; the square's change that does not cancel is
    margin = beta 2 / size slope^2 signal^2 sum d (x0_c - x0_r)."""
    base, algorithm = model(), DPO(beta=7.0, draws=3)
    found = collected(algorithm, base)
    _, values = losses_of(algorithm, model((0.7, -0.6)), found)
    slope, _, signal, apart = slope_and_signal(found.rows)
    by_hand = 7.0 * (slope**2 * signal**2 * apart * torch.tensor([[0.2, -0.1]])).sum(1)
    torch.testing.assert_close(values["margin"].double(), by_hand, rtol=1e-3, atol=1e-4)


def test_both_sides_of_a_pair_have_the_same_prompt_noise_and_noise_level():
    base = model()
    found = collected(DPO(draws=3), base)
    pairs = found.rows[torch.tensor([7, 0, 29, 4])]
    chosen, rejected = (
        rows.noised(Policy(base, SAMPLER), s) for s in (pairs.chosen, pairs.rejected)
    )
    assert torch.equal(chosen.time, rejected.time)
    assert torch.equal(chosen.target, rejected.target)  # the noise itself
    assert torch.equal(chosen.cond["shift"], rejected.cond["shift"])
    assert not torch.equal(chosen.x0, rejected.x0)
    noise = (chosen.x - chosen.signal.reshape(-1, 1, 1, 1) * chosen.x0) / chosen.sigma.reshape(
        -1, 1, 1, 1
    )
    torch.testing.assert_close(noise, chosen.target, rtol=1e-3, atol=1e-3)


def test_the_pairs_are_the_best_and_the_worst_of_their_groups():
    base = model()
    found = collected(DPO(group_size=4, draws=1), base)
    groups = found.rewards.reshape(-1, 4)
    assert torch.equal(found.rows.chosen.weight, groups.max(1).values)
    assert torch.equal(found.rows.rejected.weight, groups.min(1).values)
    for side in (found.rows.chosen, found.rows.rejected):
        own = -(side.x0.flatten(1) - torch.tensor(TARGET)).square().sum(1)
        torch.testing.assert_close(own, side.weight)


def test_d3pos_implicit_reward_and_gradient_by_hand():
    """log p / p_ref of x' ~ N(gain x + bias, std^2), read off the transitions at two points."""
    base, new, algorithm = model(), model((0.7, -0.6)), D3PO(beta=0.7)
    found = collected(algorithm, base)

    def log_ratio(side: rows.Transitions) -> Tensor:
        ratios = []
        for i in range(len(side)):
            prompt = "a cat" if side.cond["shift"][i] else ""
            own, reference = (affine_steps(Policy(m, SAMPLER), prompt) for m in (new, base))
            (gain, bias, std), (other_gain, other_bias, _) = (
                s[side.step[i]] for s in (own, reference)
            )
            x, x_next = (value[i].flatten().double() for value in (side.x, side.x_next))
            there = (x_next - other_gain.detach() * x - other_bias.detach()).square()
            here = (x_next - gain * x - bias).square()
            ratios.append(((there - here) / (2 * std**2)).sum())
        return torch.stack(ratios)

    margin = 0.7 * (log_ratio(found.rows.chosen) - log_ratio(found.rows.rejected))
    loss, values = losses_of(algorithm, new, found)
    # float32: squares of some 10 whose differences are some 0.1
    torch.testing.assert_close(values["margin"].double(), margin.detach(), rtol=1e-3, atol=1e-3)
    by_hand = (1 + (-margin).exp()).log()
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        gradient(loss.mean(), new).double(),
        gradient(by_hand.mean(), new).double(),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_update_makes_the_chosen_likelier_and_the_rejected_less_likely(algorithm):
    base = model()
    found = collected(algorithm, base, samples=400)

    def likelihood(side) -> Tensor:
        policy = Policy(base, SAMPLER)
        if isinstance(side, rows.Endpoints):
            return -endpoints.error(policy, side).mean().detach()
        return rows.log_prob(policy, side).mean().detach()

    chosen, rejected = (likelihood(side) for side in (found.rows.chosen, found.rows.rejected))
    optimizer = torch.optim.SGD([base.mean], lr=0.02)
    loss, _ = losses_of(algorithm, base, found)
    loss.mean().backward()
    optimizer.step()
    assert likelihood(found.rows.chosen) > chosen
    assert likelihood(found.rows.rejected) < rejected
    after, values = losses_of(algorithm, base, found)
    assert after.mean() < loss.mean()
    assert values["preferred"].mean() > 0.5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_reference_is_the_model_of_the_first_iteration(algorithm):
    """A policy that has moved is compared with the base model, not with itself as it was at collection."""
    base, new = model(), model((0.7, -0.6))
    memory = {"reference": snapshot(base)}
    found = collected(algorithm, new, memory=memory)
    assert found.memory["reference"] is memory["reference"]
    _, now = losses_of(algorithm, new, found)
    _, then = losses_of(algorithm, base, found)
    assert now["margin"].abs().min() > 0
    assert torch.equal(then["margin"], torch.zeros(len(found.rows)))
    assert torch.equal(snapshot(new)[0].flatten(), torch.tensor([0.7, -0.6]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_groups_without_spread_are_counted_and_make_no_pair(algorithm):
    """Of four groups, the second and the fourth are all 1."""
    base = model()
    rewards = torch.tensor([1.0, 2, 3, 4, 1, 1, 1, 1, 4, 3, 2, 1, 1, 1, 1, 1])
    found = collected(algorithm, base, lambda _: rewards, samples=16)
    assert found.metrics == {"groups_without_spread": 0.5}
    assert len(found.samples) == found.queries == 16
    side = found.rows.chosen
    assert len(side) == 2 * (side.draws if isinstance(side, rows.Endpoints) else 4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_if_no_group_has_spread_the_gradient_is_exactly_0(algorithm):
    base = model()
    found = collected(algorithm, base, lambda s: torch.ones(len(s)), samples=16)
    assert found.metrics == {"groups_without_spread": 1.0}
    loss, _ = losses_of(algorithm, base, found)
    assert torch.equal(gradient(loss.mean(), base), torch.zeros(3))
