"""Group-relative advantages by hand; GRPO and the KL to the base model against the exact gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import COARSE, Always, affine_steps, linear, nearness, prompts

from burnish.advantages import group_relative, without_spread
from burnish.algorithms import Collection
from burnish.algorithms.dpok import DPOK
from burnish.algorithms.grpo import GRPO
from burnish.experience import Task
from burnish.losses import divergence_penalty
from burnish.models.linear import Linear
from burnish.policy import Policy, snapshot
from burnish.randomness import Randomness
from burnish.rows import log_prob
from burnish.samplers.ddim import DDIM

SHIFTS = {"a cat": 1.0, "a dog": -1.0}
SAMPLER, TARGET = DDIM(num_steps=4), (3.0, -2.0)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def test_a_groups_own_spread_by_hand():
    """1, 3: mean 2, deviation 1. 0, 0, 3, 5 would be mean 2, but here the groups are 0, 0 and 3, 5."""
    assert group_relative(numbers(1, 3, 3, 5), 2, "group").tolist() == pytest.approx([-1, 1, -1, 1])
    four = group_relative(numbers(0, 0, 3, 5), 4, "group")
    assert four.tolist() == pytest.approx([x / 4.5**0.5 for x in (-2, -2, 1, 3)])


def test_the_global_spread_by_hand():
    """0, 2, 4, 10: mean 4, variance (16 + 4 + 0 + 36) / 4 = 14; deviations from the pairs' means 1 and 7."""
    found = group_relative(numbers(0, 2, 4, 10), 2, "global")
    assert found.tolist() == pytest.approx([x / 14**0.5 for x in (-1, 1, -3, 3)])


@pytest.mark.parametrize("spread", ["group", "global"])
@pytest.mark.parametrize("dead", [0.0, 0.1, -123.4, 3e7])
def test_a_group_without_spread_has_advantage_0_beside_one_that_has_some(spread, dead):
    """Two neighbours in float32 are no spread either: exactly 0, and no rounding error of a mean."""
    neighbour = torch.nextafter(numbers(dead), numbers(1e9)).item()
    rewards = numbers(neighbour, neighbour, dead, 1, 2, 3)
    found = group_relative(rewards, 3, spread)
    assert found[:3].tolist() == [0, 0, 0]
    assert found[3] < 0 < found[5]
    assert without_spread(rewards, 3) == [0]


@pytest.mark.parametrize("spread", ["group", "global"])
def test_groups_that_are_all_without_spread_have_advantage_0(spread):
    rewards = numbers(5, 5, -0.1, -0.1)
    assert group_relative(rewards, 2, spread).tolist() == [0, 0, 0, 0]
    assert without_spread(rewards, 2) == [0, 1]


def test_the_penalty_by_hand():
    """0.5 * 6 nats over 3 dimensions."""
    loss, rows = divergence_penalty(numbers(6), 3, 0.5)
    assert loss.item() == pytest.approx(1.0)
    assert rows["kl_to_reference"].item() == 6


def collected(
    algorithm, model: Linear, reward, *, samples: int, memory: Mapping[str, Any] | None = None
) -> Collection:
    asked = Always(prompts(*SHIFTS))
    task = Task(Policy(model, SAMPLER), asked, reward, samples=samples, batch=samples)
    return algorithm.collect(task, memory=memory or {}, randomness=Randomness(0))


def gradient(loss: Tensor, model: Linear, **options: Any) -> Tensor:
    parts = torch.autograd.grad(loss, [model.mean, model.log_std], **options)
    return torch.cat([part.flatten() for part in parts]).double()


