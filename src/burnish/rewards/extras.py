"""Packages that only some rewards need."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from burnish.content import digest


def needed(module: str, extra: str) -> Any:
    """A package of burnish's optional dependencies `extra`. Raises ValueError that tells how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"it needs the package {module}, which cannot be imported ({error}): "
            f"pip install 'burnish[{extra}]'"
        ) from error


def shipped(module: Any, names: Sequence[str]) -> list[str]:
    """Paths of files in a package. Raises ValueError if one is not there: nothing is downloaded instead."""
    paths = [Path(module.__file__).parent / name for name in names]
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"the package {module.__name__} has no file {path}; install it anew, in a version that "
                "burnish's constraints.txt names"
            )
    return [str(path) for path in paths]


@cache
def contents(distribution: str, paths: tuple[str, ...]) -> str:
    """What tells a package's models and its code: their digests and its version."""
    return " ".join([distribution, version(distribution), *map(digest, paths)])
