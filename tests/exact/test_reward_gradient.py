"""Reward backpropagation against exact gradients of the closed-form world.

A chain there is affine and Gaussian, x_next = gain x + bias + std z, so E[r] and its gradient through any of
its steps are known. Estimates are those of `collect` and `loss`, as the loop takes them.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from worlds import (
    COARSE,
    PROMPTS,
    Always,
    affine_steps,
    final_moments,
    linear,
    nearness,
    prompts,
    reward_of_chain,
)

from burnish import rows
from burnish.algorithms.draft import AlignProp, DRaFT, ReFL
from burnish.experience import Task
from burnish.losses import pathwise
from burnish.models.linear import Linear
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.rollout import Samples, Trajectory
from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.schedules import DiffusionSchedule
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training

CHAINS, GROUPS = 640, 16
TARGET = (3.0, -2.0)
STEPS = 4
SAMPLERS = [
    DDIM(num_steps=STEPS),
    DDPM(num_steps=STEPS, variance="beta"),
    DDIM(num_steps=STEPS, eta=0),
]


def world(sampler) -> Policy:
    return Policy(linear((0.5, -0.5), -0.3, COARSE), sampler)


def estimates(policy: Policy, algorithm) -> Tensor:
    """One estimate of the gradient of E[r] from each group of chains, (groups, parameters)."""
    task = Task(policy, Always(prompts("")), nearness(TARGET), samples=CHAINS, batch=CHAINS)
    found = algorithm.collect(task, memory={}, randomness=Randomness(0)).rows
    groups = []
    for index in torch.arange(CHAINS).reshape(-1, GROUPS).unbind(1):
        loss, _ = algorithm.loss(policy, found[index])
        groups.append(-flat(torch.autograd.grad(loss.mean(), policy.denoiser.parameters())))
    return torch.stack(groups)


def flat(gradient: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in gradient]).double()


def assert_agree(found: Tensor, exact: Tensor) -> None:
    """Within 5 standard errors, and these are small against the gradient's length."""
    standard_error = found.std(0) / GROUPS**0.5
    assert (5 * standard_error < 0.2 * exact.norm()).all(), (standard_error, exact)
    assert ((found.mean(0) - exact).abs() < 5 * standard_error).all(), (found.mean(0), exact)


def truncated(policy: Policy, last: int) -> Tensor:
    """Gradient of E[r] through the last steps only: before them the parameters are held."""
    steps = affine_steps(policy)
    held = [tuple(part.detach() for part in step) for step in steps]
    begin = len(steps) - last
    reward = reward_of_chain([*held[:begin], *steps[begin:]], TARGET)
    return flat(torch.autograd.grad(reward, policy.denoiser.parameters()))


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_whole_chain_estimates_the_exact_gradient(sampler):
    policy = world(sampler)
    reward = policy.denoiser.expected_reward(policy.kernel, TARGET)
    exact = flat(torch.autograd.grad(reward, policy.denoiser.parameters()))
    assert_agree(estimates(policy, DRaFT(train_steps=STEPS)), exact)


@pytest.mark.parametrize("last", [1, 2, 3])
def test_the_last_k_steps_estimate_the_gradient_of_the_truncated_chain(last):
    policy = world(DDIM(num_steps=STEPS))
    assert_agree(estimates(policy, DRaFT(train_steps=last)), truncated(policy, last))


def test_each_k_has_a_gradient_of_its_own():
    """Else the test above could not tell an off-by-one: neighbours differ by a tenth of their length,
    most of it in the mean, whose 5 standard errors are a thirtieth."""
    policy = world(DDIM(num_steps=STEPS))
    gradients = [truncated(policy, last) for last in range(1, STEPS)]
    for one, other in pairwise(gradients):
        assert (one - other).norm() > 0.1 * other.norm()


@pytest.mark.parametrize("most", [2, None])
def test_a_k_drawn_for_each_sample_estimates_the_mean_over_k(most):
    policy = world(DDIM(num_steps=STEPS))
    lengths = range(1, (most or STEPS) + 1)
    exact = torch.stack([truncated(policy, last) for last in lengths]).mean(0)
    assert_agree(estimates(policy, AlignProp(train_steps=most)), exact)


@pytest.mark.parametrize("last", [1, 3])
def test_refl_estimates_the_gradient_of_the_reward_of_one_jump(last):
    """x0_hat is affine in x_k, whose law is held: E[r(x0_hat)] is known, and its mean over k is sought."""
    policy = world(DDIM(num_steps=STEPS))
    held = [tuple(part.detach() for part in step) for step in affine_steps(policy)]
    reward = torch.stack(
        [_reward_of_jump(policy, held, STEPS - back) for back in range(1, last + 1)]
    )
    exact = flat(torch.autograd.grad(reward.mean(), policy.denoiser.parameters()))
    assert_agree(estimates(policy, ReFL(train_steps=last)), exact)


def _reward_of_jump(policy: Policy, held, k: int) -> Tensor:
    """E[-|a x_k + b - target|^2]; (a, b) from the posterior mean of x0 ~ N(m, s^2) given x_k.

    E[x0 | x] = m + s^2 signal / (signal^2 s^2 + sigma^2) (x - signal m): no formula of `Linear` is used.
    """
    model, signal, sigma = policy.denoiser, policy.kernel.signal[k], policy.kernel.sigma[k]
    m, variance = model.mean.double().flatten(), (2 * model.log_std.double()).exp()
    a = variance * signal / (signal.square() * variance + sigma.square())
    jump = (a.expand(2), m - a * signal * m, torch.zeros(()).double())
    return reward_of_chain([*held[:k], jump], TARGET)