@pytest.mark.parametrize("spread", ["global", "group"])
def test_grpo_estimates_the_exact_gradient_up_to_the_groups_factor(spread):
    """A reward's own share of its group's mean takes 1 / G of the gradient.

    The global spread is one number, which divides the exact gradient too. A group's own spread depends on its
    chains; it is that of its prompt in the limit of large groups, and at G = 500 the bias, of order 1 / G, is
    far below the standard errors.
    """
    size, count = (8, 8000) if spread == "global" else (500, 16000)
    model, parts = linear((0.5, -0.5), -0.3, COARSE, SHIFTS), 16
    algorithm = GRPO(group_size=size, spread=spread, advantage_clip=1e9)
    found = collected(algorithm, model, nearness(TARGET), samples=count)
    policy = Policy(model, SAMPLER)
    spreads = {
        "global": [found.rewards.std(correction=0)] * 2,
        "group": [
            found.rewards.reshape(-1, size)[i::2].std(1, correction=0).mean() for i in (0, 1)
        ],
    }[spread]
    exact = sum(
        gradient(model.expected_reward(policy.kernel, TARGET, prompt), model) / 2 / std
        for prompt, std in zip(SHIFTS, spreads, strict=True)
    )
    estimates = []
    for part in range(parts):
        pair = found.rows.sample // (2 * size)  # a group of each prompt
        mine = found.rows[torch.nonzero(pair % parts == part).flatten()]
        loss, _ = algorithm.loss(policy, mine)
        ascent = -loss.mean() * mine.event_size * SAMPLER.num_steps
        estimates.append(gradient(ascent, model) * size / (size - 1))
    estimates = torch.stack(estimates)
    standard_error = estimates.std(0) / parts**0.5
    assert (5 * standard_error < 0.3 * exact.norm()).all(), (standard_error, exact)
    assert ((estimates.mean(0) - exact).abs() < 5 * standard_error).all(), (estimates, exact)


def moved() -> tuple[Linear, Linear]:
    """A base model, and one that training has moved away from it."""
    return (linear((0.5, -0.5), -0.3, COARSE, SHIFTS), linear((0.7, -0.6), -0.2, COARSE, SHIFTS))


def exact_divergences(model: Linear, base: Linear) -> Tensor:
    """E[KL(policy || base)] of each step in nats, (steps,), over the policy's own chains.

    Differentiable in the step's distribution, not in those of the steps before. Read off the transitions at
    two points, it shares no formula with `Gaussian.kl`.
    """
    total = torch.zeros(SAMPLER.num_steps).double()
    for prompt in SHIFTS:
        own, other = (affine_steps(Policy(m, SAMPLER), prompt) for m in (model, base))
        mean, variance = torch.zeros(2).double(), torch.ones(2).double()
        divergences = []
        for (gain, bias, std), (base_gain, base_bias, _) in zip(own, other, strict=True):
            turn, shift = gain - base_gain.detach(), bias - base_bias.detach()
            distance = (
                turn.square() * (mean.square() + variance) + 2 * turn * shift * mean + shift**2
            )
            divergences.append(distance.sum() / (2 * std**2))
            mean = (gain * mean + bias).detach()
            variance = (gain.square() * variance + std.square()).detach()
        total = total + torch.stack(divergences) / len(SHIFTS)
    return total


KL_ALGORITHMS = [
    pytest.param(GRPO(group_size=2, kl=0.7), id="grpo"),
    pytest.param(DPOK(kl=0.7), id="dpok"),
]


