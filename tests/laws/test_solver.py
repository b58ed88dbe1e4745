"""DPM-Solver++ for a whole chain and for the end of one.

In the closed-form world the ODE is solved exactly: x0 = mean + std / sqrt(total) (x - signal mean), with
total = signal^2 std^2 + sigma^2 the variance of x.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from worlds import (
    ENDS_CLEAN,
    ENDS_NOISY,
    PROMPTS,
    SHIFTED,
    STRAIGHT,
    Network,
    affine_steps,
    final_moments,
    linear,
    nearness,
    prompts,
)

from burnish import schedules
from burnish.algorithms.ddpo import DDPOIS, WholeBatch
from burnish.algorithms.draft import AlignProp, DRaFT, ReFL
from burnish.algorithms.rwr import RWR
from burnish.experience import Task
from burnish.policy import Policy
from burnish.randomness import Randomness
from burnish.rollout import rollout
from burnish.samplers.ddim import DDIM
from burnish.samplers.dpm import DPMSolver
from burnish.samplers.flow import CPS, DanceSDE, FlowODE, FlowSDE
from burnish.samplers.window import Window
from burnish.schedules import Level
from burnish.solver import Solver
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training

MEAN, STD = 1.5, 0.5
SEED = Randomness(0)
VELOCITY_CLEAN = replace(ENDS_CLEAN, parameterisation=schedules.VELOCITY)
FAMILIES = [
    (DDIM(num_steps=8), VELOCITY_CLEAN),
    (FlowSDE(num_steps=8), SHIFTED),
    (DanceSDE(num_steps=8), SHIFTED),
    (CPS(num_steps=8), STRAIGHT),
]
ASKED = prompts(*("a cat", "a dog", "a bird", "two dogs") * 3)


def affine(solver: Solver, schedule) -> tuple[torch.Tensor, torch.Tensor]:
    """(gain, bias) of the solver, read off at x = 0 and x = 1."""
    model = linear((MEAN,), math.log(STD), schedule)
    cond = model.encode(["", ""])
    with torch.no_grad():
        ends = solver.solve(
            lambda x, time: model.predict(x, time, cond), torch.tensor([0.0, 1]).reshape(2, 1, 1, 1)
        )
    at_zero, at_one = ends.double().flatten()
    return at_one - at_zero, at_zero


def exact(signal: float, sigma: float) -> tuple[float, float]:
    """(gain, bias) of the ODE from a level to clean data."""
    gain = STD / math.sqrt((signal * STD) ** 2 + sigma**2)
    return gain, MEAN * (1 - gain * signal)


def error(solver: Solver, schedule) -> float:
    """Of the gain: by how much a spread of 1 ends too wide."""
    level = solver.levels
    return affine(solver, schedule)[0].item() - exact(level.signal[0], level.sigma[0])[0]


def tail(sampler, schedule) -> Solver:
    found = sampler.on(schedule).tail
    assert found is not None
    return found


@pytest.mark.parametrize(("order", "ratio"), [(1, 2), (2, 4)])
@pytest.mark.parametrize("schedule", [STRAIGHT, SHIFTED], ids=["straight", "shifted"])
def test_the_error_has_the_solvers_order_in_even_steps_of_the_log_signal_to_noise(
    schedule, order, ratio
):
    """Twice the steps, a half or a quarter of the error, but for the next order. Even steps down to a sigma
    of 1e-4, whose square is what the last step, always of the first order, may add."""

    def at(num_steps):
        sigma = torch.linspace(3, -9, num_steps + 1, dtype=torch.float64).sigmoid()
        levels = Level((1000 * sigma).float(), 1 - sigma, sigma)
        return Solver(first=0, levels=levels, order=order, parameterisation=schedules.FLOW)

    assert error(at(40), schedule) / error(at(80), schedule) == pytest.approx(ratio, rel=0.05)


def test_the_error_is_of_about_the_second_order_on_the_schedules_own_levels():
    """But for a logarithm: 4 log(100) / log(200) = 3.5. The steps near data are not small in log signal to
    noise, however many there are. Order 1, which is Euler's method, has 2."""
    errors = {
        order: [
            error(tail(DPMSolver(num_steps=n, order=order), STRAIGHT), STRAIGHT) for n in (100, 200)
        ]
        for order in (1, 2)
    }
    assert errors[1][0] / errors[1][1] == pytest.approx(2, rel=0.05)
    assert errors[2][0] / errors[2][1] == pytest.approx(3.5, rel=0.1)


