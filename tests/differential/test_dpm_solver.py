"""DPM-Solver++ against diffusers' `DPMSolverMultistepScheduler`, on a network that is not linear.

It steps in signal and noise of a variance that is preserved and with its own reading of the prediction, we in
those of a flow and with ours; both in float32. The first estimates of x0 are divided by a signal of 0.07, so
states are good to some 1e-5.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from worlds import ENDS_NOISY, SHIFTED, Network

from burnish import schedules
from burnish.policy import Policy
from burnish.samplers.dpm import DPMSolver
from burnish.schedules import FLOW, Level
from burnish.solver import Solver

X = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
TEXTS = ["a cat", "a dog", "a bird", "two dogs"]


def diffusion(**settings) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **settings
    )


@torch.no_grad()
def theirs(scheduler, network, times) -> torch.Tensor:
    x, cond = X, network.encode(TEXTS)
    for time, fed in zip(scheduler.timesteps, times, strict=True):
        output = network.predict(x, fed.expand(len(x)), cond)
        x = scheduler.step(output, time, x).prev_sample
    return x


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20, 50, 333])
@pytest.mark.parametrize(
    ("spacing", "offset"), [("leading", 0), ("leading", 1), ("linspace", 0), ("trailing", 0)]
)
def test_levels_are_those_of_diffusers(spacing, offset, num_steps):
    scheduler = diffusion(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(num_steps)
    ours = replace(ENDS_NOISY, spacing=schedules.SPACINGS[spacing], offset=offset)
    level = ours.levels(num_steps)
    assert torch.equal(level.time, scheduler.timesteps)
    torch.testing.assert_close(
        (level.sigma / level.signal).float(), scheduler.sigmas[:-1], rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("meaning", list(schedules.PARAMETERISATIONS))
def test_a_diffusion_model_is_solved_as_by_diffusers(meaning, order, num_steps):
    """Below 15 steps the last ones are of a lower order, above only the last."""
    scheduler = diffusion(prediction_type=meaning, solver_order=order, timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    network = Network(
        replace(
            ENDS_NOISY,
            parameterisation=schedules.PARAMETERISATIONS[meaning],
            spacing=schedules.trailing,
        )
    )
    policy = Policy(network, DPMSolver(num_steps=num_steps, order=order))
    with torch.no_grad():
        found = policy.finish(X, network.encode(TEXTS))
    expected = theirs(scheduler, network, scheduler.timesteps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_steps", [1, 5, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_flow_is_solved_as_by_diffusers(order, num_steps):
    """On its levels, with the network at the levels' own times: its pipelines feed them rounded down."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        solver_order=order,
    )
    scheduler.set_timesteps(num_steps)
    sigma = scheduler.sigmas[:-1].double()
    levels = Level((1000 * sigma).float(), 1 - sigma, sigma)
    network = Network(SHIFTED)
    cond = network.encode(TEXTS)
    solver = Solver(first=0, levels=levels, order=order, parameterisation=FLOW)
    with torch.no_grad():
        found = solver.solve(lambda x, time: network.predict(x, time, cond), X)
    torch.testing.assert_close(found, theirs(scheduler, network, levels.time), rtol=1e-4, atol=1e-4)
    ours = SHIFTED.levels(num_steps).sigma
    assert ours[0] == 1
    # theirs go from 0.999 to 0 before the shift: 0.001 apart at most, which the shift makes 3 times as much
    torch.testing.assert_close(ours, sigma, rtol=0, atol=3e-3)