@pytest.mark.parametrize("algorithm", KL_ALGORITHMS)
def test_the_kl_to_the_base_model_and_its_gradient_are_the_exact_ones(algorithm):
    """With a constant reward nothing else is in the loss. The gradient is that of each step's divergence on
    given states: what a step does to later states is left out, as in both papers.
    """
    count, parts = 4000, 20
    base, model = moved()
    memory = {"reference": snapshot(base)}
    constant = nearness(TARGET)
    found = collected(algorithm, model, lambda s: 0 * constant(s), samples=count, memory=memory)
    policy = Policy(model, SAMPLER)
    exact = exact_divergences(model, base)
    estimates, gradients = [], []
    for part in range(parts):
        mine = found.rows[torch.nonzero(found.rows.sample // 2 % parts == part).flatten()]
        loss, diagnostics = algorithm.loss(policy, mine)
        by_step = [diagnostics["kl_to_reference"][mine.step == k].mean() for k in range(4)]
        estimates.append(torch.stack(by_step).double())
        scaled = loss.mean() * mine.event_size * SAMPLER.num_steps / algorithm.kl
        assert scaled.item() == pytest.approx(estimates[-1].sum().item(), rel=1e-4)
        gradients.append(gradient(scaled, model))
    exact_gradient = gradient(exact.sum(), model)
    for values, truth in ((estimates, exact.detach()), (gradients, exact_gradient)):
        stacked = torch.stack(values)
        standard_error = stacked.std(0) / parts**0.5
        assert (5 * standard_error < 0.3 * truth.norm()).all(), (standard_error, truth)
        # 1e-4: float32, of means up to 3 whose difference is some 0.1
        assert ((stacked.mean(0) - truth).abs() < 5 * standard_error + 1e-4 * truth.norm()).all()


@pytest.mark.parametrize("algorithm", KL_ALGORITHMS)
def test_at_the_base_model_the_kl_and_its_gradient_are_exactly_0(algorithm):
    base, _ = moved()
    found = collected(algorithm, base, lambda s: torch.ones(len(s)), samples=8)
    loss, diagnostics = algorithm.loss(Policy(base, SAMPLER), found.rows)
    assert torch.equal(diagnostics["kl_to_reference"], torch.zeros(32))
    assert torch.equal(gradient(loss.mean(), base), torch.zeros(3).double())


@pytest.mark.parametrize("algorithm", KL_ALGORITHMS)
def test_the_kl_pulls_back_to_the_base_model(algorithm):
    base, model = moved()
    memory = {"reference": snapshot(base)}
    found = collected(algorithm, model, lambda s: torch.ones(len(s)), samples=200, memory=memory)
    before = exact_divergences(model, base).sum().item()
    step_down(algorithm, model, found)
    assert exact_divergences(model, base).sum().item() < before
    for parameter, start, aim in zip(
        model.parameters(), *map(snapshot, moved()[::-1]), strict=True
    ):
        assert ((parameter - start) * (aim - start) > 0).all()


@pytest.mark.parametrize("spread", ["group", "global"])
def test_an_update_makes_what_is_above_its_group_likelier_and_what_is_below_less_likely(spread):
    model = linear((0.5, -0.5), -0.3, COARSE, SHIFTS)
    algorithm = GRPO(group_size=4, spread=spread)
    found = collected(algorithm, model, nearness(TARGET), samples=400)
    best = found.rewards.reshape(-1, 4).argmax(1) + 4 * torch.arange(100)
    worst = found.rewards.reshape(-1, 4).argmin(1) + 4 * torch.arange(100)
    step_down(algorithm, model, found)
    change = log_prob(Policy(model, SAMPLER), found.rows).detach() - found.rows.old_log_prob
    chain = torch.zeros(400).index_add(0, found.rows.sample, change)
    assert chain[best].mean() > 0 > chain[worst].mean()


def step_down(algorithm, model: Linear, found: Collection) -> None:
    """One step of gradient descent on the loss of all rows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    algorithm.loss(Policy(model, SAMPLER), found.rows)[0].mean().backward()
    optimizer.step()


@pytest.mark.parametrize("algorithm", KL_ALGORITHMS)
def test_the_reference_is_the_model_of_the_first_iteration(algorithm):
    base, model = moved()
    first = collected(algorithm, base, nearness(TARGET), samples=4)
    remembered = [tensor.clone() for tensor in first.memory["reference"]]
    later = collected(algorithm, model, nearness(TARGET), samples=4, memory=first.memory)
    for kept, original in zip(later.memory["reference"], remembered, strict=True):
        assert torch.equal(kept, original)
    _, diagnostics = algorithm.loss(Policy(model, SAMPLER), later.rows)
    assert diagnostics["kl_to_reference"].min() > 0
    assert torch.equal(
        torch.cat([p.flatten() for p in snapshot(model)]), torch.tensor([0.7, -0.6, -0.2])
    )


def test_without_kl_nothing_is_remembered_or_recorded():
    found = collected(GRPO(group_size=2), linear(), nearness(TARGET), samples=4)
    assert found.memory == {}
    assert found.rows.recorded == {}


def test_grpo_with_kl_is_grpo_and_the_kl():
    """Loss and gradient are sums: neither scales the other."""
    base, model = moved()
    both = GRPO(group_size=2, kl=0.7)
    found = collected(
        both, model, nearness(TARGET), samples=8, memory={"reference": snapshot(base)}
    )
    policy = Policy(model, SAMPLER)
    together = gradient(both.loss(policy, found.rows)[0].mean(), model)
    reward = gradient(replace(both, kl=0.0).loss(policy, found.rows)[0].mean(), model)
    still = replace(found.rows, advantages=torch.zeros(8))
    penalty = gradient(both.loss(policy, still)[0].mean(), model)
    torch.testing.assert_close(together, reward + penalty, rtol=1e-4, atol=1e-5)
    assert penalty.norm() > 0.01 * reward.norm()