@pytest.mark.parametrize("num_steps", [4, 6, 10, 20, 50, 100])
@pytest.mark.parametrize("schedule", [STRAIGHT, SHIFTED], ids=["straight", "shifted"])
def test_it_is_more_accurate_than_euler_at_equal_steps(schedule, num_steps):
    _, variance = linear((MEAN,), math.log(STD), schedule).moments(
        FlowODE(num_steps=num_steps).on(schedule)
    )
    euler = abs(variance.sqrt().item() - STD)
    assert abs(error(tail(DPMSolver(num_steps=num_steps), schedule), schedule)) < euler


@pytest.mark.parametrize("num_steps", [5, 10, 20])
def test_it_is_more_accurate_than_ddim_at_equal_steps(num_steps):
    one, two = (
        error(tail(DPMSolver(num_steps=num_steps, order=order), ENDS_CLEAN), ENDS_CLEAN)
        for order in (1, 2)
    )
    assert abs(two) < abs(one)


@pytest.mark.parametrize(("inner", "schedule"), FAMILIES, ids=lambda value: type(value).__name__)
def test_a_tail_of_order_1_at_every_step_is_the_sampler_without_noise(inner, schedule):
    """On a network that is not linear: the same states and densities, and the same end but for rounding, in
    float32, of some units in the sixth place."""
    plain = Window(sampler=inner, size=2, start=1)
    policy = Policy(Network(schedule), plain)
    solved = Policy(policy.denoiser, replace(plain, tail=DPMSolver(num_steps=5, order=1)))
    expected, found = (rollout(each, ASKED, SEED, 12) for each in (policy, solved))
    assert torch.equal(found.states[:-1], expected.states[:-1])
    assert torch.equal(found.log_prob, expected.log_prob)
    assert (found.kept, found.steps) == (expected.kept, expected.steps) == ((1, 2, 3, 8), (1, 2))
    torch.testing.assert_close(found.x0, expected.x0, rtol=1e-4, atol=1e-5)
    assert (found.x0 - expected.states[-2]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("inner", "schedule"),
    [(DDIM(num_steps=120), ENDS_CLEAN), (FlowSDE(num_steps=120), STRAIGHT)],
    ids=["diffusion", "flow"],
)
def test_a_tail_ends_in_the_marginal_of_the_ode_from_where_the_window_ends(inner, schedule):
    """The chain is affine-Gaussian to the window's end, step 60, and the ODE is affine from there on.

    The tolerance is the solver's own error, by what half the calls change: for an order of at least 1 it is
    at most that. A start ten steps off would be further off than that.
    """
    model = linear((MEAN,), math.log(STD), schedule)
    window = Window(sampler=inner, size=5, start=55)
    few, many = (replace(window, tail=DPMSolver(num_steps=n)).on(schedule) for n in (30, 60))
    with torch.no_grad():
        mean, variance = final_moments(affine_steps(Policy(model, window))[:60])

    def end(gain, bias):
        return torch.stack([gain * mean[0] + bias, gain * variance[0].sqrt()])

    expected, beside = (end(*exact(few.signal[k], few.sigma[k])) for k in (60, 70))
    halved, found = (end(*affine(kernel.tail, schedule)) for kernel in (few, many))
    tolerance = (found - halved).abs() + 1e-5  # of float32
    assert ((found - expected).abs() < tolerance).all()
    assert (beside - expected)[1].abs() > tolerance[1]


