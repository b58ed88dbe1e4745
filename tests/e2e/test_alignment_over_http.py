"""Alignment is learned through HTTP alone, from a model that sees the images and the questions."""

from __future__ import annotations

import math

import pytest
import torch
from chat import Question, Raw, likelihood, said, talking

from burnish.config import load_recipe
from burnish.experiment import run
from burnish.folder import RunFolder, lines
from burnish.randomness import Randomness

RECIPE = """
base = "alignment"

[training]
iterations = 5

[reward]
name = "vlm"
model = "judge"

[reward.reading]
name = "yes-no"
"""
LIFT = 0.25
"""Standard deviations of the first samples' rewards by which the mean reward must rise."""


@pytest.mark.slow
def test_alignment_is_learned_from_a_models_answers(tmp_path):
    torch.set_num_threads(2)
    file = tmp_path / "vlm.toml"
    file.write_text(RECIPE)
    prompts = load_recipe("alignment").prompts
    asked = [*prompts.draw(2000, Randomness(0)), *prompts.held_out(128)]
    attributes = {prompt.text: prompt.metadata for prompt in asked}

    def answer(question: Question) -> Raw:
        """Yes, with the probability that the judge gives to an attribute of the prompt, on average."""
        known = attributes.get(question.prompt)
        chance = 0.5 if known is None else likelihood(question.image, known)
        return said("yes", first={"yes": math.log(chance), "no": math.log1p(-chance)})

    with talking(answer) as talk:
        recipe = load_recipe(str(file), [f'--reward.servers=["{talk.url}"]'])
        assert run(recipe, RunFolder(tmp_path / "run"), resume=False)
    recorded = list(lines(tmp_path / "run" / "metrics.jsonl"))
    rewards = [line["reward"] for line in recorded if "reward" in line]
    assert rewards[-1]["mean"] >= rewards[0]["mean"] + LIFT * rewards[0]["std"]
    held_out = [line["held_out"] for line in recorded if "held_out" in line]
    assert held_out[-1]["mean"] > held_out[0]["mean"]
    # the judge's own count of the attributes that are right, which is what the answers stand for
    assert held_out[-1]["watched"] > held_out[0]["watched"]
