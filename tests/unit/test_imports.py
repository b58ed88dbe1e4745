"""Reading a recipe does not wait for torch."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args, get_origin, get_type_hints

import pytest
import torch

import burnish.algorithms
import burnish.losses
import burnish.rewards
import burnish.samplers
from burnish.algorithms import DDPOIS, ddpo
from burnish.recipe import Plugin, Recipe
from burnish.transitions import Gaussian


@pytest.mark.parametrize(
    "module",
    [
        "burnish",
        "burnish.algorithms.ddpo",
        "burnish.algorithms.draft",
        "burnish.samplers.ddim",
        "burnish.samplers.ddpm",
        "burnish.samplers.dpm",
        "burnish.samplers.flow",
        "burnish.samplers.window",
        "burnish.train.settings",
        "burnish.prompts",
        "burnish.algorithms",
        "burnish.samplers",
        "burnish.rewards",
        "burnish.decays",
    ],
)
def test_settings_are_read_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("module", "name"),
    [("rollout", "Samples"), ("reward", "prepare"), ("experience", "act"), ("rows", "Pairs")],
)
def test_after_settings_were_read_what_needs_torch_is_imported_whole(module, name):
    code = f"from burnish.config import load_recipe; from burnish.{module} import {name}"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("field", "tops"),
    [
        ("algorithm", [burnish.algorithms, burnish]),
        ("sampler", [burnish.samplers, burnish]),
        ("reward", [burnish.rewards]),
    ],
)
def test_what_a_recipe_can_name_is_at_the_top_of_its_package(field, tops):
    kinds = [get_origin(each) or each for each in get_args(get_type_hints(Recipe)[field])]
    named = [each for each in kinds if each is not Plugin]
    for top in tops:
        assert [getattr(top, each.__name__, None) for each in named] == named


def test_settings_inside_an_algorithm_are_at_the_top_of_its_package():
    fields = [get_type_hints(DDPOIS)[name] for name in ("baseline", "exploration")]
    for each in (each for field in fields for each in get_args(field) if each is not type(None)):
        assert getattr(burnish.algorithms, each.__name__) is each


def test_a_lazy_module_is_the_module_itself():
    assert ddpo.losses is burnish.losses
    assert ddpo.losses.score_function is burnish.losses.score_function


def test_shapes_are_checked_in_tests():
    with pytest.raises(TypeError, match="std"):
        Gaussian(torch.zeros(3, 2), torch.ones(2))
