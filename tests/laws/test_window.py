"""A window of steps: noise inside, the ODE outside, and where it is at an iteration."""

from __future__ import annotations

import pytest
import torch
from worlds import ENDS_CLEAN, ENDS_NOISY, PROMPTS, SHIFTED, STRAIGHT, Network, linear, nearness

from burnish.algorithms.ddpo import DDPOIS, WholeBatch
from burnish.policy import Policy, snapshot
from burnish.randomness import Randomness
from burnish.samplers.ddim import DDIM
from burnish.samplers.flow import CPS, DanceSDE, FlowODE, FlowSDE
from burnish.samplers.window import Window
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training
from burnish.train.state import start

INNER = [
    (DDIM(num_steps=6), ENDS_NOISY),
    (FlowSDE(num_steps=6), SHIFTED),
    (DanceSDE(num_steps=6), SHIFTED),
    (CPS(num_steps=6), SHIFTED),
]
SEED = Randomness(0).at("sampler")


def starts(window: Window, iterations: int, randomness: Randomness = SEED) -> list[int]:
    return [window.at(i, randomness).start for i in range(iterations)]


@pytest.mark.parametrize(("inner", "schedule"), INNER, ids=lambda value: type(value).__name__)
def test_a_window_is_noisy_inside_and_the_ode_outside(inner, schedule):
    found = Window(sampler=inner, size=2, start=1).on(schedule)
    noisy = inner.on(schedule)
    still = (DDIM(num_steps=6, eta=0.0) if isinstance(inner, DDIM) else FlowODE(num_steps=6)).on(
        schedule
    )
    assert found.stochastic == (1, 2)
    for name in ("clean", "noise", "std"):
        table = getattr(still, name).clone()
        table[1:3] = getattr(noisy, name)[1:3]
        assert torch.equal(getattr(found, name), table)
    for name in ("times", "signal", "sigma"):
        assert torch.equal(getattr(found, name), getattr(noisy, name))
    assert found.parameterisation is schedule.parameterisation


def test_a_window_over_all_steps_is_the_sampler_itself():
    whole, plain = (
        Window(sampler=FlowSDE(num_steps=6), size=6).on(STRAIGHT),
        FlowSDE(num_steps=6).on(STRAIGHT),
    )
    assert torch.equal(whole.noise, plain.noise)
    assert torch.equal(whole.std, plain.std)
    assert whole.stochastic == plain.stochastic


def test_a_fixed_window_stays():
    assert starts(Window(sampler=DDIM(num_steps=6), size=2, start=3, every=1), 5) == [3] * 5


def test_a_sliding_window_moves_towards_data_and_begins_again():
    slides = Window(sampler=DDIM(num_steps=7), size=2, start=1, move="sliding", stride=2, every=3)
    # places 1, 3, 5; each for 3 iterations
    assert starts(slides, 12) == [1, 1, 1, 3, 3, 3, 5, 5, 5, 1, 1, 1]
    every_step = Window(sampler=DDIM(num_steps=4), size=2, move="sliding", every=1)
    assert starts(every_step, 5) == [0, 1, 2, 0, 1]


def test_a_random_window_is_a_seeded_draw_over_all_places():
    jumps = Window(sampler=DDIM(num_steps=7), size=3, start=1, move="random", every=1)
    found = starts(jumps, 400)
    assert found == starts(jumps, 400)
    assert found != starts(jumps, 400, Randomness(1).at("sampler"))
    counts = torch.tensor(found).bincount(minlength=5)[1:]
    assert counts.sum() == 400
    # four places of chance 1/4: 100 +- 5 standard deviations
    assert ((counts - 100).abs() < 5 * (400 * 0.25 * 0.75) ** 0.5).all()
    slow = Window(sampler=DDIM(num_steps=7), size=3, start=1, move="random", every=4)
    assert starts(slow, 40) == [start for start in found[:10] for _ in range(4)]


@pytest.mark.parametrize("move", ["fixed", "sliding", "random"])
def test_a_window_is_at_its_start_where_there_is_no_iteration(move):
    """Evaluation and drawing see one sampler through the whole run."""
    window = Window(sampler=DDIM(num_steps=6), size=2, start=1, move=move)
    assert window.on(ENDS_NOISY).stochastic == (1, 2)


@pytest.mark.parametrize("sampler", [DDIM(), FlowODE(), FlowSDE(), DanceSDE(), CPS()], ids=str)
def test_a_sampler_that_does_not_move_is_itself_at_every_iteration(sampler):
    assert sampler.at(7, SEED) is sampler


def test_a_policy_of_an_iteration_shares_the_denoiser_and_moves_the_kernel():
    window = Window(sampler=DDIM(num_steps=6), size=2, move="sliding", every=1)
    policy = Policy(Network(), window, torch.bfloat16)
    moved = policy.at(3, SEED)
    assert moved.denoiser is policy.denoiser
    assert moved.storage == torch.bfloat16
    assert moved.kernel.stochastic == (3, 4)
    assert policy.kernel.stochastic == (0, 1)
    assert policy.at(0, SEED).at(0, SEED).kernel.stochastic == (0, 1)
    still = Policy(Network(), DDIM(num_steps=6))
    assert still.at(3, SEED) is still


def trained(iterations: int, state=None, model=None):
    model = model or linear()
    state = state or start(model, AdamW(learning_rate=0.05), averaged=False)
    window = Window(sampler=DDIM(num_steps=4), size=2, move="sliding", every=1)
    reports = train(
        Policy(model, window),
        DDPOIS(clip=0.1, baseline=WholeBatch()),
        PROMPTS,
        nearness((2.0, 2.0)),
        training=Training(iterations=iterations, samples=16, updates=2),
        optimizer=AdamW(learning_rate=0.05),
        state=state,
    )
    return list(reports), model, state


def test_the_loop_trains_the_windows_steps_of_each_iteration():
    reports, _, _ = trained(4)
    steps = [sorted(report.by_step["loss"]) for report in reports]
    assert steps == [[0, 1], [1, 2], [2, 3], [0, 1]]
    assert all(report.metrics["first_log_ratio"] < 1e-6 for report in reports)


def test_a_run_that_goes_on_finds_its_window_where_it_left_it():
    _, whole, _ = trained(4)
    _, model, state = trained(2)
    reports, model, _ = trained(4, state, model)
    assert [sorted(report.by_step["loss"]) for report in reports] == [[2, 3], [0, 1]]
    assert all(torch.equal(a, b) for a, b in zip(snapshot(whole), snapshot(model), strict=True))


def test_a_window_that_may_have_no_density_is_refused_before_it_gets_there():
    for window, schedule in (
        (Window(sampler=CPS(num_steps=4), size=1, move="sliding"), STRAIGHT),
        (Window(sampler=DDIM(num_steps=4), size=1, move="random"), ENDS_CLEAN),
        (Window(sampler=DDIM(num_steps=4), size=1, start=3), ENDS_CLEAN),
    ):
        with pytest.raises(ValueError, match="size = 1 at step 3 has no step with a density"):
            window.on(schedule)
    assert Window(sampler=CPS(num_steps=4), size=2, start=2).on(STRAIGHT).stochastic == (2,)
    assert Window(sampler=DDIM(num_steps=4, eta=0.0), size=1).on(ENDS_CLEAN).stochastic == ()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"size": 0}, "size"),
        ({"stride": 0}, "stride"),
        ({"every": 0}, "every"),
        ({"start": -1}, "start"),
        ({"start": 18, "size": 3}, "start = 18 and size = 3"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, match):
    with pytest.raises(ValueError, match=match):
        Window(**settings)
