"""The page of a grid: who is first, then the evidence reward by reward, then what was compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from burnish.bench import settings, tables
from burnish.bench.summary import Comparison, Standing, Summary
from burnish.bench.tables import Column
from burnish.report import charts, pieces, words
from burnish.report.charts import Canvas, Series
from burnish.report.record import Record, Sample

SHOWN = 10
"""Held-out prompts in a grid of samples."""


def page(summary: Summary, faults: Mapping[str, str]) -> str:
    """The whole document. faults: why cells failed, by their names, as far as it is known."""
    title = escape(summary.name)
    header = (
        "<p class=kind>burnish · bench</p>\n"
        f"<h1>{title}</h1>\n<p class=verdict>{_headline(summary)}</p>\n"
        f"<p class=details>{_extent(summary)} {_certainty(summary)} {_missing_sentence(summary)}</p>"
    )
    sections = (
        *(_reward(summary, each) for each in summary.comparisons),
        _missing(summary, faults),
        _settings(summary),
        _environment(summary),
    )
    return pieces.document(title, header, sections, STYLE)


# --- the verdict ---------------------------------------------------------------------------------


def _headline(summary: Summary) -> str:
    if not summary.comparisons:
        return "No cell of the grid is finished."
    won: dict[str, list[str]] = {}
    for each in summary.comparisons:
        won.setdefault(each.first.algorithm, []).append(each.reward)
    parts = [f"{name} on {_names(rewards)}" for name, rewards in won.items()]
    return escape(
        f"Highest held-out reward at {summary.grid.queries:,} queries: {'; '.join(parts)}."
    )


def _certainty(summary: Summary) -> str:
    """Of how many rewards the first is first beyond chance."""
    rivals = [each for each in summary.comparisons if len(each.standings) > 1]
    sure = sum(not each.level_with for each in rivals)
    if len(rivals) < 2:
        return ""
    return (
        f"The first is told apart from every other on {sure or 'none'} of "
        f"{words.count(len(rivals), 'reward')}, by 95% intervals over the seeds."
    )


def _extent(summary: Summary) -> str:
    grid = summary.grid
    counts = (
        words.count(len(grid.rewards), "reward"),
        words.count(len(grid.algorithms), "algorithm"),
        words.count(len(grid.seeds), "seed"),
    )
    return f"{', '.join(counts)}; every cell may ask for {grid.queries:,} rewards."


def _missing_sentence(summary: Summary) -> str:
    missing, total = len(summary.missing), len(summary.cells)
    if not missing:
        return f"All {words.count(total, 'cell')} are finished."
    verb = "is" if missing == 1 else "are"
    text = f"{missing} of {words.count(total, 'cell')} {verb} missing, and left out of all figures."
    return f"<strong>{text}</strong>"


def verdict(comparison: Comparison, queries: int) -> str:
    """Who is first under a reward, and how sure that is."""
    first, count = comparison.first, len(comparison.first.ends)
    size = tables.interval(first.held_out, tables.decimals(comparison))
    text = (
        f"{first.algorithm} has the highest held-out reward after {queries:,} queries, {size} "
        f"over {words.count(count, 'seed')}"
    )
    if first.rise is not None and first.rise.mean <= 0:
        text += ", which is no rise above the base model"
    if len(comparison.standings) == 1:
        return f"{text}; there is no other to compare it with."
    if not comparison.level_with:
        return f"{text}; it is ahead of every other by the 95% interval of the seeds’ differences."
    if count < 2:
        return f"{text}; one seed cannot tell it apart from the others."
    return (
        f"{text}; the 95% interval of the seeds’ differences does not tell it apart from "
        f"{_names(comparison.level_with)}."
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


# --- a reward ------------------------------------------------------------------------------------


def _reward(summary: Summary, comparison: Comparison) -> str:
    content = (
        _curves(summary, comparison)
        + _table(summary, comparison)
        + _notes(summary, comparison)
        + _samples(summary, comparison)
    )
    text = escape(verdict(comparison, summary.grid.queries))
    return pieces.section(escape(comparison.reward), content, text)


def _curves(summary: Summary, comparison: Comparison) -> str:
    """Held-out reward against reward queries and against seconds, with one legend."""
    keys = "".join(
        f"<li{_key(summary, each.algorithm)}>{escape(each.algorithm)}"
        for each in comparison.standings
    )
    level = summary.grid.level
    lines = "<li class=dash>base model<li class=dots>" + f"{level:g} std of its rewards above"
    along = {
        "queries": ("reward queries", "Held-out reward by reward queries"),
        "seconds": ("seconds of training", "Held-out reward by training time"),
    }
    figures = "".join(
        pieces.figure(_curve(summary, comparison, name, axis), title, "")
        for name, (axis, title) in along.items()
    )
    return (
        f"<ul class=legend>{keys}{lines}</ul>"
        f'<div class="grid columns-2 curves">{figures}</div>'
        "<p class=small>Mean over seeds and its 95% t-interval, drawn as far as the axis goes. "
        "Evaluation is not counted in the seconds.</p>"
    )


def _curve(summary: Summary, comparison: Comparison, name: str, along: str) -> str:
    base = comparison.base.mean
    level = base + summary.grid.level * comparison.base_std
    series = [
        Series(
            number=_number(summary, each.algorithm),
            x=each.curve.queries if name == "queries" else each.curve.seconds,
            y=[interval.mean for interval in each.curve.held_out],
            half=[interval.half for interval in each.curve.held_out],
        )
        for each in comparison.standings
    ]
    digits = tables.decimals(comparison)
    ends = ", ".join(
        f"{each.algorithm} {words.fixed(each.held_out.mean, digits)}"
        for each in comparison.standings
    )
    canvas = Canvas(
        name=pieces.slug(f"{comparison.reward}-{name}"),
        label=(
            f"Held-out reward on {comparison.reward} against {along}. The base model: "
            f"{words.fixed(base, digits)}. At the end: {ends}."
        ),
        width=524,
        height=320,
    )
    unit = words.unit(_reward_name(comparison))
    return charts.comparison(canvas, series, base, level, unit, along)


def _reward_name(comparison: Comparison) -> str:
    """What the recipes call the reward; the grid may have another name for it."""
    record = next(iter(comparison.first.records.values()))
    return record.recipe["reward"]["name"]


def _number(summary: Summary, algorithm: str) -> int:
    """The algorithm's place in the grid, which gives it its colour under every reward."""
    return list(summary.grid.algorithms).index(algorithm)


