"""Held-out images: which sampler draws them, and what is measured on them beside the reward."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from burnish import experiment
from burnish.config import dump, load_recipe
from burnish.draw import draw, side_by_side
from burnish.folder import RunFolder
from burnish.images import to_pil
from burnish.policy import Policy
from burnish.reward import RewardError
from burnish.rewards.files import Incompressibility
from burnish.rewards.statistics import Brightness
from burnish.rollout import sample
from burnish.samplers.ddim import DDIM
from burnish.samplers.dpm import DPMSolver

SOLVER = DPMSolver(num_steps=3, order=1)
TEXT = "a person with red hair"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.stable_diffusion(tmp_path_factory.mktemp("tiny"))


def built(model: Path, *, solver: bool = False, watched: str = "") -> experiment.Experiment:
    overrides = [
        f"--model.name={model}",
        "--model.device=cpu",
        "--reward.name=brightness",
        "--sampler.num_steps=4",
        "--algorithm.train_steps=4",
        "--evaluation.prompts=3",
    ]
    chosen = [
        "--evaluation.sampler.name=dpm-solver",
        "--evaluation.sampler.num_steps=3",
        "--evaluation.sampler.order=1",
    ]
    watch = [f"--evaluation.watched.name={watched}"] if watched else []
    return experiment.assemble(
        load_recipe("compressibility", overrides + (chosen if solver else []) + watch)
    )


@pytest.mark.parametrize(
    ("solver", "sampler"), [(True, SOLVER), (False, DDIM(num_steps=4))], ids=["solver", "none"]
)
def test_held_out_images_are_drawn_by_the_evaluations_sampler_if_there_is_one(
    model, solver, sampler
):
    found = built(model, solver=solver)
    assert found.policy.sampler == DDIM(num_steps=4)
    assert found.shown.sampler == sampler
    assert found.shown.denoiser is found.policy.denoiser
    drawn = experiment.held_out(found).samples
    shown = experiment.evaluate(
        Policy(found.denoiser, sampler),
        found.recipe.prompts.held_out(3),
        found.reward,
        seed=0,
        batch=64,
    )
    assert torch.equal(drawn.media, shown.samples.media)


def test_before_and_after_are_drawn_by_it_too(model, tmp_path):
    found = built(model, solver=True)
    folder = RunFolder(tmp_path)
    folder.recipe.write_text(dump(found.recipe))
    found.denoiser.save(folder.weights)
    (path,) = draw(tmp_path, [TEXT], 1, 5, None)
    image = sample(Policy(found.denoiser, SOLVER), [TEXT], seed=5).media[0]
    other = sample(found.policy, [TEXT], seed=5).media[0]
    with Image.open(path) as written:
        assert written.tobytes() == side_by_side([image, image]).tobytes()
    assert to_pil(image).tobytes() != to_pil(other).tobytes()


def test_a_watched_reward_is_measured_on_the_held_out_samples(model):
    found = experiment.held_out(built(model, watched="incompressibility"))
    kilobytes = Incompressibility()(found.samples).double().mean().item()
    assert found.summary()["watched"] == pytest.approx(kilobytes)
    assert found.summary()["mean"] == pytest.approx(Brightness()(found.samples).mean().item())
    assert "watched" not in experiment.held_out(built(model)).summary()


def test_a_watched_reward_that_fails_stops_the_evaluation_too(model):
    with pytest.raises(RewardError, match="not_a_number"):
        experiment.held_out(built(model, watched=f"{__name__}:not_a_number"))


def not_a_number(samples):
    return torch.full((len(samples),), torch.nan)
