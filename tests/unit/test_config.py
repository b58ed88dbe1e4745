"""Recipes: what is wrong is named before any weight is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from burnish.algorithms.ddpo import DDPOIS, DDPOSF, WholeBatch
from burnish.algorithms.draft import AlignProp
from burnish.config import dump, load_recipe, shipped
from burnish.recipe import Plugin
from burnish.rewards.files import Compressibility
from burnish.samplers.ddim import DDIM
from burnish.samplers.dpm import DPMSolver
from burnish.samplers.flow import FlowODE, FlowSDE
from burnish.samplers.window import Window
from burnish.tables import ConfigError

SOLVED = ["--algorithm.name=align-prop", "--reward.name=brightness", "--training.updates=1"]


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_valid_and_survives_being_written_out(name, tmp_path):
    recipe = load_recipe(name)
    path = tmp_path / "recipe.toml"
    path.write_text(dump(recipe))
    assert load_recipe(str(path)) == recipe


def test_overrides_reach_any_field_in_both_spellings():
    recipe = load_recipe(
        "compressibility",
        [
            "--algorithm.clip",
            "2e-4",
            "--sampler.num_steps=7",
            "--seed",
            "3",
            "--training.ema",
            "0.9",
        ],
    )
    assert isinstance(recipe.algorithm, DDPOIS)
    assert recipe.algorithm.clip == 2e-4
    assert recipe.sampler == DDIM(num_steps=7)
    assert (recipe.seed, recipe.training.ema) == (3, 0.9)


def test_an_override_of_a_name_takes_another_class_and_starts_its_table_anew(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[reward]\nname = "compressibility"\n[algorithm]\nname = "ddpo-is"\nclip = 0.1\n'
    )
    recipe = load_recipe(
        str(path),
        [
            "--algorithm.name",
            "ddpo-sf",
            "--training.updates",
            "1",
            "--algorithm.advantage_clip",
            "7",
        ],
    )
    assert recipe.algorithm == DDPOSF(advantage_clip=7)


def test_nested_choices_and_plug_ins():
    recipe = load_recipe(
        "compressibility",
        ["--algorithm.baseline.name", "whole-batch", "--reward.name", "my.rewards:redness"],
    )
    assert recipe.algorithm.baseline == WholeBatch()
    assert recipe.reward == Plugin(target="my.rewards:redness")
    assert 'name = "my.rewards:redness"' in dump(recipe)


def test_a_window_is_laid_over_any_sampler_with_a_choice_of_noise(tmp_path):
    override = ["--sampler.name=window", "--sampler.move=sliding", "--algorithm.train_steps=2"]
    inner = ["--sampler.sampler.name=flow-sde", "--sampler.sampler.num_steps=12"]
    plain = load_recipe("compressibility", override)
    assert plain.sampler == Window(sampler=DDIM(), move="sliding")
    flow = load_recipe("compressibility", [*override, *inner])
    assert flow.sampler == Window(sampler=FlowSDE(num_steps=12), move="sliding")
    path = tmp_path / "recipe.toml"
    path.write_text(dump(flow))
    assert load_recipe(str(path)) == flow


def test_a_solver_evaluates_follows_a_window_and_survives_being_written_out(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        '[reward]\nname = "compressibility"\n[sampler]\nname = "window"\n'
        'tail = {name = "dpm-solver", num_steps = 3}\n[evaluation.sampler]\nname = "dpm-solver"\norder = 3\n'
    )
    recipe = load_recipe(str(path))
    assert recipe.sampler == Window(tail=DPMSolver(num_steps=3))
    assert recipe.evaluation.sampler == DPMSolver(order=3)
    again = tmp_path / "again.toml"
    again.write_text(dump(recipe))
    assert load_recipe(str(again)) == recipe
    overridden = load_recipe(
        str(path), ["--evaluation.sampler.name=flow-ode", "--sampler.tail.order=1"]
    )
    assert overridden.evaluation.sampler == FlowODE()
    assert overridden.sampler == Window(tail=DPMSolver(num_steps=3, order=1))
    assert load_recipe("compressibility").evaluation.sampler is None


def test_a_solver_evaluates_what_is_differentiated_through_another_sampler():
    recipe = load_recipe(
        "brightness-draft", ["--evaluation.sampler.name=dpm-solver", "--sampler.num_steps=6"]
    )
    assert recipe.evaluation.sampler == DPMSolver()


def test_a_solver_samples_for_an_algorithm_that_needs_no_density():
    recipe = load_recipe("compressibility", ["--algorithm.name=nft", "--sampler.name=dpm-solver"])
    assert recipe.sampler == DPMSolver()


@pytest.mark.parametrize("reward", ["brightness", "portrait-likelihood", "my.rewards:redness"])
def test_rewards_that_may_have_a_gradient_go_with_algorithms_that_need_one(reward):
    recipe = load_recipe(
        "compressibility",
        [
            "--reward.name",
            reward,
            "--algorithm.name=align-prop",
            "--training.updates=1",
            "--sampler.eta=0",
        ],
    )
    assert recipe.algorithm == AlignProp()


@pytest.mark.parametrize("name", ["draft", "align-prop", "refl"])
@pytest.mark.parametrize("reward", ["compressibility", "incompressibility", "portrait-alignment"])
def test_rewards_without_a_gradient_do_not_go_with_algorithms_that_need_one(name, reward):
    overrides = ["--reward.name", reward, "--algorithm.name", name, "--training.updates=1"]
    with pytest.raises(ConfigError, match=rf"'{name}' differentiates the reward.*'{reward}'"):
        load_recipe("compressibility", overrides)


def test_a_table_without_a_name_is_of_the_default_class(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[reward]\nname = "compressibility"\nquality = 80\n[sampler]\nnum_steps = 3\n')
    recipe = load_recipe(str(path))
    assert recipe.sampler == DDIM(num_steps=3)
    assert recipe.reward == Compressibility(quality=80)


@pytest.mark.parametrize(
    ("overrides", "key", "hint"),
    [
        (["--algorithm.clp", "1"], "algorithm.clp", "'clip'"),
        (["--trainin.samples", "1"], "trainin", "'training'"),
        (["--training.samples", "many"], "training.samples", "integer"),
        (["--training.samples", "2.5"], "training.samples", "integer"),
        (["--training.samples", "0"], "training.samples", "at least 1"),
        (["--training", "5"], "training", "table"),
        (["--algorithm.name", "ddposf"], "algorithm.name", "ddpo-sf"),
        (["--algorithm.clip", "2"], "algorithm.clip", "between 0 and 1"),
        (["--algorithm.train_steps", "[99]"], "train_steps", "num_steps"),
        (["--algorithm.train_steps", "99"], "train_steps", "num_steps"),
        (["--algorithm.train_steps", "[]"], "train_steps", "at least one"),
        (["--algorithm.baseline.min_count", "64"], "algorithm.baseline.min_count", "size"),
        (["--algorithm.name", "ddpo-sf", "--training.updates", "4"], "on-policy", "updates = 1"),
        (["--sampler.eta", "0"], "'ddim'", "sampler.eta above 0"),
        (["--sampler.name", "flow-ode"], "'flow-ode'", "a sampler with noise"),
        (["--sampler.name", "flow-sd"], "sampler.name", "flow-sde"),
        (["--sampler.name", "cps", "--sampler.eta", "2"], "sampler.eta", "0 (the ODE) to 1"),
        (["--sampler.name", "window", "--sampler.size", "21"], "sampler.start", "within"),
        (["--sampler.name", "window", "--sampler.sampler.eta", "0"], "'window'", "eta above 0"),
        (
            ["--sampler.name", "window", "--algorithm.train_steps", "[4]"],
            "algorithm.train_steps",
            "[0, 1, 2, 3]",
        ),
        (
            ["--sampler.name=window", "--sampler.move=random", "--algorithm.train_steps=[1]"],
            "algorithm.train_steps",
            "moves",
        ),
        (
            ["--sampler.name", "window", "--algorithm.train_steps", "5"],
            "algorithm.train_steps",
            "sampler.size = 4",
        ),
        (
            ["--algorithm.name", "draft", "--training.updates", "1"],
            "reward.name = 'compressibility' has no gradient",
            "differentiable reward",
        ),
        (["--sampler.name", "dpm-solver"], "'dpm-solver'", "a sampler with noise"),
        (["--evaluation.sampler.name", "dpm"], "evaluation.sampler.name", "dpm-solver"),
        (["--evaluation.sampler.order", "2"], "evaluation.sampler.order", "no such key"),
        (
            ["--evaluation.sampler.name=dpm-solver", "--evaluation.sampler.order=4"],
            "evaluation.sampler.order",
            "1, 2 or 3",
        ),
        (
            ["--sampler.name", "window", "--sampler.tail.name", "ddim"],
            "sampler.tail.name",
            "dpm-solver",
        ),
        (
            ["--sampler.name=window", "--sampler.tail.name=dpm-solver"],
            "sampler.tail.num_steps = 20",
            "leaves 16 of",
        ),
        (
            [
                *SOLVED,
                "--sampler.name=window",
                "--sampler.tail.name=dpm-solver",
                "--sampler.tail.num_steps=2",
            ],
            "algorithm.name = 'align-prop'",
            "sampler.tail has a solver",
        ),
        (
            [*SOLVED, "--sampler.name=dpm-solver"],
            "sampler.name = 'dpm-solver'",
            "evaluation.sampler may be one",
        ),
        (
            ["--algorithm.name", "refl", "--training.updates", "1", "--reward.name", "brightness"],
            "algorithm.train_steps = 10",
            "num_steps = 8",
        ),
        (["--algorithm.name", "align-prop"], "on-policy", "updates = 1"),
        (["--trainable.name", "full", "--model.dtype", "bfloat16"], "model.dtype", "float32"),
        (["--model.dtype", "float17"], "model.dtype", "bfloat16"),
        (["--reward.quality", "101"], "reward.quality", "1 to 100"),
        (["--checkpoint.keep", "1"], "checkpoint", "keep >= 2"),
        (["--evaluation.every", "0"], "evaluation.every", "at least 1"),
        (["--optimizer.learning_rate", "-1"], "optimizer.learning_rate", "positive"),
        (["--training.samples"], "training.samples", "no value"),
        (["samples", "3"], "'samples'", "--table.key"),
        (
            ["--prompts.name", "file", "--prompts.path", "nowhere.txt"],
            "prompts.path",
            "no such file",
        ),
        (["--prompts.name", "file"], "prompts.path", "missing"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_the_way_out(overrides, key, hint):
    with pytest.raises(ConfigError) as error:
        load_recipe("compressibility", overrides)
    assert key in str(error.value)
    assert hint in str(error.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'compressibility'"):
        load_recipe("compresibility")


def test_a_recipe_stands_on_its_base(tmp_path):
    (tmp_path / "low.toml").write_text('base = "compressibility"\n[training]\nsamples = 64\n')
    high = tmp_path / "high.toml"
    high.write_text('base = "low.toml"\nseed = 5\n[algorithm]\nname = "ddpo-sf"\n')
    recipe = load_recipe(str(high), ["--training.updates", "1"])
    below = load_recipe("compressibility")
    assert (recipe.seed, recipe.training.samples) == (5, 64)
    assert recipe.algorithm == DDPOSF()
    assert (recipe.reward, recipe.prompts) == (below.reward, below.prompts)


@pytest.mark.parametrize(
    ("base", "hint"),
    [("self.toml", "its own base"), ("compresibility", "compressibility"), (3, "base = 3")],
)
def test_a_base_that_cannot_be_is_named(base, hint, tmp_path):
    path = tmp_path / "self.toml"
    path.write_text(f"base = {base!r}\n")
    with pytest.raises(ConfigError, match=hint):
        load_recipe(str(path))


def test_a_file_that_is_not_toml_is_named(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[model\n")
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML"):
        load_recipe(str(path))


def test_a_recipe_is_checked_without_loading_torch():
    code = (
        "import sys, burnish.config as c\n"
        "c.load_recipe('compressibility', ['--training.samples', '3'])\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "import burnish.cli\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
