"""Grids: rewards x algorithms x seeds, as a TOML file in and checked recipes out. Nothing here loads torch.

    seeds = [0, 1, 2]
    queries = 2560
    [base]                      recipe fields of all cells
    [rewards.NAME]              recipe fields of a reward's cells; its `reward.name` is NAME unless said
    [algorithms.NAME]           those of an algorithm's; its `algorithm.name` is NAME unless said
    [rewards.NAME.algorithms.NAME]      those of an algorithm under this reward

Later lines of this list have the last word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from burnish.config import read_table, shipped_path
from burnish.recipe import Recipe
from burnish.tables import ConfigError, build, merge

Fields = dict[str, Any]
"""A part of a recipe, as TOML has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of the grid."""

    reward: str
    algorithm: str
    recipe: Recipe

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def path(self) -> Path:
        """Its run folder, below that of the grid."""
        return Path(self.reward, self.algorithm, f"seed-{self.seed}")

    def __str__(self) -> str:
        return self.path.as_posix()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    seeds: tuple[int, ...]
    """Of the cells of each reward and algorithm."""
    queries: int
    """Rewards that each cell may ask for; its `training.iterations` follows."""
    rewards: dict[str, Fields]
    algorithms: dict[str, Fields]
    base: Fields = field(default_factory=dict)
    jobs: int = 1
    """Cells that run side by side; each has an equal share of the processor's cores."""
    level: float = 1.0
    """The rise that the time to reach it is measured for, in standard deviations of the base model's
    held-out rewards."""

    def __post_init__(self) -> None:
        for name in ("seeds", "rewards", "algorithms"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty, expected at least one")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}: a seed is there twice")
        for name in ("queries", "jobs", "level"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)}, expected a positive number")
        for name in (*self.rewards, *self.algorithms):
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(
                    f"{name!r} cannot name a folder, expected letters, digits, '-', '_' and '.'"
                )


def load_grid(name: str) -> tuple[Grid, list[Cell]]:
    """The grid `name` (shipped, or a path that ends in .toml) and all of its cells, seed by seed.

    Raises ConfigError with every cell that cannot be run and the key that is wrong in it.
    """
    path = shipped_path(name, "grid")
    grid = build(Grid, read_table(path), "")
    cells: list[Cell] = []
    faults: dict[str, list[str]] = {}
    for reward in grid.rewards:
        for algorithm in grid.algorithms:
            try:
                cells += _cells(grid, reward, algorithm)
            except ConfigError as error:
                faults.setdefault(str(error), []).append(f"{reward}/{algorithm}")
    if faults:
        raise ConfigError("\n  ".join([f"{path} cannot be run:", *_told(grid, faults)]))
    return grid, sorted(cells, key=lambda cell: grid.seeds.index(cell.seed))


def with_jobs(grid: Grid, jobs: int) -> Grid:
    """The grid with so many cells at a time. Raises ConfigError for a number that cannot be."""
    try:
        return replace(grid, jobs=jobs)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


def _told(grid: Grid, faults: Mapping[str, list[str]]) -> list[str]:
    """A line a fault; one that all cells have is told once."""
    total = len(grid.rewards) * len(grid.algorithms)
    return [
        f"{name}: {fault}"
        for fault, names in faults.items()
        for name in (names if len(names) < total or total == 1 else ["every cell"])
    ]


def _cells(grid: Grid, reward: str, algorithm: str) -> list[Cell]:
    """The cells of a reward and an algorithm."""
    of_reward = dict(grid.rewards[reward])
    place = f"rewards.{reward}.algorithms"
    special = _table(of_reward.pop("algorithms", {}), place)
    for name in special:
        if name not in grid.algorithms:
            known = ", ".join(grid.algorithms)
            raise ConfigError(f"{place}.{name}: the grid has no such algorithm. Known: {known}")
    own = _table(special.get(algorithm, {}), f"{place}.{algorithm}")
    of_algorithm = grid.algorithms[algorithm]
    _refuse(grid.base, "base", RESERVED)
    _refuse(of_reward, f"rewards.{reward}", RESERVED)
    _refuse(of_algorithm, f"algorithms.{algorithm}", {**RESERVED, **OF_THE_REWARD})
    _refuse(own, f"{place}.{algorithm}", {**RESERVED, **OF_THE_REWARD})
    table = merge(grid.base, _named("reward", reward, of_reward))
    table = merge(table, _named("algorithm", algorithm, of_algorithm))
    return _budgeted(grid, reward, algorithm, merge(table, own))


def _budgeted(grid: Grid, reward: str, algorithm: str, table: Fields) -> list[Cell]:
    """The recipe with each seed, and as many iterations as the budget allows."""
    recipe = build(Recipe, table, "")
    samples = recipe.training.samples
    if grid.queries % samples:
        raise ConfigError(
            f"training.samples = {samples} does not divide the grid's queries = {grid.queries}: a "
            "cell is a whole number of iterations"
        )
    table = merge(table, {"training": {"iterations": grid.queries // samples}})
    return [
        Cell(reward=reward, algorithm=algorithm, recipe=build(Recipe, {**table, "seed": seed}, ""))
        for seed in grid.seeds
    ]


RESERVED = {
    "seed": "the grid's seeds are the cells'",
    "training.iterations": "it follows from the grid's queries",
}
OF_THE_REWARD = {
    "reward": "algorithms are compared by the same reward",
    "prompts": "algorithms are compared on the same prompts",
    "evaluation.prompts": "algorithms are compared on the same held-out prompts",
}
"""Keys that a part of the grid may not set, and why."""


def _refuse(fields: Fields, place: str, reserved: Mapping[str, str]) -> None:
    for key, reason in reserved.items():
        head, _, tail = key.partition(".")
        inner = fields.get(head)
        if head in fields and (not tail or (isinstance(inner, Mapping) and tail in inner)):
            raise ConfigError(f"{place}.{key}: {reason}; leave it out")


def _named(kind: str, name: str, fields: Fields) -> Fields:
    """The fields, whose table `kind` has this `name` unless it gives itself one."""
    inner = _table(fields.get(kind, {}), kind)
    return {**fields, kind: {"name": name, **inner}}


def _table(value: Any, place: str) -> Fields:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place} = {value!r}, expected a table")
    return dict(value)
