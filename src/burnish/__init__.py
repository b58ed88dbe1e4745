"""burnish: fine-tune diffusion and flow-matching models with reinforcement learning.

The names below are the public API. They, and the modules that hold the mathematics, are loaded when
they are first used, so that reading a recipe or asking for help does not wait for torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.algorithms.ddpo import DDPOIS as DDPOIS
    from burnish.algorithms.ddpo import DDPOSF as DDPOSF
    from burnish.models.hub import load as load
    from burnish.policy import Policy as Policy
    from burnish.prompts import Listed as Listed
    from burnish.prompts import Prompt as Prompt
    from burnish.rollout import Samples as Samples
    from burnish.rollout import sample as sample
    from burnish.samplers.ddim import DDIM as DDIM
    from burnish.samplers.ddpm import DDPM as DDPM
    from burnish.train.loop import train as train
    from burnish.train.settings import AdamW as AdamW
    from burnish.train.settings import Training as Training

__version__ = "0.1.0"

_HOME = {
    "DDIM": "burnish.samplers.ddim",
    "DDPM": "burnish.samplers.ddpm",
    "DDPOIS": "burnish.algorithms.ddpo",
    "DDPOSF": "burnish.algorithms.ddpo",
    "AdamW": "burnish.train.settings",
    "Listed": "burnish.prompts",
    "Policy": "burnish.policy",
    "Prompt": "burnish.prompts",
    "Samples": "burnish.rollout",
    "Training": "burnish.train.settings",
    "load": "burnish.models.hub",
    "sample": "burnish.rollout",
    "train": "burnish.train.loop",
}
_LAZY = frozenset(
    {"advantages", "experience", "kernels", "losses", "policy", "rollout", "rows", "transitions"}
)

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _LAZY:
        value = _lazy_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def _lazy_module(name: str) -> ModuleType:
    """The module `name`, executed at the first look-up of one of its attributes."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    assert spec.loader is not None, name
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
