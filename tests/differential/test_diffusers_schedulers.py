"""The DDIM and DDPM kernels and time grids against diffusers' schedulers.

The reference's tables are turned to float64 first, so that what is compared is our float32 arithmetic
against exact arithmetic. x0_hat is up to 15 times the state, hence 1e-5 where float32 has 1e-7.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from worlds import ENDS_CLEAN, ENDS_NOISY

from burnish.kernels import Kernel
from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.schedules import PARAMETERISATIONS, SPACINGS, DiffusionSchedule, scaled_linear

TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def ddim_scheduler(num_steps: int, **config) -> DDIMScheduler:
    scheduler = DDIMScheduler(**TABLE, clip_sample=False, **config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(num_steps)
    return scheduler


def ddpm_scheduler(num_steps: int, **config) -> DDPMScheduler:
    scheduler = DDPMScheduler(**TABLE, clip_sample=False, **config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.alphas = scheduler.alphas.double()
    scheduler.set_timesteps(num_steps)
    return scheduler


def schedule_of(scheduler, final_alpha_bar: float) -> DiffusionSchedule:
    return DiffusionSchedule(
        alpha_bar=scheduler.alphas_cumprod.double(),
        final_alpha_bar=final_alpha_bar,
        parameterisation=PARAMETERISATIONS[scheduler.config.prediction_type],
        spacing=SPACINGS[scheduler.config.timestep_spacing],
        offset=scheduler.config.steps_offset,
    )


def inputs(num_steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """State, network output and noise: one row a step."""
    generator = torch.Generator().manual_seed(0)
    x, output, noise = torch.randn(3, num_steps, 2, 3, generator=generator).unbind()
    return x, output, noise


def assert_step_by_step(kernel: Kernel, scheduler, step) -> None:
    """`step(i, time, output, x, noise)` of the reference equals the kernel's sample at every step."""
    assert torch.equal(kernel.times, scheduler.timesteps)
    x, output, noise = inputs(kernel.num_steps)
    ours = kernel.transition(torch.arange(kernel.num_steps), x, output)
    for z in (torch.zeros_like(noise), noise):
        rows = zip(scheduler.timesteps, output.double(), x.double(), z.double(), strict=True)
        theirs = torch.stack([step(*row) for row in rows])
        torch.testing.assert_close(ours.sample(z).double(), theirs, **CLOSE)


@pytest.mark.parametrize(
    ("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]
)
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("num_steps", [5, 20, 50])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_takes_the_steps_of_diffusers(
    eta, num_steps, prediction, set_alpha_to_one, spacing, offset
):
    scheduler = ddim_scheduler(
        num_steps,
        prediction_type=prediction,
        set_alpha_to_one=set_alpha_to_one,
        timestep_spacing=spacing,
        steps_offset=offset,
    )
    schedule = schedule_of(scheduler, float(scheduler.final_alpha_cumprod))
    kernel = DDIM(num_steps=num_steps, eta=eta).on(schedule)

    def step(time, output, x, noise):
        return scheduler.step(output, int(time), x, eta=eta, variance_noise=noise).prev_sample

    assert_step_by_step(kernel, scheduler, step)
    ratio = 1000 // num_steps
    variances = [
        float(scheduler._get_variance(int(t), int(t) - ratio)) for t in scheduler.timesteps
    ]
    std = eta * torch.tensor(variances, dtype=torch.float64).sqrt()
    torch.testing.assert_close(kernel.std, std, rtol=1e-9, atol=1e-12)
    # where the reference's variance vanishes there is no density, and only there
    assert kernel.stochastic == tuple(k for k, value in enumerate(std.tolist()) if value > 1e-12)


@pytest.mark.parametrize(
    ("variance", "variance_type"), [("posterior", "fixed_small"), ("beta", "fixed_large")]
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("num_steps", [5, 20, 50])
def test_ddpm_takes_the_steps_of_diffusers(num_steps, prediction, variance, variance_type):
    scheduler = ddpm_scheduler(
        num_steps, prediction_type=prediction, variance_type=variance_type, steps_offset=1
    )  # at time 0 diffusers adds no noise whatever the variance, so no step may be there
    kernel = DDPM(num_steps=num_steps, variance=variance).on(schedule_of(scheduler, 1.0))

    def step(time, output, x, noise):
        generator = torch.Generator().manual_seed(int(time))
        drawn = torch.randn(x.shape, generator=generator.clone_state(), dtype=x.dtype)
        after = scheduler.step(output, int(time), x, generator=generator).prev_sample
        return after + scheduler._get_variance(time).sqrt() * (noise - drawn)

    assert_step_by_step(kernel, scheduler, step)


def test_ddpm_with_the_posterior_variance_is_ddim_with_all_the_noise():
    for schedule in (ENDS_CLEAN, ENDS_NOISY):
        ddim, ddpm = DDIM(num_steps=20).on(schedule), DDPM(num_steps=20).on(schedule)
        for name in ("times", "signal", "sigma", "clean", "noise", "std"):
            torch.testing.assert_close(getattr(ddim, name), getattr(ddpm, name), rtol=0, atol=1e-12)
        assert ddim.stochastic == ddpm.stochastic


def test_scaled_linear_is_the_table_of_stable_diffusion():
    theirs = DDIMScheduler(**TABLE).alphas_cumprod.double()
    # a float32 product of 1000 factors
    torch.testing.assert_close(scaled_linear(), theirs, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]
)
def test_time_grids_are_those_of_diffusers_for_every_number_of_steps(spacing, offset):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    exact = [n for n in range(2, 1000) if spacing == "leading" or 1000 % n == 0]
    for num_steps in range(2, 1000):
        scheduler.set_timesteps(num_steps)
        if len(scheduler.timesteps) != num_steps:
            continue  # its trailing grid is then one too long, down to time -1
        ours = SPACINGS[spacing](1000, num_steps, offset)
        # a time that is halfway between two integers may be rounded either way
        allowed = 0 if num_steps in exact else 1
        assert (ours - scheduler.timesteps).abs().max() <= allowed, num_steps
