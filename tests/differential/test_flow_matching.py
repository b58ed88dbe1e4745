"""Flow schedules and Euler's steps against diffusers' `FlowMatchEulerDiscreteScheduler`.

The reference's tables are float32, hence relative tolerances of 1e-6 on tables and 1e-5 on states.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from burnish.samplers.flow import FlowODE
from burnish.schedules import FlowSchedule

CONFIGS = [(1000, 1.0), (1000, 3.0), (1000, 0.5), (1000, 6.0), (200, 3.0)]


def both(num_train: int, shift: float) -> tuple[FlowMatchEulerDiscreteScheduler, FlowSchedule]:
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_train, shift=shift)
    return theirs, FlowSchedule(num_train=num_train, shift=shift)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 10, 28, 50, 333])
@pytest.mark.parametrize(("num_train", "shift"), CONFIGS)
def test_grids_are_those_of_diffusers(num_train, shift, num_steps):
    theirs, ours = both(num_train, shift)
    theirs.set_timesteps(num_steps)
    grid = ours.grid(num_steps)
    assert len(theirs.timesteps) == len(grid.time) == num_steps
    torch.testing.assert_close(grid.time, theirs.timesteps, rtol=1e-6, atol=0)
    torch.testing.assert_close(grid.sigma.float(), theirs.sigmas[:-1], rtol=1e-6, atol=0)
    torch.testing.assert_close(grid.next_sigma.float(), theirs.sigmas[1:], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("num_train", "shift"), CONFIGS)
def test_levels_are_the_table_that_a_model_is_trained_on(num_train, shift):
    theirs, ours = both(num_train, shift)
    quantile = (torch.arange(num_train, dtype=torch.float64) + 0.5) / num_train
    level = ours.level(quantile)
    torch.testing.assert_close(level.sigma.float(), theirs.sigmas.flip(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(level.time, theirs.timesteps.flip(0), rtol=1e-6, atol=0)


def test_noised_samples_are_those_of_diffusers():
    theirs, ours = both(1000, 3.0)
    x0, e = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).unbind()
    times = theirs.timesteps[[0, 10, 500, 900, 999]]
    level = ours.at(times)
    x = level.signal.float()[:, None] * x0 + level.sigma.float()[:, None] * e
    torch.testing.assert_close(x, theirs.scale_noise(x0, times, e), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 4, 28])
@pytest.mark.parametrize(("num_train", "shift"), CONFIGS)
def test_the_ode_takes_the_steps_of_diffusers(num_train, shift, num_steps):
    theirs, ours = both(num_train, shift)
    theirs.set_timesteps(num_steps)
    x, v = torch.randn(2, num_steps, 2, 3, generator=torch.Generator().manual_seed(0)).unbind()
    found = FlowODE(num_steps=num_steps).on(ours).transition(torch.arange(num_steps), x, v)
    expected = [
        theirs.step(output, time, state).prev_sample
        for time, output, state in zip(theirs.timesteps, v, x, strict=True)
    ]
    torch.testing.assert_close(found.mean, torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.std, torch.zeros(num_steps))