def test_samples_have_the_moments_of_the_windows_steps_and_the_tail():
    """By drawing, within 5 standard errors of what the affine maps make of the first noise."""
    count = 4000
    window = Window(sampler=FlowSDE(num_steps=12), size=6, tail=DPMSolver(num_steps=4))
    policy = Policy(linear((MEAN,), math.log(STD), STRAIGHT), window)
    with torch.no_grad():
        mean, variance = final_moments(affine_steps(policy)[:6])
    gain, bias = affine(policy.kernel.tail, STRAIGHT)
    std = (gain * variance[0].sqrt()).item()
    x0 = rollout(policy, prompts("") * count, SEED, count).x0.flatten().double()
    assert x0.mean().item() == pytest.approx(
        (gain * mean[0] + bias).item(), abs=5 * std / count**0.5
    )
    assert x0.std().item() == pytest.approx(std, abs=5 * std / (2 * count) ** 0.5)


def test_levels_of_a_tail_are_evenly_chosen_from_where_the_window_ends():
    kernel = DDIM(num_steps=12).on(ENDS_NOISY)
    found = DPMSolver(num_steps=3).after(kernel, 4)
    assert (found.walked, kernel.walked) == (4, 12)
    levels = found.tail.levels
    assert torch.equal(levels.time, kernel.times[[4, 6, 9]])
    assert torch.equal(levels.signal, kernel.signal[[4, 6, 9]])
    assert torch.equal(levels.sigma, kernel.sigma[[4, 6, 9]])


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [
        (Window(sampler=FlowSDE(num_steps=12), size=2, start=1), 12),
        (Window(sampler=FlowSDE(num_steps=12), size=2, start=1, tail=DPMSolver(num_steps=4)), 7),
        (DPMSolver(num_steps=5), 5),
        (DPMSolver(num_steps=1, order=3), 1),
    ],
    ids=["no tail", "tail", "alone", "one"],
)
def test_a_tail_saves_network_calls(sampler, calls):
    network, seen = Network(SHIFTED), []
    network.layers.register_forward_hook(lambda *call: seen.append(len(call[1][0])))
    rollout(Policy(network, sampler), ASKED, SEED, 12)
    assert seen == [12] * calls


def test_a_chain_of_a_solver_alone_has_an_end_and_no_steps():
    policy = Policy(Network(SHIFTED), DPMSolver(num_steps=5), torch.bfloat16)
    drawn = rollout(policy, ASKED, SEED, 12)
    assert (drawn.kept, drawn.steps, drawn.num_steps) == ((0,), (), 0)
    assert drawn.log_prob.shape == (0, 12)
    assert drawn.states.shape == (1, 12, 3, 2, 2)
    assert drawn.x0.dtype == torch.bfloat16
    assert policy.sampler.deterministic


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_the_network_is_fed_states_in_the_storage_dtype_and_the_levels_own_times(storage):
    network, seen = Network(SHIFTED), []
    predict = network.predict
    network.predict = lambda x, time, cond: seen.append((x, time)) or predict(x, time, cond)
    policy = Policy(network, DPMSolver(num_steps=3), storage)
    rollout(policy, ASKED, SEED, 12)
    assert [x.dtype for x, _ in seen] == [storage] * 3
    assert torch.equal(seen[0][0], SEED.normal(range(12), (1, 3, 2, 2))[:, 0].to(storage))
    times = torch.stack([time for _, time in seen])
    assert torch.equal(times, SHIFTED.levels(3).time[:, None].expand(3, 12))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "sampler",
    [DPMSolver(num_steps=6), Window(sampler=DDIM(), size=2, tail=DPMSolver(num_steps=6, order=3))],
    ids=["alone", "tail"],
)
def test_batches_one_after_another_and_side_by_side_change_nothing_but_rounding(sampler, threads):
    policy = Policy(Network(), sampler)
    whole = rollout(policy, ASKED, SEED, 12)
    torch.set_num_threads(threads)
    try:
        parts = rollout(policy, ASKED, SEED, 2)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(parts.states, whole.states, rtol=1e-4, atol=1e-5)


