"""What every test shares: shapes are checked at run time, and chance is fixed."""

from __future__ import annotations

import importlib

import torch
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

CHECKED = [
    "burnish.transitions",
    "burnish.schedules",
    "burnish.kernels",
    "burnish.losses",
    "burnish.advantages",
    "burnish.rollout",
    "burnish.randomness",
]
"""Modules whose shape annotations are enforced. `burnish.rows` is left out: beartype cannot resolve the
`Self` of its protocol when it is given the method and not the class."""

with install_import_hook(CHECKED, "beartype.beartype"):
    for _name in CHECKED:  # now, since burnish loads some of them lazily later, past the hook
        importlib.import_module(_name)

torch.set_num_threads(1)

settings.register_profile("default", derandomize=True, deadline=None, max_examples=25)
settings.register_profile(
    "mutants", settings.get_profile("default"), phases=[Phase.explicit, Phase.generate]
)
settings.load_profile("default")
