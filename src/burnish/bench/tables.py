"""The table of a comparison: its columns, and the table as Markdown for the docs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from burnish.bench.intervals import Interval
from burnish.bench.summary import Comparison, Standing, Summary
from burnish.report import words


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What stands in it for an algorithm, and for the base model."""

    title: str
    of: Callable[[Standing], str]
    unit: str = ""
    base: str = ""


def columns(comparison: Comparison, level: float) -> list[Column]:
    digits = decimals(comparison)
    base = comparison.base_guards
    found = [
        Column(
            title="held-out reward",
            of=lambda each: interval(each.held_out, digits),
            base=interval(comparison.base, digits),
        ),
        Column(title="training reward", of=lambda each: interval(each.training, digits)),
        Column(title="rise", unit="base std", of=lambda each: interval(each.rise, 2)),
        Column(
            title=f"queries to +{level:g} std",
            unit="median (seeds that did)",
            of=lambda each: f"{_ever(each.queries_to_level)} ({each.reached}/{len(each.ends)})",
        ),
        Column(
            title=f"seconds to +{level:g} std",
            unit="median",
            of=lambda each: _ever(each.seconds_to_level),
        ),
        Column(
            title="seconds",
            unit="of training",
            of=lambda each: f"{each.curve.seconds[-1]:,.0f}",
        ),
    ]
    return found + [
        Column(
            title=name,
            of=lambda each, name=name: _guard(each.guards.get(name), name),
            base=_guard(base.get(name), name),
        )
        for name in ("diversity", "blank", "watched")
        if name in base
    ]


def decimals(comparison: Comparison) -> int:
    """As many as show two digits of the base model's standard deviation; 2 if it has none."""
    return words.digits(comparison.base_std) if comparison.base_std > 0 else 2


def interval(value: Interval | None, digits: int) -> str:
    if value is None:
        return "—"
    mean = words.fixed(value.mean, digits)
    return mean if value.half is None else f"{mean} ± {words.fixed(value.half, digits)}"


def markdown(summary: Summary) -> str:
    """A heading and a table for each reward."""
    parts = [_markdown(summary, comparison) for comparison in summary.comparisons]
    missing = len(summary.missing)
    if missing:
        parts.append(f"{missing} of {words.count(len(summary.cells), 'cell')} are missing.\n")
    return "\n".join(parts)


def _markdown(summary: Summary, comparison: Comparison) -> str:
    found = columns(comparison, summary.grid.level)
    heads = [f"{column.title} ({column.unit})" if column.unit else column.title for column in found]
    rows = [
        [f"`{each.algorithm}`", *(column.of(each) for column in found)]
        for each in comparison.standings
    ]
    rows.append(["base model", *(column.base for column in found)])
    lines = [["algorithm", *heads], ["---"] * (1 + len(heads)), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {comparison.reward}\n\n{text}\n"


def _ever(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "never"


def _guard(value: float | None, name: str) -> str:
    if value is None:
        return "—"
    return f"{100 * value:.0f}%" if name == "blank" else f"{value:.3f}"
