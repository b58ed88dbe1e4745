"""The closed-form world checked by means that share nothing with its formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from worlds import (
    ALPHA_BAR,
    ENDS_CLEAN,
    ENDS_NOISY,
    SHIFTED,
    STRAIGHT,
    affine_steps,
    final_moments,
    linear,
    nearness,
    prompts,
    reward_of_chain,
)

from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.rollout import Samples, rollout
from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.samplers.flow import CPS, DanceSDE, FlowODE, FlowSDE
from burnish.samplers.window import Window
from burnish.schedules import SAMPLE, DiffusionSchedule, scaled_linear

SAMPLERS = [
    DDIM(num_steps=5, eta=1.0),
    DDIM(num_steps=5, eta=0.3),
    DDIM(num_steps=5, eta=0.0),
    DDPM(num_steps=5, variance="posterior"),
    DDPM(num_steps=5, variance="beta"),
]


FLOWS = [
    FlowODE(num_steps=5),
    FlowSDE(num_steps=5),
    DanceSDE(num_steps=5, eta=0.5),
    CPS(num_steps=5),
    Window(sampler=FlowSDE(num_steps=5), size=2, start=1),
]
SCHEDULES = {
    "noisy end": ENDS_NOISY,
    "clean end": ENDS_CLEAN,
    "straight": STRAIGHT,
    "shifted": SHIFTED,
}


def on(samplers: list, *names: str) -> list:
    """A case for each of the samplers on each of the schedules."""
    return [
        pytest.param(sampler, SCHEDULES[name], id=f"{sampler}, {name}")
        for sampler in samplers
        for name in names
    ]


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [*on(SAMPLERS, "noisy end", "clean end"), *on(FLOWS, "straight", "shifted")],
)
def test_moments_are_those_of_the_affine_chain_read_off_its_transitions(sampler, schedule):
    model = linear((0.5, -1.0), -0.3, schedule, shifts={"a cat": 0.7})
    policy = Policy(model, sampler)
    mean, variance = model.moments(policy.kernel, "a cat")
    expected_mean, expected_variance = final_moments(affine_steps(policy, "a cat"))
    # the transitions are float32: 5 steps, each with a relative error of 1e-7 on terms up to 15
    torch.testing.assert_close(mean, expected_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance.expand(2), expected_variance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "schedule"), [*on(SAMPLERS, "noisy end"), *on(FLOWS, "straight")]
)
def test_the_gradient_of_the_expected_reward_is_that_of_the_affine_chain(sampler, schedule):
    model = linear(schedule=schedule)
    policy = Policy(model, sampler)
    leaves = [model.mean, model.log_std]
    ours = torch.autograd.grad(model.expected_reward(policy.kernel, (1.0, 2.0)), leaves)
    reference = reward_of_chain(affine_steps(policy), (1.0, 2.0))
    for own, other in zip(ours, torch.autograd.grad(reference, leaves), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("sampler", "schedule"), [*on(SAMPLERS, "noisy end"), *on(FLOWS[1:4], "straight")]
)
def test_rollouts_end_with_the_moments_and_earn_the_expected_reward(sampler, schedule):
    count, target = 6000, (1.0, 0.0)
    model = linear(schedule=schedule, shifts={"a cat": 0.7})
    policy = Policy(model, sampler)
    x0 = rollout(policy, prompts("a cat") * count, Randomness(0), count).x0.flatten(1).double()
    mean, variance = (value.detach() for value in model.moments(policy.kernel, "a cat"))
    assert ((x0.mean(0) - mean).abs() < 5 * (variance / count).sqrt()).all()
    assert ((x0.var(0) - variance).abs() < 5 * variance * (2 / count) ** 0.5).all()
    reward = -(x0 - torch.tensor(target)).square().sum(1)
    error = reward.mean() - model.expected_reward(policy.kernel, target, "a cat").detach()
    assert error.abs() < 5 * reward.std() / count**0.5


def test_the_network_is_the_regression_of_the_noise_on_the_state():
    count = 200_000
    generator = torch.Generator().manual_seed(0)
    model = linear((1.5,), -0.5)
    x0 = 1.5 + torch.randn(count, generator=generator) * torch.tensor(-0.5).exp()
    noise = torch.randn(count, generator=generator)
    for time in (1, 300, 999):
        alpha_bar = float(ALPHA_BAR[time])
        x = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
        with torch.no_grad():
            predicted = model.predict(
                x.reshape(-1, 1, 1, 1), torch.full((count,), time), {"shift": torch.zeros(count)}
            ).flatten()
        # a conditional mean leaves a residual without mean and without correlation to the state
        residual = noise - predicted
        standard_error = 5 / count**0.5 * residual.std()
        assert residual.mean().abs() < standard_error
        assert ((x - x.mean()) / x.std() * residual).mean().abs() < standard_error


@pytest.mark.parametrize("time", [1.0, 300.0, 999.0, 1000.0])
def test_a_flow_network_is_the_regression_of_the_velocity_on_the_state(time):
    count = 200_000
    x0, e = torch.randn(2, count, generator=torch.Generator().manual_seed(0)).unbind()
    x0 = 1.5 + x0 * torch.tensor(-0.5).exp()
    t = time / 1000
    x = (1 - t) * x0 + t * e
    feed = (x.reshape(-1, 1, 1, 1), torch.full((count,), time), {"shift": torch.zeros(count)})
    velocity, clean = (
        linear((1.5,), -0.5, schedule).predict(*feed).detach().flatten()
        for schedule in (STRAIGHT, replace(STRAIGHT, parameterisation=SAMPLE))
    )
    for residual in (e - x0 - velocity, x0 - clean):
        standard_error = 5 / count**0.5 * residual.std()
        assert residual.mean().abs() < standard_error
        assert ((x - x.mean()) / x.std() * residual).mean().abs() < standard_error


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_fine_grid_ends_in_the_data_whatever_the_noise(eta):
    model = linear((1.5,), -0.5)
    # abar_T = 5e-9, so that N(0, 1) is the law of x_T; what is left is the error of 1000 steps
    schedule = DiffusionSchedule(alpha_bar=scaled_linear(beta_end=0.05), final_alpha_bar=1.0)
    mean, variance = model.moments(DDIM(num_steps=1000, eta=eta).on(schedule))
    assert abs(mean.item() - 1.5) < 0.02
    assert abs(variance.item() ** 0.5 / model.log_std.exp().item() - 1) < 0.02


def test_the_reward_of_the_world_is_the_one_it_knows_the_expectation_of():
    samples = Samples(torch.tensor([[[[3.0]], [[1.0]]]]), ("a cat",), ({},))
    assert nearness((1.0, 0.0))(samples).tolist() == [-5.0]
