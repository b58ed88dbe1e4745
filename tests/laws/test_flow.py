"""Laws of flow schedules and samplers.

In the closed-form world the network is the exact velocity and every chain is affine-Gaussian, so the law of
its end is known without a draw.
"""

from __future__ import annotations

import math

import pytest
import torch
from worlds import ENDS_NOISY, SHIFTED, STRAIGHT, linear

from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.samplers.flow import CPS, DanceSDE, FlowODE, FlowSDE
from burnish.samplers.window import Window
from burnish.schedules import EPSILON, FLOW, SAMPLE, FlowSchedule

MEAN, STD = 1.5, 0.5
NOISY = [FlowSDE, DanceSDE, CPS]
SDES = [FlowSDE, DanceSDE]
ALL = [FlowODE(num_steps=6), *(each(num_steps=6) for each in NOISY)]


def end(sampler, schedule=STRAIGHT) -> tuple[float, float]:
    """Mean and standard deviation of the samples, where the data is N(MEAN, STD^2)."""
    mean, variance = linear((MEAN,), math.log(STD)).moments(sampler.on(schedule))
    return mean.item(), variance.sqrt().item()


def test_the_shift_by_hand():
    """3 t / (1 + 2 t): 1/2 goes to 3/4, 1/4 to 1/2; the ends stay."""
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(SHIFTED.shifted(t), torch.tensor([0, 0.5, 0.75, 1]).double())
    assert torch.equal(STRAIGHT.shifted(t), t)


def test_a_grid_by_hand():
    grid = FlowSchedule(num_train=4, shift=1.0).grid(4)
    assert grid.sigma.tolist() == [1, 0.75, 0.5, 0.25]
    assert grid.next_sigma.tolist() == [0.75, 0.5, 0.25, 0]
    assert grid.time.tolist() == [4, 3, 2, 1]
    # the least trained time 1/4 is shifted to 1/2; of the grid 1, 1/2 the shift makes 1, 3/4
    assert FlowSchedule(num_train=4).grid(2).sigma.tolist() == [1, 0.75]


@pytest.mark.parametrize("num_steps", [1, 2, 10, 50])
@pytest.mark.parametrize("schedule", [STRAIGHT, SHIFTED], ids=["straight", "shifted"])
def test_a_grid_falls_from_pure_noise_to_clean_data(schedule, num_steps):
    grid = schedule.grid(num_steps)
    assert grid.sigma[0] == 1
    assert grid.next_sigma[-1] == 0
    assert (grid.next_sigma < grid.sigma).all()
    assert torch.equal(grid.sigma[1:], grid.next_sigma[:-1])
    assert grid.time.dtype == torch.float32


def test_levels_are_the_trained_times_from_data_to_noise():
    level = FlowSchedule(num_train=4, shift=3.0).level(
        torch.tensor([0.0, 0.25, 0.74, 0.99]).double()
    )
    expected = torch.tensor([0.5, 0.75, 0.9, 1.0]).double()  # 1/4, 1/2, 3/4, 1 shifted
    torch.testing.assert_close(level.sigma, expected)
    torch.testing.assert_close(level.signal, 1 - expected)
    assert level.time.tolist() == pytest.approx([2, 3, 3.6, 4])
    again = FlowSchedule(num_train=4, shift=3.0).at(level.time)
    torch.testing.assert_close(again.sigma, expected, rtol=1e-6, atol=0)  # times are float32


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("sampler", NOISY)
def test_every_sampler_keeps_the_mean(sampler, eta):
    """Where x is the marginal's mean, x0_hat is the data's and e_hat is 0."""
    for num_steps in (3, 50):
        mean, _ = end(sampler(num_steps=num_steps, eta=eta), SHIFTED)
        assert mean == pytest.approx(MEAN, abs=1e-9)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("schedule", [STRAIGHT, SHIFTED], ids=["straight", "shifted"])
@pytest.mark.parametrize("sampler", SDES)
def test_an_sde_preserves_the_marginal_better_than_euler_alone(sampler, schedule, eta):
    for num_steps in (10, 50, 200, 400):
        _, ode = end(FlowODE(num_steps=num_steps), schedule)
        _, sde = end(sampler(num_steps=num_steps, eta=eta), schedule)
        assert abs(sde - STD) < abs(ode - STD)
    # at 400 steps; half the correction or half too much ends at least 0.028 off, none at least 0.062
    assert abs(sde - STD) < 4e-3


