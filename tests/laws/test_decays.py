"""Noise that falls over iterations: its values, its kernels, a run that goes on, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from worlds import ENDS_NOISY, PROMPTS, SHIFTED, Network, linear, nearness

from burnish import decays
from burnish.algorithms.ddpo import DDPOIS, WholeBatch
from burnish.config import dump, load_recipe
from burnish.decays import CosineDecay, ExponentialDecay, LinearDecay
from burnish.policy import Policy, snapshot
from burnish.randomness import Randomness
from burnish.report.page import MEANINGS
from burnish.samplers.ddim import DDIM
from burnish.samplers.ddpm import DDPM
from burnish.samplers.flow import CPS, DanceSDE, FlowSDE
from burnish.samplers.window import Window
from burnish.tables import ConfigError
from burnish.train.loop import train
from burnish.train.settings import AdamW, Training
from burnish.train.state import start

FALLS = LinearDecay(start=1.0, end=0.2, iterations=4)
NOISY = [
    (DDIM(num_steps=6), ENDS_NOISY),
    (FlowSDE(num_steps=6), SHIFTED),
    (DanceSDE(num_steps=6), SHIFTED),
    (CPS(num_steps=6), SHIFTED),
]
SEED = Randomness(0).at("sampler")


def test_decays_by_hand():
    linear_, cosine = (
        decay(start=0.4, end=0.2, iterations=4) for decay in (LinearDecay, CosineDecay)
    )
    assert [linear_.at(i) for i in (0, 1, 2, 4, 9)] == pytest.approx([0.4, 0.35, 0.3, 0.2, 0.2])
    root = 0.5**0.5  # cos(pi / 4), and the half of half a life
    assert [cosine.at(i) for i in (0, 1, 2, 4, 9)] == pytest.approx(
        [0.4, 0.3 + 0.1 * root, 0.3, 0.2, 0.2]
    )
    halved = ExponentialDecay(start=0.4, end=0.2, half_life=2)
    assert [halved.at(i) for i in (0, 1, 2, 4)] == pytest.approx([0.4, 0.2 + 0.2 * root, 0.3, 0.25])
    assert [ExponentialDecay(start=3.0, half_life=1).at(i) for i in (0, 1, 2)] == [3.0, 1.5, 0.75]


@pytest.mark.parametrize("decay", [LinearDecay, CosineDecay, ExponentialDecay])
def test_a_decay_lies_between_its_bounds_and_never_rises(decay):
    falls = decay(start=0.9, end=0.1)
    values = [falls.at(i) for i in range(200)]
    assert values == sorted(values, reverse=True)
    assert decays.bounds(falls) == (0.1, 0.9)
    assert values[0] == 0.9
    assert values[-1] == pytest.approx(0.1, abs=1e-5)  # 20 half-lives: 0.8 * 2^-20
    assert decays.settled(falls) == 0.1
    assert decays.bounds(0.3) == (0.3, 0.3)


@pytest.mark.parametrize(
    ("decay", "settings", "key"),
    [
        (LinearDecay, {"start": 0.1, "end": 0.2}, "end"),
        (CosineDecay, {"start": 0.1, "end": 0.2}, "end"),
        (LinearDecay, {"start": float("inf")}, "start"),
        (LinearDecay, {"start": 1.0, "iterations": 0}, "iterations"),
        (ExponentialDecay, {"start": 1.0, "half_life": 0.0}, "half_life"),
    ],
)
def test_decays_that_cannot_be_are_refused_by_name(decay, settings, key):
    with pytest.raises(ValueError, match=key):
        decay(**settings)


# --- samplers ----------------------------------------------------------------------------------------


def same(one, other) -> bool:
    names = ("times", "signal", "sigma", "clean", "noise", "std")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize(("sampler", "schedule"), NOISY, ids=lambda value: type(value).__name__)
def test_a_sampler_of_an_iteration_is_that_of_the_decays_number(sampler, schedule):
    falling = replace(sampler, eta=FALLS)
    for iteration, eta in [(0, 1.0), (1, 0.8), (3, 0.4), (4, 0.2), (50, 0.2)]:
        found = falling.at(iteration, SEED)
        assert found == replace(sampler, eta=FALLS.at(iteration))
        assert found.eta == pytest.approx(eta)
    by_number = replace(sampler, eta=FALLS.at(3))
    assert same(falling.at(3, SEED).on(schedule), by_number.on(schedule))
    std = torch.stack([falling.at(i, SEED).on(schedule).std for i in range(5)])
    assert (std[:-1] >= std[1:]).all()
    assert (std[:, 0].diff() < 0).all()


@pytest.mark.parametrize(("sampler", "schedule"), NOISY, ids=lambda value: type(value).__name__)
def test_where_there_is_no_iteration_a_decay_is_at_its_end(sampler, schedule):
    """Evaluation and drawing see one sampler through the whole run."""
    assert same(replace(sampler, eta=FALLS).on(schedule), replace(sampler, eta=0.2).on(schedule))
    assert not replace(sampler, eta=FALLS).deterministic
    assert replace(sampler, eta=LinearDecay(start=0.5)).deterministic
    assert replace(sampler, eta=ExponentialDecay(start=0.5)).deterministic


@pytest.mark.parametrize(("sampler", "schedule"), NOISY, ids=lambda value: type(value).__name__)
def test_a_window_walks_the_sampler_of_the_iteration(sampler, schedule):
    window = Window(sampler=replace(sampler, eta=FALLS), size=2, start=1, move="sliding", every=1)
    found = window.at(2, SEED)
    by_number = Window(sampler=replace(sampler, eta=FALLS.at(2)), size=2, start=3, every=1)
    assert found == by_number
    assert same(found.on(schedule), by_number.on(schedule))
    assert same(
        window.on(schedule), replace(window, sampler=replace(sampler, eta=0.2)).on(schedule)
    )
    assert Window(sampler=replace(sampler, eta=LinearDecay(start=0.5)), size=2).deterministic


def test_what_moves_is_named_with_its_value():
    window = Window(sampler=DDIM(eta=FALLS), size=2)
    assert decays.moving(DDIM(eta=FALLS), 1) == decays.moving(window, 1) == {"eta": FALLS.at(1)}
    assert decays.moving(DDIM(), 1) == decays.moving(DDPM(), 1) == decays.moving(Window(), 1) == {}
    assert {"eta", "exploration_epsilon"} <= MEANINGS.keys()


@pytest.mark.parametrize(
    ("kind", "eta"),
    [
        (DDIM, LinearDecay(start=1.5)),
        (CPS, CosineDecay(start=1.5)),
        (DDIM, LinearDecay(start=0.5, end=-0.1)),
        (FlowSDE, LinearDecay(start=0.5, end=-0.1)),
        (DanceSDE, ExponentialDecay(start=0.5, end=-0.1)),
        (CPS, LinearDecay(start=0.5, end=-0.1)),
    ],
)
def test_a_decay_out_of_a_samplers_bounds_is_refused(kind, eta):
    with pytest.raises(ValueError, match="eta = "):
        kind(eta=eta)


def test_the_noise_of_an_sde_may_begin_above_1():
    assert FlowSDE(eta=LinearDecay(start=1.5, end=0.7)).at(0, SEED).eta == 1.5


# --- runs --------------------------------------------------------------------------------------------


def trained(iterations: int, state=None, model=None):
    model = model or Network()
    state = state or start(model, AdamW(learning_rate=0.05), averaged=False)
    reports = train(
        Policy(model, DDIM(num_steps=3, eta=FALLS)),
        DDPOIS(clip=0.1, baseline=WholeBatch()),
        PROMPTS,
        lambda samples: samples.media.mean(dim=(1, 2, 3)),
        training=Training(iterations=iterations, samples=8, updates=2, ratio_tolerance=1e-5),
        optimizer=AdamW(learning_rate=0.05),
        state=state,
    )
    return list(reports), model, state


def test_a_run_logs_its_noise_and_updates_what_it_drew_with_it():
    """The loop stops a run whose rows are scored under other noise than they were drawn with."""
    reports, _, _ = trained(5)
    assert [report.metrics["eta"] for report in reports] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_a_run_that_goes_on_has_the_noise_of_one_that_never_stopped():
    whole, model, _ = trained(4)
    _, other, state = trained(2)
    later, other, _ = trained(4, state, other)
    assert [each.metrics["eta"] for each in later] == [each.metrics["eta"] for each in whole[2:]]
    assert all(torch.equal(a, b) for a, b in zip(snapshot(model), snapshot(other), strict=True))


def test_a_number_is_not_logged():
    reports = train(
        Policy(linear(), DDIM(num_steps=3)),
        DDPOIS(baseline=WholeBatch()),
        PROMPTS,
        nearness((1.0, 1.0)),
        training=Training(iterations=1, samples=8),
    )
    assert "eta" not in next(iter(reports)).metrics


# --- recipes -----------------------------------------------------------------------------------------


def test_a_recipe_has_a_number_or_a_decay_and_writes_it_out(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[reward]\nname = "compressibility"\n[sampler]\n'
        'eta = {name = "linear", start = 1.0, end = 0.3, iterations = 50}\n'
    )
    recipe = load_recipe(str(path))
    assert recipe.sampler == DDIM(eta=LinearDecay(start=1.0, end=0.3, iterations=50))
    assert load_recipe(str(path), ["--sampler.eta.end", "0.5"]).sampler.eta.end == 0.5
    assert load_recipe(str(path), ["--sampler.eta", "0.5"]).sampler.eta == 0.5
    again = tmp_path / "again.toml"
    again.write_text(dump(recipe))
    assert load_recipe(str(again)) == recipe
    plain = ["--sampler.eta.name=exponential", "--sampler.eta.start=1", "--sampler.eta.end=0.5"]
    again.write_text(dump(load_recipe("compressibility")))  # with the number written out
    decayed = load_recipe(str(again), plain)
    assert decayed.sampler.eta == ExponentialDecay(start=1, end=0.5)


def test_a_recipes_window_has_a_decay_inside(tmp_path):
    overrides = [
        "--algorithm.train_steps=2",
        "--sampler.name=window",
        "--sampler.sampler.name=cps",
        "--sampler.sampler.eta.name=cosine",
        "--sampler.sampler.eta.start=0.8",
        "--sampler.sampler.eta.end=0.4",
    ]
    recipe = load_recipe("compressibility", overrides)
    assert recipe.sampler == Window(sampler=CPS(eta=CosineDecay(start=0.8, end=0.4)))
    path = tmp_path / "recipe.toml"
    path.write_text(dump(recipe))
    assert load_recipe(str(path)) == recipe


FALLS_TO_0 = ["--sampler.eta.name=linear", "--sampler.eta.start=1.0"]


@pytest.mark.parametrize(
    ("overrides", "key", "hint"),
    [
        (FALLS_TO_0, "'ddim'", "its `end`, if it falls"),
        (
            [
                "--sampler.name=window",
                "--sampler.sampler.eta.name=cosine",
                "--sampler.sampler.eta.start=1",
            ],
            "'window'",
            "fallen to its end",
        ),
        (["--sampler.eta.name=linear"], "sampler.eta.start", "missing"),
        (["--sampler.eta.name=liner"], "sampler.eta.name", "'linear'"),
        (["--sampler.eta=linear"], "sampler.eta", "a table (linear, cosine, exponential)"),
        ([*FALLS_TO_0, "--sampler.eta.end=1.5"], "sampler.eta.start = 1.0", "a decay falls"),
        (
            ["--sampler.eta.name=linear", "--sampler.eta.start=2.0", "--sampler.eta.end=1.0"],
            "sampler.eta",
            "to 1 (DDPM)",
        ),
        (["--sampler.num_steps.start", "3"], "sampler.num_steps", "not a table"),
    ],
)
def test_noise_that_cannot_be_is_refused_before_anything_is_loaded(overrides, key, hint):
    with pytest.raises(ConfigError) as error:
        load_recipe("compressibility", overrides)
    assert key in str(error.value)
    assert hint in str(error.value)


def test_noise_may_fall_to_0_where_no_density_is_asked_for():
    recipe = load_recipe("compressibility", [*FALLS_TO_0, "--algorithm.name=nft"])
    assert recipe.sampler.deterministic