def _key(summary: Summary, algorithm: str) -> str:
    color = charts.SERIES[_number(summary, algorithm) % len(charts.SERIES)]
    return f' style="--key: var(--{color})"'


def _table(summary: Summary, comparison: Comparison) -> str:
    columns = tables.columns(comparison, summary.grid.level)
    head = "".join(
        f"<th scope=col>{escape(column.title)}<small>{escape(column.unit)}</small>"
        for column in columns
    )
    rows = "".join(
        f"<tr><th scope=row><span class=key{_key(summary, each.algorithm)}></span>"
        f"{escape(each.algorithm)}{_cells(columns, each)}</tr>"
        for each in comparison.standings
    )
    base = "".join(f"<td>{escape(column.base)}" for column in columns)
    return (
        "<div class=scroll><table class=standings><thead><tr><th scope=col>"
        f"<small></small>{head}</tr></thead><tbody>{rows}"
        f"<tr class=base><th scope=row>base model{base}</tr></tbody></table></div>"
    )


def _cells(columns: Sequence[Column], standing: Standing) -> str:
    return "".join(f"<td>{escape(column.of(standing))}" for column in columns)


def _notes(summary: Summary, comparison: Comparison) -> str:
    """What a reader must know to take the table as it is meant."""
    seeds = len(summary.grid.seeds)
    notes = [
        "± is half the 95% t-interval of the mean over seeds. Rise: in standard deviations of the "
        "samples of the base model. Time to the level: the median over seeds; one that never came up "
        "to it counts as never."
    ]
    short = [each.algorithm for each in comparison.standings if len(each.ends) < seeds]
    if short:
        notes.append(f"Fewer than {seeds} seeds are finished of {_names(short)}.")
    if comparison.own_base:
        verb = "samples" if len(comparison.own_base) == 1 else "sample"
        notes.append(
            f"{_names(comparison.own_base)} {verb} otherwise, and so from another base model’s reward "
            "than the one drawn here; rise and level are measured from their own."
        )
    over = [
        each.algorithm
        for each in comparison.standings
        if each.curve.queries[-1] > summary.grid.queries
    ]
    if over:
        notes.append(f"Asked for more rewards than the grid allows: {_names(over)}.")
    return f"<p class=small>{escape(' '.join(notes))}</p>"


# --- samples -------------------------------------------------------------------------------------


def _samples(summary: Summary, comparison: Comparison) -> str:
    """The base model's row, then one an algorithm, in the order of the table; columns are prompts."""
    seed = next(seed for seed in summary.grid.seeds if seed in comparison.first.records)
    rows = [
        (each.algorithm, each.records[seed])
        for each in comparison.standings
        if seed in each.records and each.records[seed].held_out
    ]
    if not rows:
        return ""
    digits = tables.decimals(comparison)
    before = rows[0][1].held_out[min(rows[0][1].held_out)][:SHOWN]
    lines = [_row("base model", "", before, digits)]
    lines += [
        _row(name, _key(summary, name), _newest(record)[: len(before)], digits)
        for name, record in rows
    ]
    prompts = "".join(f"<p>{escape(sample.prompt)}</p>" for sample in before)
    return (
        f"<h3 class=samples-title>The first {words.count(len(before), 'held-out prompt')}, not chosen; "
        f"seed {seed}</h3><p class=small>Pictures of a column come from the same prompt and the same "
        "noise. The numbers are rewards.</p>"
        f'<div class=scroll><div class=samples style="--columns: {len(before)}">'
        f"{''.join(lines)}<span></span>{prompts}</div></div>"
    )