@pytest.mark.parametrize("eta", [0.3, 0.7])
def test_the_error_of_the_marginal_is_of_first_order_in_the_steps(eta):
    """Twice the steps, half the error, but for the next order: for the ODE and for a constant g on the whole
    chain, and for Flow-GRPO's g where it is smooth, at t < 3/4."""

    def errors(sampler):
        return [end(sampler(num_steps))[1] - STD for num_steps in (100, 200)]

    def late(num_steps):
        first = num_steps // 4
        inner = FlowSDE(num_steps=num_steps, eta=eta)
        return Window(sampler=inner, size=num_steps - first, start=first)

    for sampler in (
        lambda n: FlowODE(num_steps=n),
        lambda n: DanceSDE(num_steps=n, eta=eta),
        late,
    ):
        coarse, fine = errors(sampler)
        assert coarse / fine == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("sampler", [FlowSDE, DanceSDE])
def test_the_steps_of_an_sde_are_those_of_its_papers_formula(sampler):
    """mean = x + [v + g^2 / (2 t) (x + (1 - t) v)] (s - t), std = g sqrt(t - s), in x and v themselves."""
    eta, kernel = 0.6, sampler(num_steps=8, eta=0.6).on(SHIFTED)
    grid = SHIFTED.grid(8)
    x, v = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0)).unbind()
    step = kernel.transition(torch.arange(8), x, v)
    for k in range(1 if sampler is FlowSDE else 0, 8):
        t, s = grid.sigma[k].item(), grid.next_sigma[k].item()
        g = eta * math.sqrt(t / (1 - t)) if sampler is FlowSDE else eta
        mean = x[k] + (v[k] + g**2 / (2 * t) * (x[k] + (1 - t) * v[k])) * (s - t)
        torch.testing.assert_close(step.mean[k], mean, rtol=1e-5, atol=1e-5)
        assert step.std[k].item() == pytest.approx(g * math.sqrt(t - s))


@pytest.mark.parametrize("num_steps", [1, 5])
def test_at_pure_noise_flow_grpo_takes_the_next_time_for_the_infinite_g(num_steps):
    """g^2 = eta^2 / (1 - s), so std = eta and noise = s - eta^2 / 2 whatever the first step's length is."""
    kernel, s = (
        FlowSDE(num_steps=num_steps, eta=0.7).on(SHIFTED),
        SHIFTED.grid(num_steps).next_sigma,
    )
    assert kernel.std[0].item() == pytest.approx(0.7)
    assert kernel.noise[0].item() == pytest.approx(s[0].item() - 0.245)
    assert kernel.clean[0].item() == pytest.approx(1 - s[0].item())
    for table in (kernel.clean, kernel.noise, kernel.std):
        assert table.isfinite().all()


