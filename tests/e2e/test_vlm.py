"""Alignment is learned through HTTP alone, from what a model says that sees the images and nothing else."""

from __future__ import annotations

import pytest
import torch
from chat import Question, Raw, description, said, talking

from burnish.config import load_recipe
from burnish.experiment import run
from burnish.folder import RunFolder, lines

RECIPE = """
base = "alignment"

[training]
iterations = 8

[reward]
name = "vlm"
model = "judge"
concurrency = 4

[reward.reading]
name = "similarity"
question = "What is in this picture?"
expected = "{prompt}"

[reward.reading.measure]
name = "sentences"
device = "cpu"
"""
LIFT = 0.25
"""Standard deviations of the first samples' rewards by which the mean reward must rise."""


@pytest.mark.slow
def test_alignment_is_learned_from_a_models_answers(tmp_path):
    torch.set_num_threads(2)
    recipe = tmp_path / "vlm.toml"
    recipe.write_text(RECIPE)

    def answer(question: Question) -> Raw:
        return said(description(question.image, terse=True))

    with talking(answer) as talk:
        given = load_recipe(str(recipe), [f'--reward.servers=["{talk.url}"]'])
        assert run(given, RunFolder(tmp_path / "run"), resume=False)
    recorded = list(lines(tmp_path / "run" / "metrics.jsonl"))
    rewards = [line["reward"] for line in recorded if "reward" in line]
    assert rewards[-1]["mean"] >= rewards[0]["mean"] + LIFT * rewards[0]["std"]
    held_out = [line["held_out"] for line in recorded if "held_out" in line]
    assert held_out[-1]["mean"] > held_out[0]["mean"]
    # the judge's own count of the attributes that are right, which is what the answers stand for
    assert held_out[-1]["watched"] > held_out[0]["watched"]
