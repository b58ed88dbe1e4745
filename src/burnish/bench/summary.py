"""What the finished cells of a grid say, as values; nothing is drawn here, and nothing is loaded but text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.bench.grid import Cell, Grid
from burnish.bench.intervals import Interval, first_reached, interval
from burnish.folder import RunFolder, lines
from burnish.report.record import Line, Record, Spread, read


@dataclass(frozen=True, slots=True)
class Point:
    """A run's held-out reward after so many reward queries and seconds of training.

    seconds: of collecting and updating; evaluation is not counted
    """

    queries: int
    seconds: float
    held_out: Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Mean over seeds after each evaluation; `seconds` and `queries` are means too."""

    queries: tuple[float, ...]
    seconds: tuple[float, ...]
    held_out: tuple[Interval, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """An algorithm under a reward, over the seeds whose cells are finished.

    ends: the held-out mean at the end, by seed
    training: reward of the last iteration's samples
    rise: of the held-out mean, in standard deviations of the seed's own base model; None without those
    reached: how many seeds came up to the level
    queries_to_level, seconds_to_level: median over seeds, in which one that never came up to it counts
        as infinite; where the line between two evaluations crosses it
    guards: `diversity`, `blank` and the like of the held-out samples at the end, means over seeds
    """

    algorithm: str
    records: Mapping[int, Record]
    curve: Curve
    ends: Mapping[int, float]
    held_out: Interval
    training: Interval
    rise: Interval | None
    reached: int
    queries_to_level: float
    seconds_to_level: float
    guards: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A reward's finished algorithms, the highest held-out reward at the end first.

    base: the base model's held-out reward over the seeds of the first in the grid's order
    base_std: of its samples, mean over the seeds
    own_base: algorithms whose base model draws otherwise, by another sampler or guidance
    level_with: those that the first cannot be told apart from, by the 95% interval of the difference
        over the seeds that both have
    """

    reward: str
    standings: tuple[Standing, ...]
    base: Interval
    base_std: float
    base_guards: Mapping[str, float]
    own_base: tuple[str, ...]
    level_with: tuple[str, ...]

    @property
    def first(self) -> Standing:
        return self.standings[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """missing: cells that are not finished; environments: of the finished cells, in their order"""

    name: str
    grid: Grid
    cells: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...]
    environments: tuple[Mapping[str, Any], ...]


def summarise(name: str, grid: Grid, cells: Sequence[Cell], out: Path) -> Summary:
    """What there is of the grid's cells below `out`."""
    records = {str(cell): found for cell in cells if (found := _finished(cell, out))}
    by_place: dict[str, dict[str, dict[int, Record]]] = {reward: {} for reward in grid.rewards}
    for cell in cells:
        if str(cell) in records:
            seeds = by_place[cell.reward].setdefault(cell.algorithm, {})
            seeds[cell.seed] = records[str(cell)]
    return Summary(
        name=name,
        grid=grid,
        cells=tuple(cells),
        missing=tuple(cell for cell in cells if str(cell) not in records),
        comparisons=tuple(
            compare(reward, found, grid.level) for reward, found in by_place.items() if found
        ),
        environments=tuple(record.environment for record in records.values()),
    )


def _finished(cell: Cell, out: Path) -> Record | None:
    """The cell's run if it has done what the grid asks; None if not."""
    folder = RunFolder(out / cell.path)
    if not folder.recipe.is_file() or not any(lines(folder.metrics)):
        return None
    record = read(folder)
    return record if record.done == cell.recipe.training.iterations else None


def compare(reward: str, runs: Mapping[str, Mapping[int, Record]], level: float) -> Comparison:
    """runs: of each algorithm by seed, in the grid's order; at least one of at least one"""
    standings = [standing(name, records, level) for name, records in runs.items()]
    ranked = sorted(standings, key=lambda each: each.held_out.mean, reverse=True)
    reference = {seed: record for found in [*runs.values()][::-1] for seed, record in found.items()}
    bases = [_base(record) for record in reference.values()]
    return Comparison(
        reward=reward,
        standings=tuple(ranked),
        base=interval([base.mean for base in bases]),
        base_std=statistics.fmean(base.std for base in bases),
        base_guards=_guards([record.lines[0] for record in reference.values()]),
        own_base=tuple(name for name, found in runs.items() if _differs(found, reference)),
        level_with=tuple(each.algorithm for each in ranked[1:] if not is_ahead(ranked[0], each)),
    )


def standing(algorithm: str, records: Mapping[int, Record], level: float) -> Standing:
    """records: the algorithm's finished cells, by seed; at least one"""
    paths = {seed: path(record) for seed, record in records.items()}
    ends = {seed: points[-1].held_out.mean for seed, points in paths.items()}
    to_level = [_to_level(points, level) for points in paths.values()]
    return Standing(
        algorithm=algorithm,
        records=records,
        curve=_curve([*records.values()]),
        ends=ends,
        held_out=interval([*ends.values()]),
        training=interval([record.trained[-1][1].mean for record in records.values()]),
        rise=_rise([*paths.values()]),
        reached=sum(math.isfinite(queries) for queries, _ in to_level),
        queries_to_level=statistics.median(queries for queries, _ in to_level),
        seconds_to_level=statistics.median(seconds for _, seconds in to_level),
        guards=_guards([record.lines[-1] for record in records.values()]),
    )


def path(record: Record) -> tuple[Point, ...]:
    """The held-out reward at each evaluation, the base model's first."""
    points, seconds = [], 0.0
    for line in record.lines:
        parts = record.seconds.get(line.number, {})
        seconds += sum(each for name, each in parts.items() if name != "evaluate")
        if line.held_out:
            points.append(Point(line.queries, seconds, line.held_out))
    return tuple(points)


def is_ahead(one: Standing, other: Standing) -> bool:
    """True if the 95% interval of the seeds' differences at the end lies above 0."""
    shared = [one.ends[seed] - other.ends[seed] for seed in one.ends if seed in other.ends]
    return bool(shared) and interval(shared).above_zero


def _to_level(points: Sequence[Point], level: float) -> tuple[float, float]:
    """Queries and seconds until the held-out mean has risen by `level` of the base model's std."""
    base = points[0].held_out
    target = base.mean + level * base.std
    means = [point.held_out.mean for point in points]
    return (
        first_reached([point.queries for point in points], means, target),
        first_reached([point.seconds for point in points], means, target),
    )


def _rise(paths: Sequence[Sequence[Point]]) -> Interval | None:
    pairs = [(points[0].held_out, points[-1].held_out) for points in paths]
    if any(base.std == 0 for base, _ in pairs):
        return None
    return interval([(end.mean - base.mean) / base.std for base, end in pairs])


def _curve(records: Sequence[Record]) -> Curve:
    """Over the iterations after which all of the seeds were evaluated."""
    found = [_by_iteration(record) for record in records]
    shared = sorted(set.intersection(*(set(points) for points in found)))
    at = [[points[number] for points in found] for number in shared]
    return Curve(
        queries=tuple(statistics.fmean(point.queries for point in points) for points in at),
        seconds=tuple(statistics.fmean(point.seconds for point in points) for points in at),
        held_out=tuple(interval([point.held_out.mean for point in points]) for points in at),
    )


def _by_iteration(record: Record) -> dict[int, Point]:
    evaluated = [number for number, _ in record.evaluated]
    return dict(zip(evaluated, path(record), strict=True))


def _base(record: Record) -> Spread:
    assert record.base is not None  # a run evaluates the base model before anything else
    return record.base


def _differs(found: Mapping[int, Record], reference: Mapping[int, Record]) -> bool:
    """True if the algorithm's base model has another held-out reward than the reference of the seed, by
    more than the order of floating-point sums can do: a hundredth of the samples' standard deviation."""
    bases = [(_base(record), _base(reference[seed])) for seed, record in found.items()]
    return any(abs(own.mean - other.mean) > 0.01 * other.std for own, other in bases)


def _guards(measured: Sequence[Line]) -> dict[str, float]:
    return {
        name: statistics.fmean(line.guards[name] for line in measured)
        for name in measured[0].guards
        if all(name in line.guards for line in measured)
    }