def test_the_last_step_has_the_noise_of_its_formula():
    t = STRAIGHT.grid(6).sigma[-1].item()
    flow, dance = FlowSDE(num_steps=6, eta=0.7), DanceSDE(num_steps=6, eta=0.7)
    assert flow.on(STRAIGHT).std[-1].item() == pytest.approx(0.7 * t / math.sqrt(1 - t))
    assert dance.on(STRAIGHT).std[-1].item() == pytest.approx(0.7 * math.sqrt(t))
    for sampler, scored in (
        (flow, 6),
        (dance, 6),
        (CPS(num_steps=6), 5),
        (FlowODE(num_steps=6), 0),
    ):
        assert sampler.on(STRAIGHT).stochastic == tuple(range(scored))
        assert sampler.deterministic == (scored == 0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_cps_preserves_the_coefficients_of_signal_and_of_total_noise(eta):
    kernel, s = CPS(num_steps=9, eta=eta).on(SHIFTED), SHIFTED.grid(9).next_sigma
    torch.testing.assert_close(kernel.clean, 1 - s)
    torch.testing.assert_close(kernel.noise.square() + kernel.std.square(), s.square())
    share = torch.full((8,), math.sin(eta * math.pi / 2)).double()
    torch.testing.assert_close(kernel.std[:-1] / s[:-1], share)


@pytest.mark.parametrize(("eta", "std"), [(0.3, 0.483), (0.7, 0.423), (1.0, 0.351)])
def test_cps_does_not_preserve_the_marginal(eta, std):
    """The numbers were measured apart from this code, by drawing, at 400 equal steps; so they are good to
    1e-3. What CPS takes off the ODE's spread grows with the number of steps."""
    assert end(CPS(num_steps=400, eta=eta))[1] == pytest.approx(std, abs=1e-3)
    added = [
        end(FlowODE(num_steps=n))[1] - end(CPS(num_steps=n, eta=eta))[1] for n in (10, 50, 400)
    ]
    assert added == sorted(added)


@pytest.mark.parametrize("sampler", NOISY)
def test_without_noise_every_sampler_is_the_ode(sampler):
    """The mean goes to it like eta^2, and the std to 0 like eta."""
    ode = FlowODE(num_steps=7).on(SHIFTED)
    still = sampler(num_steps=7, eta=0.0)
    assert still.deterministic
    assert torch.equal(still.on(SHIFTED).noise, ode.noise)
    assert still.on(SHIFTED).stochastic == ()
    large, small = (sampler(num_steps=7, eta=eta).on(SHIFTED) for eta in (0.02, 0.01))
    assert torch.equal(large.clean, ode.clean)
    # the next order is eta^2 of it: 4e-4
    torch.testing.assert_close(
        large.noise - ode.noise, 4 * (small.noise - ode.noise), rtol=1e-3, atol=1e-12
    )
    torch.testing.assert_close(large.std, 2 * small.std, rtol=1e-3, atol=0)


@pytest.mark.parametrize("sampler", [each(num_steps=6) for each in NOISY], ids=str)
def test_the_density_of_every_step_integrates_to_1(sampler):
    kernel = sampler.on(STRAIGHT)
    away = torch.linspace(-8, 8, 1601)  # standard deviations; float32, so 1e-5 a density
    for k in kernel.stochastic:
        at = (torch.full((1601,), k), torch.full((1601, 1), 0.3), torch.full((1601, 1), -1.2))
        step = kernel.transition(*at)
        density = step.log_prob(step.mean + away[:, None] * step.std[:, None]).exp()
        assert (density.sum() * 0.01 * step.std[0]).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("sampler", ALL, ids=str)
def test_a_flow_sampler_refuses_a_diffusion_schedule(sampler):
    with pytest.raises(ValueError, match=r"walks a FlowSchedule, .* DiffusionSchedule\. Take DDIM"):
        sampler.on(ENDS_NOISY)


@pytest.mark.parametrize("sampler", [DDIM(), DDPM(), Window()], ids=str)
def test_a_diffusion_sampler_refuses_a_flow_schedule(sampler):
    with pytest.raises(
        ValueError, match=r"walks a DiffusionSchedule, .* FlowSchedule\. Take .*FlowODE"
    ):
        sampler.on(STRAIGHT)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (FlowODE, {"num_steps": 0}),
        *((each, {"num_steps": 0}) for each in NOISY),
        *((each, {"eta": -0.1}) for each in NOISY),
        (CPS, {"eta": 1.1}),
        (FlowSchedule, {"num_train": 0}),
        (FlowSchedule, {"shift": 0.0}),
        (FlowSchedule, {"parameterisation": EPSILON}),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(make, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        make(**settings)
    with pytest.raises(ValueError, match="num_steps"):
        STRAIGHT.grid(0)


@pytest.mark.parametrize("meaning", [FLOW, SAMPLE])
def test_a_flow_model_may_predict_velocity_or_data(meaning):
    """The same exact network in two parameterisations takes the same steps."""
    kernel = FlowSDE(num_steps=5).on(FlowSchedule(parameterisation=meaning))
    x0, e = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind()
    signal, sigma = (table.float()[:, None] for table in (kernel.signal, kernel.sigma))
    output = meaning.target(x0, e, signal, sigma)
    found = kernel.transition(torch.arange(5), signal * x0 + sigma * e, output).mean
    expected = kernel.clean.float()[:, None] * x0 + kernel.noise.float()[:, None] * e
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
