"""burnish: fine-tune diffusion and flow-matching models with reinforcement learning.

The public API is what `__init__.pyi` lists: every algorithm and sampler, and what trains and draws. Rewards,
and the settings inside an algorithm, are at the top of `burnish.rewards` and `burnish.algorithms`. It, and
the modules that hold the mathematics, are loaded when they are first used, so that reading a recipe or
asking for help does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import lazy_loader

__version__ = "0.1.0"

_MATHEMATICS = frozenset(
    {
        "advantages",
        "experience",
        "kernels",
        "losses",
        "policy",
        "reward",
        "rollout",
        "rows",
        "schedules",
        "solver",
        "transitions",
        "values",
    }
)
"""Modules that settings import from here, and of which nothing is executed before it is called."""

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _Later(ModuleType):
    """Stands for a module, which is imported when something of it is first asked for.

    It is not in `sys.modules`: there, whatever looks through all modules while torch is imported would import
    it half way.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


def __getattr__(name: str) -> Any:
    return _Later(f"{__name__}.{name}") if name in _MATHEMATICS else _public(name)
