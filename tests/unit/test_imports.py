"""Reading a recipe does not wait for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import burnish.losses
from burnish.algorithms import ddpo
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
    ],
)
def test_settings_are_read_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_lazy_module_is_the_module_itself():
    assert ddpo.losses is burnish.losses
    assert ddpo.losses.score_function is burnish.losses.score_function


def test_shapes_are_checked_in_tests():
    with pytest.raises(TypeError, match="std"):
        Gaussian(torch.zeros(3, 2), torch.ones(2))
