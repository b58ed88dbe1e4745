"""The shipped recipes do what their first line says: they learn, on this machine, as they are."""

from __future__ import annotations

import pytest
import torch

from burnish.algorithms import SFT, OfflineDPO
from burnish.config import load_recipe, shipped
from burnish.experiment import run
from burnish.folder import RunFolder, lines

RISE = {
    "compressibility": 2.0,
    "brightness-draft": 2.0,
    "alignment": 0.25,
    "sft": 0.6,
    "offline-dpo": 0.6,
}
"""Standard deviations of the base model's rewards by which a recipe lifts training and held-out means; 1 for
those that show one algorithm on compressibility. Of alignment most of the deviation is between prompts; given
images are one such deviation above the base model's, and more cannot be learned from them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_lifts_training_and_held_out_reward(name, tmp_path):
    torch.set_num_threads(2)
    recipe = load_recipe(name)
    assert run(recipe, RunFolder(tmp_path), resume=False)
    recorded = list(lines(tmp_path / "metrics.jsonl"))
    held_out = [line["held_out"] for line in recorded if "held_out" in line]
    measured = [held_out]
    if not isinstance(recipe.algorithm, SFT | OfflineDPO):  # which train on the same images always
        measured.append([line["reward"] for line in recorded[1:]])
    for first, *_, last in measured:
        assert last["mean"] >= first["mean"] + RISE.get(name, 1.0) * first["std"]
    assert held_out[-1]["blank"] == 0
    assert held_out[-1]["diversity"] > 0.25 * held_out[0]["diversity"]
