"""Recipes as files: TOML in, checked settings out. Nothing here loads torch or a weight."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import tomli_w

from burnish.preference.settings import Fitting
from burnish.recipe import Recipe, Rewards
from burnish.tables import ConfigError, as_table, build, merge, nearest


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (shipped, or a path that ends in .toml) under `--table.key value` overrides.

    An override of a table's `name` takes another class, and starts that table anew. So does a file over
    the recipe that its `base` names.
    Raises ConfigError.
    """
    return build(Recipe, _overridden(_with_bases(name), overrides), "")


def load_reward(name: str, overrides: Sequence[str] = ()) -> Rewards:
    """A reward by its name or `module:attribute`, or the `[reward]` of a file that ends in .toml, under
    `--key value` overrides. Raises ConfigError.
    """
    table: dict[str, Any] = {"reward": {"name": name}}
    if name.endswith(".toml"):
        table = _with_bases(name)
    table = _overridden(table, overrides, "reward.")
    if "reward" not in table:
        raise ConfigError(f"{name} has no table [reward]")
    return build(Rewards, table["reward"], "reward")


def load_fitting(overrides: Sequence[str] = ()) -> Fitting:
    """How a reward model is learned, under `--key value` overrides. Raises ConfigError."""
    return build(Fitting, _overridden({}, overrides), "")


def _with_bases(name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The recipe's table over that of its `base`: a shipped recipe, or a .toml file beside it."""
    path = recipe_path(name)
    if path in above:
        raise ConfigError(f"{path} is its own base, by way of {', '.join(map(str, above))}")
    table = read_table(path)
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise ConfigError(f"base = {base!r}, expected the name of a recipe")
    beside = str(path.parent / base) if base.endswith(".toml") else base
    return merge(_with_bases(beside, (*above, path)), table)


def recipe_path(name: str) -> Path:
    return shipped_path(name, "recipe")


def shipped() -> list[str]:
    return _shipped("recipe")


def shipped_path(name: str, kind: str) -> Path:
    """The file of a shipped `kind` (recipe, grid) by its name, or of one's own, which ends in .toml."""
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ConfigError(f"{kind} {name!r}: there is no such file")
        return Path(name)
    if name not in _shipped(kind):
        raise ConfigError(f"there is no {kind} {name!r}{nearest(name, _shipped(kind))}")
    return _folder(kind) / f"{name}.toml"


def _shipped(kind: str) -> list[str]:
    return sorted(path.stem for path in _folder(kind).glob("*.toml"))


def _folder(kind: str) -> Path:
    return Path(str(files("burnish") / f"{kind}s"))


def read_table(path: Path) -> dict[str, Any]:
    """The TOML of a file. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def dump(recipe: Recipe) -> str:
    """The recipe as TOML, every field written out but those that are None."""
    return tomli_w.dumps(as_table(recipe))


def _overridden(table: dict[str, Any], overrides: Sequence[str], place: str = "") -> dict[str, Any]:
    """The table under overrides, whose keys are below `place`."""
    for key, value in _parsed(overrides):
        for part in reversed((place + key).split(".")):
            value = {part: value}
        table = merge(table, value)
    return table


def _parsed(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """Pairs from `--key value` and `--key=value`."""
    pairs, rest = [], list(overrides)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{word!r} was not expected; an override reads --table.key value")
        key, equals, text = word.removeprefix("--").partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"{word} has no value; an override reads --table.key value")
            text = rest.pop(0)
        pairs.append((key, _literal(text)))
    return pairs


def _literal(text: str) -> Any:
    """A TOML value; what is none is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
