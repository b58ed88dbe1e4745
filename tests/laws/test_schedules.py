"""Laws of schedules and kernels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds import ALPHA_BAR, ENDS_CLEAN, ENDS_NOISY

from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.schedules import (
    EPSILON,
    FLOW,
    SAMPLE,
    SPACINGS,
    VELOCITY,
    DiffusionSchedule,
    leading,
    linspace,
    scaled_linear,
    trailing,
)


@given(st.floats(0.01, 0.99), st.integers(0, 1000))
def test_every_prediction_type_tells_the_clean_sample_from_the_noise(alpha_bar, seed):
    generator = torch.Generator().manual_seed(seed)
    x0, e = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).unbind()
    signal, sigma = (torch.tensor(value).double().sqrt() for value in (alpha_bar, 1 - alpha_bar))
    x = signal * x0 + sigma * e
    for meaning, output in (
        (EPSILON, e),
        (VELOCITY, signal * e - sigma * x0),
        (SAMPLE, x0),
    ):
        found = meaning.estimate(x, output, signal, sigma)
        torch.testing.assert_close(found, (x0, e), rtol=1e-6, atol=1e-6)
        assert torch.equal(meaning.target(x0, e, signal, sigma), output)


@given(st.floats(0.01, 0.99), st.integers(0, 1000))
def test_a_flow_velocity_tells_the_clean_sample_from_the_noise(sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    x0, e = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).unbind()
    t = torch.tensor(sigma).double()
    x = (1 - t) * x0 + t * e
    assert torch.equal(FLOW.target(x0, e, 1 - t, t), e - x0)
    torch.testing.assert_close(FLOW.estimate(x, e - x0, 1 - t, t), (x0, e))


def test_levels_are_the_models_own_times():
    level = ENDS_NOISY.level(torch.tensor([0.0, 0.4999, 0.9999], dtype=torch.float64))
    assert level.time.tolist() == [0, 499, 999]
    assert torch.equal(level.signal, ENDS_NOISY.alpha_bar[[0, 499, 999]].sqrt())
    torch.testing.assert_close(level.signal.square() + level.sigma.square(), torch.ones(3).double())


def test_grids_by_hand():
    assert leading(10, 5, 0).tolist() == [8, 6, 4, 2, 0]
    assert leading(10, 5, 1).tolist() == [9, 7, 5, 3, 1]
    assert leading(10, 3, 0).tolist() == [6, 3, 0]
    assert trailing(10, 5, 0).tolist() == [9, 7, 5, 3, 1]
    assert linspace(10, 4, 0).tolist() == [9, 6, 3, 0]


def test_alpha_bar_before_and_after_each_step_by_hand():
    table = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], dtype=torch.float64)
    schedule = DiffusionSchedule(alpha_bar=table, final_alpha_bar=0.95, offset=1)
    grid = schedule.grid(3)
    assert grid.time.tolist() == [5, 3, 1]
    assert grid.alpha_bar.tolist() == [0.4, 0.6, 0.8]
    assert grid.next_alpha_bar.tolist() == [0.6, 0.8, 0.95]


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
@pytest.mark.parametrize("num_steps", [2, 5, 20, 50, 200, 500])
def test_a_grid_falls_and_each_step_takes_noise_away(spacing, num_steps):
    schedule = DiffusionSchedule(
        alpha_bar=ALPHA_BAR, final_alpha_bar=1.0, spacing=SPACINGS[spacing]
    )
    grid = schedule.grid(num_steps)
    assert (grid.time.diff() < 0).all()
    assert grid.time.max() < 1000
    assert grid.time.min() >= 0
    assert (grid.next_alpha_bar > grid.alpha_bar).all()
    assert grid.next_alpha_bar[-1] == 1


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_a_grid_the_model_was_not_trained_for_is_refused(num_steps):
    with pytest.raises(ValueError, match=rf"num_steps = {num_steps}, expected 1 to 1000"):
        ENDS_CLEAN.grid(num_steps)


def test_an_offset_past_the_last_time_is_refused():
    with pytest.raises(ValueError, match="steps offset of 1 asks for time 1000"):
        ENDS_NOISY.grid(1000)


def test_alpha_bar_of_stable_diffusion_is_a_product():
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert scaled_linear()[0] == pytest.approx(1 - 0.00085)
    assert scaled_linear()[-1].item() == pytest.approx(float(torch.log1p(-beta).sum().exp()))


@pytest.mark.parametrize("schedule", [ENDS_NOISY, ENDS_CLEAN])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_with_the_true_noise_keeps_the_marginal(eta, schedule):
    """x_s = clean x0 + noise e + std z has signal^2 = abar_s and variance 1 - abar_s."""
    kernel = DDIM(num_steps=20, eta=eta).on(schedule)
    grid = schedule.grid(20)
    torch.testing.assert_close(kernel.clean.square(), grid.next_alpha_bar)
    spread = kernel.noise.square() + kernel.std.square()
    torch.testing.assert_close(spread, 1 - grid.next_alpha_bar)


def test_the_noise_of_ddim_is_proportional_to_eta():
    full = DDIM(num_steps=20, eta=1.0).on(ENDS_NOISY)
    for eta in (0.1, 0.5):
        torch.testing.assert_close(DDIM(num_steps=20, eta=eta).on(ENDS_NOISY).std, eta * full.std)


@pytest.mark.parametrize("sampler", [DDIM(num_steps=20), DDPM(num_steps=20)])
def test_full_noise_is_the_posterior_of_the_forward_process(sampler):
    """Bayes: x_s ~ N(sqrt(abar_s) x0, 1 - abar_s) seen through x_t ~ N(sqrt(a) x_s, 1 - a)."""
    kernel, grid = sampler.on(ENDS_NOISY), ENDS_NOISY.grid(20)
    s, a = grid.next_alpha_bar, grid.alpha_bar / grid.next_alpha_bar
    precision = 1 / (1 - s) + a / (1 - a)
    torch.testing.assert_close(kernel.std, precision.rsqrt())
    x0, x = torch.tensor(0.7).double(), torch.tensor(-1.3).double()
    mean = (s.sqrt() * x0 / (1 - s) + a.sqrt() * x / (1 - a)) / precision
    e = (x - kernel.signal * x0) / kernel.sigma
    torch.testing.assert_close(kernel.clean * x0 + kernel.noise * e, mean)


def test_ddpm_with_the_forward_variance_always_has_a_density():
    kernel, grid = DDPM(num_steps=20, variance="beta").on(ENDS_CLEAN), ENDS_CLEAN.grid(20)
    torch.testing.assert_close(kernel.std.square(), 1 - grid.alpha_bar / grid.next_alpha_bar)
    assert kernel.stochastic == tuple(range(20))


def test_a_step_without_variance_has_no_density():
    assert DDIM(num_steps=5).on(ENDS_NOISY).stochastic == (0, 1, 2, 3, 4)
    assert DDIM(num_steps=5).on(ENDS_CLEAN).stochastic == (0, 1, 2, 3)
    assert DDPM(num_steps=5).on(ENDS_CLEAN).stochastic == (0, 1, 2, 3)
    assert DDIM(num_steps=5, eta=0.0).on(ENDS_NOISY).stochastic == ()
    # set_alpha_to_one = False without an offset: the last step goes from abar_0 to abar_0
    stays = DiffusionSchedule(alpha_bar=ALPHA_BAR, final_alpha_bar=float(ALPHA_BAR[0]))
    assert DDIM(num_steps=5).on(stays).stochastic == (0, 1, 2, 3)
    assert DDIM(num_steps=5).on(stays).std[-1] == 0


def test_rows_may_each_be_at_a_step_of_their_own():
    kernel = DDIM(num_steps=5).on(ENDS_NOISY)
    x, output = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(0)).unbind()
    step = torch.tensor([3, 0, 4, 0])
    together = kernel.transition(step, x, output)
    assert torch.equal(kernel.time(step), kernel.times[step])
    for i in range(4):
        alone = kernel.transition(step[i : i + 1], x[i : i + 1], output[i : i + 1])
        assert torch.equal(alone.mean[0], together.mean[i])
        assert alone.std[0] == together.std[i]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_transition_is_float32_whatever_the_network_runs_in(dtype):
    kernel = DDIM(num_steps=5).on(ENDS_NOISY)
    x, output = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).to(dtype).unbind()
    low = kernel.transition(torch.arange(4), x, output)
    full = kernel.transition(torch.arange(4), x.float(), output.float())
    assert low.mean.dtype == low.std.dtype == torch.float32
    assert torch.equal(low.mean, full.mean)


def test_gradients_flow_through_the_prediction():
    kernel = DDIM(num_steps=5).on(ENDS_NOISY)
    output = torch.zeros(2, 3, requires_grad=True)
    mean = kernel.transition(torch.tensor([0, 4]), torch.ones(2, 3), output).mean
    (gradient,) = torch.autograd.grad(mean.sum(), output)
    slope = kernel.noise - kernel.clean * kernel.sigma / kernel.signal
    torch.testing.assert_close(gradient[:, 0].double(), slope[[0, 4]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{"num_steps": 0}, {"eta": -0.1}, {"eta": 1.1}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        DDIM(**settings)
    if "num_steps" in settings:
        with pytest.raises(ValueError, match="num_steps"):
            DDPM(**settings)