def one_row(model: Linear, x: float, k: int, target: float) -> rows.Contexts:
    """A row that stands at the state x before step k of two."""
    states = torch.zeros(3, 1, 1, 1, 1)
    states[k] = x
    return rows.contexts(
        Trajectory(
            states, torch.zeros(0, 1), (), tuple(range(len(states))), model.encode(["a cat"])
        ),
        Samples(states[-1], ("a cat",), ({},)),
        torch.zeros(1),
        nearness((target,)),
        noise=Randomness(0),
        lengths=[2 - k],
    )


def test_refl_by_hand_on_one_row():
    """abar = 0.64 at the state x = 2, data N(0.5, 1): signal 0.8, sigma 0.6.

    E[x0 | x] = 0.5 + 0.8 (2 - 0.4) = 1.78, since signal^2 + sigma^2 = 1, and its derivative by the mean is
    1 - 0.64 = 0.36. With target 3 the reward is -(1.22)^2 = -1.4884, its derivative 2 (1.22) 0.36 = 0.8784.
    """
    alpha_bar = torch.tensor([0.9, 0.64], dtype=torch.float64)
    schedule = DiffusionSchedule(alpha_bar=alpha_bar, final_alpha_bar=1.0)
    model = linear((0.5,), 0.0, schedule)
    policy = Policy(model, DDIM(num_steps=2))
    row = one_row(model, x=2.0, k=0, target=3.0)
    loss, diagnostics = ReFL(train_steps=2).loss(policy, row)
    assert loss.item() == pytest.approx(1.4884, abs=1e-5)
    assert diagnostics["reward_change"].item() == pytest.approx(1.4884, abs=1e-5)
    (slope,) = torch.autograd.grad(loss.sum(), model.mean)
    assert slope.item() == pytest.approx(-0.8784, abs=1e-5)


def test_a_deterministic_last_step_by_hand():
    """The same numbers for DRaFT-1: DDIM's step to abar = 1 without noise lands on E[x0 | x]."""
    alpha_bar = torch.tensor([0.64, 0.5], dtype=torch.float64)
    schedule = DiffusionSchedule(alpha_bar=alpha_bar, final_alpha_bar=1.0)
    model = linear((0.5,), 0.0, schedule)
    policy = Policy(model, DDIM(num_steps=2))
    loss, _ = DRaFT().loss(policy, one_row(model, x=2.0, k=1, target=3.0))
    assert loss.item() == pytest.approx(1.4884, abs=1e-5)
    (slope,) = torch.autograd.grad(loss.sum(), model.mean)
    assert slope.item() == pytest.approx(-0.8784, abs=1e-5)


def test_the_loss_is_minus_the_reward_and_no_gradient_enters_what_was_drawn():
    reward, drawn = (torch.tensor(v, requires_grad=True) for v in ([2.0, -1.0], [2.5, -1.0]))
    loss, diagnostics = pathwise(reward, drawn.detach())
    assert loss.tolist() == [-2.0, 1.0]
    assert torch.autograd.grad(loss.sum(), reward)[0].tolist() == [-1.0, -1.0]
    assert diagnostics["reward_change"].tolist() == [0.5, 0.0]
    assert not diagnostics["reward_change"].requires_grad


ALGORITHMS = [DRaFT(), DRaFT(train_steps=STEPS), AlignProp(), ReFL(train_steps=2)]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_a_step_along_the_gradient_raises_the_expected_reward(algorithm):
    policy = world(DDIM(num_steps=STEPS))
    target = [1.0, 1.0]
    task = Task(policy, Always(prompts("")), nearness(target), samples=64, batch=64)
    found = algorithm.collect(task, memory={}, randomness=Randomness(0))
    before = _expected(policy, target)
    loss, _ = algorithm.loss(policy, found.rows)
    parameters = list(policy.denoiser.parameters())
    gradient = torch.autograd.grad(loss.mean(), parameters)
    length = flat(gradient).norm()
    with torch.no_grad():
        for parameter, slope in zip(parameters, gradient, strict=True):
            parameter -= (0.02 / length * slope).float()
    assert _expected(policy, target) > before


def _expected(policy: Policy, target) -> float:
    return reward_of_chain(affine_steps(policy), target).item()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_training_ends_near_the_optimum_of_the_linear_world(algorithm):
    """All chains at the target is E[r] = 0; it starts at -8.7."""
    policy = Policy(linear(), DDIM(num_steps=STEPS))
    target = (2.0, 2.0)
    geometry = Training(iterations=25, samples=8, updates=1, sample_batch=8)
    reports = train(
        policy,
        algorithm,
        PROMPTS,
        nearness(target),
        training=geometry,
        optimizer=AdamW(learning_rate=0.3),
    )
    before = _expected(policy, target)
    done = list(reports)
    assert before < -8
    assert _expected(policy, target) > -0.5
    assert done[-1].queries == 25 * 2 * 8 + 1


def test_the_truncated_chain_by_hand():
    """Two steps x' = g x + p, x'' = h x' + q from N(0, 1), and r = -(x'' - t)^2: of the last step alone,
    d E[r] / d q = -2 (h p + q - t), and of both steps also d E[r] / d p = h times that."""
    one, zero = torch.ones(1).double(), torch.zeros(()).double()
    p, q = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.3, 0.2))
    mean, variance = final_moments([(0.5 * one, p, zero), (2 * one, q, zero)])
    assert (mean.item(), variance.item()) == pytest.approx((0.8, 1.0))
    reward = reward_of_chain([(0.5 * one, p, zero), (2 * one, q, zero)], [1.0])
    slopes = torch.autograd.grad(reward, (p, q))
    assert [slope.item() for slope in slopes] == pytest.approx([0.8, 0.4])
    assert math.isclose(reward.item(), -(0.04 + 1.0))