def _newest(record: Record) -> Sequence[Sample]:
    return record.held_out[max(record.held_out)]


def _row(name: str, key: str, samples: Sequence[Sample], digits: int) -> str:
    mark = f"<span class=key{key}></span>" if key else ""
    pictures = "".join(
        f"<div>{pieces.picture(sample, f'{name}: {sample.prompt}')}"
        f"<small>{words.fixed(sample.reward, digits)}</small></div>"
        for sample in samples
    )
    return f"<h4>{mark}{escape(name)}</h4>{pictures}"


# --- what was compared ---------------------------------------------------------------------------


def _missing(summary: Summary, faults: Mapping[str, str]) -> str:
    rows = "".join(
        f"<div><dt>{escape(str(cell))}</dt><dd>{escape(faults.get(str(cell), 'not finished'))}</dd></div>"
        for cell in summary.missing
    )
    return pieces.section("Missing cells", f"<dl>{rows}</dl>" if rows else "")


def _settings(summary: Summary) -> str:
    found = settings.sort(summary.cells)
    return pieces.section(
        "Settings",
        f"{_blocks(found.by_algorithm)}{_blocks(found.by_reward)}"
        "<details><summary>What all cells share</summary>"
        f"{_blocks({'all cells': found.common})}</details>",
        "The resolved recipes with every default; what all cells share is folded away.",
    )


def _blocks(tables: Mapping[str, Mapping[str, Any]]) -> str:
    blocks = "".join(pieces.block(name, table) for name, table in tables.items() if table)
    return f"<div class=blocks>{blocks}</div>"


def _environment(summary: Summary) -> str:
    """That of the first finished cell, and whether the others had another."""
    if not summary.environments:
        return ""
    first = summary.environments[0]
    shown = {k: v for k, v in first.items() if k != "command" and v is not None}
    nested = {name: value for name, value in shown.items() if isinstance(value, Mapping)}
    top = {name: value for name, value in shown.items() if name not in nested}
    text = f"{words.count(summary.grid.jobs, 'cell')} at a time."
    for name, what in VARYING.items():
        kinds = len({str(each.get(name)) for each in summary.environments})
        if kinds > 1:
            text += f" The cells come from {kinds} {what}; the first cell’s is shown."
    return pieces.section("Environment", _blocks({"software": top, **nested}), text)


VARYING = {"git": "versions of the code", "machine": "machines", "threads": "numbers of threads"}
"""What of the environment should be the same for all cells."""

STYLE = """
section > .legend { margin: 0 0 14px; font-size: 13px; color: var(--muted); }
.legend .dash::before, .legend .dots::before { height: 2px; --dash: 2px; }
.legend .dash::before { --dash: 5px; }
.legend .dash::before, .legend .dots::before {
  background: repeating-linear-gradient(
    90deg, var(--before) 0 var(--dash), #0000 var(--dash) calc(var(--dash) + 2px)
  );
}
.small { margin: 10px 0 0; max-width: 74em; font-size: 13px; line-height: 1.5; color: var(--muted); }
.scroll { overflow-x: auto; }
.key { display: inline-block; width: 10px; height: 10px; margin-right: 8px; border-radius: 2px; }
.key { background: var(--key); }
.standings { width: 100%; margin-top: 26px; font-size: 13px; }
.standings th, .standings td { padding: 5px 0 5px 14px; }
.standings th:first-child { padding-left: 0; text-align: left; }
.standings thead th { vertical-align: bottom; line-height: 1.3; }
.standings small { display: block; font-size: 11.5px; color: var(--muted); }
.standings tbody tr:first-child td, .standings tbody tr:first-child th { font-weight: 600; }
.standings .base th, .standings .base td { color: var(--muted); }
.samples-title { margin: 34px 0 0; }
.samples {
  display: grid; gap: 6px; align-items: center; min-width: 760px; margin-top: 14px;
  grid-template-columns: 112px repeat(var(--columns), minmax(0, 110px));
}
.samples h4 { margin: 0 0 18px; font-size: 13px; font-weight: 400; overflow-wrap: anywhere; }
.samples img { display: block; width: 100%; height: auto; background: var(--panel); }
.samples small { display: block; height: 18px; font-size: 11.5px; line-height: 18px; }
.samples small, .samples p { color: var(--muted); }
.samples p { align-self: start; margin: 0; font-size: 11.5px; line-height: 1.35; overflow-wrap: anywhere; }
"""
