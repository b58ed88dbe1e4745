"""The settings of a grid's recipes, each said once: for all cells, by reward, or by algorithm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from burnish.bench.grid import Cell
from burnish.report.pieces import flat
from burnish.tables import as_table

ABSENT = "—"
"""The value of a key that a recipe does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Values by dotted key.

    by_reward: those that only the reward decides; by_algorithm: all that vary otherwise
    """

    common: Mapping[str, str]
    by_reward: Mapping[str, Mapping[str, str]]
    by_algorithm: Mapping[str, Mapping[str, str]]


def sort(cells: Sequence[Cell]) -> Settings:
    """The seeds of a cell are left out: they differ in nothing else."""
    fields = {(cell.reward, cell.algorithm): _fields(cell) for cell in cells}
    common: dict[str, str] = {}
    by_reward: dict[str, dict[str, str]] = {cell.reward: {} for cell in cells}
    by_algorithm: dict[str, dict[str, str]] = {cell.algorithm: {} for cell in cells}
    for key in dict.fromkeys(key for each in fields.values() for key in each):
        values = {place: each.get(key, ABSENT) for place, each in fields.items()}
        if len(set(values.values())) == 1:
            common[key] = next(iter(values.values()))
        elif all(len(set(_under(values, reward).values())) == 1 for reward in by_reward):
            for reward, own in by_reward.items():
                own[key] = next(iter(_under(values, reward).values()))
        else:
            for algorithm, own in by_algorithm.items():
                own |= _of_algorithm(key, {r: v for (r, a), v in values.items() if a == algorithm})
    return Settings(common=common, by_reward=by_reward, by_algorithm=by_algorithm)


def _fields(cell: Cell) -> dict[str, str]:
    table = as_table(cell.recipe)
    del table["seed"]
    return dict(flat(table))


def _under(values: Mapping[tuple[str, str], str], reward: str) -> dict[str, str]:
    """By algorithm."""
    return {algorithm: value for (r, algorithm), value in values.items() if r == reward}


def _of_algorithm(key: str, by_reward: Mapping[str, str]) -> dict[str, str]:
    """The key's value; where the rewards disagree, one for each of them."""
    if len(set(by_reward.values())) == 1:
        value = next(iter(by_reward.values()))
        return {} if value == ABSENT else {key: value}
    return {f"{key} ({reward})": value for reward, value in by_reward.items()}