def test_a_moving_window_takes_as_many_calls_as_there_are_steps_left():
    window = Window(
        sampler=DDIM(num_steps=8), size=2, move="sliding", every=1, tail=DPMSolver(num_steps=3)
    )
    tails = [window.at(i, SEED).tail for i in range(7)]
    assert [found and found.num_steps for found in tails] == [3, 3, 3, 3, 2, 1, None]
    last = Policy(Network(), window).at(6, SEED)
    assert last.kernel.tail is None
    assert rollout(last, ASKED, SEED, 12).kept == (6, 7, 8)


def test_the_loop_trains_the_windows_steps_and_samples_through_the_tail():
    window = Window(
        sampler=DDIM(num_steps=6), size=2, move="sliding", every=1, tail=DPMSolver(num_steps=2)
    )
    reports = train(
        Policy(linear(), window),
        DDPOIS(clip=0.1, baseline=WholeBatch()),
        PROMPTS,
        nearness((2.0, 2.0)),
        training=Training(iterations=5, samples=16, updates=2),
        optimizer=AdamW(learning_rate=0.05),
    )
    done = list(reports)
    assert [sorted(each.by_step["loss"]) for each in done] == [[k, k + 1] for k in range(5)]
    assert all(each.metrics["first_log_ratio"] < 1e-6 for each in done)


def test_an_algorithm_that_looks_at_samples_only_may_draw_them_by_the_solver():
    (done,) = train(
        Policy(Network(), DPMSolver(num_steps=3)),
        RWR(over="collection"),
        PROMPTS,
        lambda samples: samples.media.mean(dim=(1, 2, 3)),
        training=Training(iterations=1, samples=8, updates=1),
    )
    assert len(done.samples) == 8


@pytest.mark.parametrize("algorithm", [DRaFT(), AlignProp(), ReFL(train_steps=1)], ids=str)
@pytest.mark.parametrize(
    "sampler",
    [DPMSolver(num_steps=3), Window(sampler=DDIM(), size=2, tail=DPMSolver(num_steps=3))],
    ids=["alone", "tail"],
)
def test_a_reward_is_not_differentiated_through_a_solver(algorithm, sampler):
    task = Task(Policy(Network(), sampler), PROMPTS, nearness((0.0,) * 12), samples=2, batch=2)
    with pytest.raises(ValueError, match="a sampler without a tail"):
        algorithm.collect(task, memory={}, randomness=SEED)


def test_states_are_kept_up_to_the_tail_and_not_within_it():
    window = Window(sampler=DDIM(num_steps=8), size=2, start=2, tail=DPMSolver(num_steps=3))
    policy = Policy(Network(), window)
    assert rollout(policy, ASKED, SEED, 12, keep=(0, 4)).kept == (0, 2, 3, 4, 8)
    with pytest.raises(
        ValueError, match=r"\[0, 5\] cannot be kept: the chain has none after step 4"
    ):
        rollout(policy, ASKED, SEED, 12, keep=(0, 5))


@pytest.mark.parametrize(
    ("make", "settings", "match"),
    [
        (DPMSolver, {"num_steps": 0}, "num_steps = 0"),
        (DPMSolver, {"order": 4}, "order = 4"),
        (DPMSolver, {"order": 0}, "order = 0"),
        (Window, {"tail": DPMSolver(num_steps=17)}, r"tail\.num_steps = 17, but .* leaves 16 of"),
        (Window, {"start": 16, "tail": DPMSolver(num_steps=1)}, "leaves 0 of the sampler's 20"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(make, settings, match):
    with pytest.raises(ValueError, match=match):
        make(**settings)
    assert Window(tail=DPMSolver(num_steps=16)).on(ENDS_NOISY).walked == 4


def test_levels_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_steps = 0"):
        STRAIGHT.levels(0)
    for num_steps in (0, 1001):
        with pytest.raises(ValueError, match="num_steps"):
            ENDS_NOISY.levels(num_steps)
