"""The report as one page of HTML: the verdict first, then the evidence, then what was asked."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from burnish.report import charts, pieces, words
from burnish.report.charts import Canvas
from burnish.report.record import Change, Line, Record, Sample, Spread

SHOWN = 24
"""Pairs of images on the page."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """How a quantity is titled and explained; `unit` is empty for a pure number."""

    title: str
    unit: str
    text: str


MEANINGS = {
    "first_log_ratio": Meaning(
        "First log-ratio",
        "nats per dimension",
        "Largest of the policy to itself, before any update: rounding error only.",
    ),
    "log_ratio": Meaning(
        "Log-ratio", "nats per dimension", "Of the new policy to the one that sampled."
    ),
    "approx_kl": Meaning(
        "Approximate KL", "nats per step", "From the policy that sampled to the new one."
    ),
    "clip_fraction": Meaning(
        "Clip fraction", "fraction of rows", "Rows whose ratio left the clipping interval."
    ),
    "reward_change": Meaning(
        "Reward change", "the reward's", "Of a chain that is run again, from when it was drawn."
    ),
    "loss": Meaning("Loss", "", "A policy gradient’s loss need not fall."),
    "grad_norm": Meaning("Gradient norm", "2-norm", "Before clipping, mean over the updates."),
    "advantage_clipped": Meaning(
        "Clipped advantages", "fraction of samples", "Samples whose advantage met its bound."
    ),
    "kl_to_reference": Meaning(
        "KL to the base model", "nats per step", "Exact, of the policy to the base model."
    ),
    "groups_without_spread": Meaning(
        "Groups without spread", "fraction of groups", "Their samples had one reward: no signal."
    ),
    "margin": Meaning("Margin", "", "By how much the preferred side is likelier, times beta."),
    "preferred": Meaning(
        "Preferred", "fraction of pairs", "Pairs that the policy orders as the reward does."
    ),
    "denoising_error": Meaning(
        "Denoising error", "mean square", "Of the network on the samples that it is fitted to."
    ),
    "samples_used": Meaning(
        "Samples used", "fraction of samples", "Those that any row was made of."
    ),
    "dropped": Meaning(
        "Dropped samples", "samples", "Left out, since their reward could not be had; else 0."
    ),
    "effective_samples": Meaning(
        "Effective samples",
        "fraction of samples",
        "What the weighted samples are worth, unweighted.",
    ),
    "potential_explains": Meaning(
        "Potential", "share of the advantages’ variance", "What shaping took away; below 0 it adds."
    ),
    "eta": Meaning("Noise level", "sampler’s eta", "Of the iteration; evaluation has its end."),
    "exploration_epsilon": Meaning(
        "Exploration", "chance an action", "That it is drawn from the other distribution."
    ),
    "diversity": Meaning(
        "Diversity", "RMS distance of pixels in 0–1", "Mean over all pairs of held-out samples."
    ),
    "blank": Meaning("Blank images", "fraction of images", "Held-out samples that hardly vary."),
    "watched": Meaning(
        "Watched reward", "mean of held-out samples", "Measured beside, and not optimised."
    ),
}
"""In the order of the page. A quantity that is not here is titled by its name."""


def page(record: Record) -> str:
    """The whole document."""
    sections = (
        _pairs(record),
        _rewards(record),
        _steps(record),
        _health(record),
        _timing(record),
        _asked(record),
        _environment(record),
    )
    title = escape(record.name)
    header = f"<p class=kind>{_kind(record)}</p>\n<h1>{title}</h1>\n{verdict(record)}"
    return pieces.document(title, header, sections)


def _kind(record: Record) -> str:
    """Which model was trained for what and how, by their names in the recipe."""
    tables = (record.recipe.get(table, {}) for table in ("model", "reward", "algorithm"))
    names = [str(table["name"]) for table in tables if "name" in table]
    return " · ".join(["burnish", *map(escape, names)])


# --- the verdict ---------------------------------------------------------------------------------


def verdict(record: Record) -> str:
    """What came of the run: a sentence on the held-out reward, then the rest of the figures."""
    details = (
        _stopped(record),
        _training_sentence(record),
        _guard_sentence(record),
        _effort_sentence(record),
    )
    rest = " ".join(sentence for sentence in details if sentence)
    return f"<p class=verdict>{_headline(record)}</p>\n<p class=details>{rest}</p>"


def _headline(record: Record) -> str:
    if not record.evaluated:
        return "No held-out reward was measured."
    first, last = record.evaluated[0][1], record.evaluated[-1][1]
    decimals = _decimals(record)
    if len(record.evaluated) < 2:
        mean, std = words.fixed(first.mean, decimals), words.fixed(first.std, decimals)
        return f"Held-out reward of the base model: {mean} ± {std}."
    before, after = words.fixed(first.mean, decimals), words.fixed(last.mean, decimals)
    if not _changed(record, first, last):
        return f"Held-out reward did not measurably change: {before} before, {after} after."
    verb = "rose" if last.mean > first.mean else "fell"
    size = ""
    if first.std > 0:
        lift = abs(last.mean - first.mean) / first.std
        size = f", by {lift:.1f} standard deviations of the base model’s samples"
    return f"Held-out reward {verb} from {before} to {after}{size}."


def _changed(record: Record, first: Spread, last: Spread) -> bool:
    """Beyond two standard errors of the paired difference, where there are pairs."""
    if record.change is None:
        return first.mean != last.mean
    return abs(record.change.mean) > 2 * record.change.error


def _stopped(record: Record) -> str:
    if record.done >= record.asked:
        return ""
    text = f"Stopped after {record.done} of {words.count(record.asked, 'iteration')}."
    return f"<strong>{text}</strong>"


def _training_sentence(record: Record) -> str:
    if not record.trained:
        return ""
    decimals = _decimals(record)
    (first, before), (last, after) = record.trained[0], record.trained[-1]
    if first == last:
        return f"Training reward was {words.fixed(before.mean, decimals)} in iteration {first}."
    return (
        f"Training reward went from {words.fixed(before.mean, decimals)} in iteration {first} to "
        f"{words.fixed(after.mean, decimals)} in iteration {last}."
    )


def _guard_sentence(record: Record) -> str:
    """Diversity, the watched reward, and blank images, of the held-out samples."""
    evaluated = [line for line in record.lines if line.held_out]
    if not evaluated:
        return ""
    first, last = evaluated[0], evaluated[-1]
    parts = []
    told = {"diversity": "diversity of the held-out samples", "watched": "their watched reward"}
    for name, title in told.items():
        if name in first.guards and name in last.guards:
            before, after = first.guards[name], last.guards[name]
            change = f"{before:.2f} → {after:.2f}" if len(evaluated) > 1 else f"{before:.2f}"
            parts.append(f"{title} {change}")
    if "blank" in last.guards:
        parts.append(_blank(last))
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if parts else ""


def _blank(line: Line) -> str:
    assert line.held_out is not None
    number = round(line.guards["blank"] * line.held_out.count)
    if number == 0:
        return "no blank images"
    return f"<strong>{number:,} of {words.count(line.held_out.count, 'image')} blank</strong>"


def _effort_sentence(record: Record) -> str:
    parts = [words.count(record.lines[-1].queries, "reward query", "reward queries")]
    if record.done >= record.asked:
        parts.insert(0, words.count(record.done, "iteration"))
    if record.seconds:
        parts.append(words.duration(record.total_seconds))
    return f"{', '.join(parts)}."


# --- the sections --------------------------------------------------------------------------------


def _pairs(record: Record) -> str:
    """Pictures before and after; of the only evaluation, if there is but one."""
    numbers, decimals = sorted(record.held_out), _decimals(record)
    if len(numbers) == 1:
        name = _after(numbers[0])
        shown = record.held_out[numbers[0]][:SHOWN]
        cards = "".join(_card([(name, each)], decimals) for each in shown)
        return pieces.section("Held-out samples", f"<div class=pairs>{cards}</div>")
    pairs = record.pairs[:SHOWN]
    if not pairs:
        return ""
    cards = "".join(_card([("before", a), ("after", b)], decimals) for a, b in pairs)
    text = (
        f"The first {len(pairs)} of {words.count(len(record.pairs), 'held-out prompt')}, in their order, "
        "not chosen. Both pictures of a pair come from the same prompt and the same noise. Before: "
        f"{_after(numbers[0])}. After: {_after(numbers[-1])}. The numbers are rewards."
    )
    return pieces.section("Before and after", f"<div class=pairs>{cards}</div>", text)


def _after(number: int) -> str:
    return "base model" if number == 0 else words.count(number, "iteration")


def _card(named: Sequence[tuple[str, Sample]], decimals: int) -> str:
    """Pictures of one prompt side by side, each with its name and reward."""
    prompt = escape(named[0][1].prompt)
    pictures = "".join(
        f"<div class={'after' if name == 'after' else 'before'}>"
        f"{pieces.picture(sample, f'{name}: {sample.prompt}')}"
        f"<p><span>{name}</span> <b>{words.fixed(sample.reward, decimals)}</b></p></div>"
        for name, sample in named
    )
    return f"<figure class=pair><div class=both>{pictures}</div><figcaption>{prompt}</figcaption></figure>"


def _rewards(record: Record) -> str:
    unit = _unit(record)
    label = _curve_label(record)
    wide = Canvas(name="reward", label=label, width=660, height=330)
    narrow = Canvas(name="reward-narrow", label=label, width=390, height=280)
    curve = pieces.figure(
        f"<div class=wide>{charts.reward_curve(wide, record, unit)}</div>"
        f"<div class=narrow>{charts.reward_curve(narrow, record, unit)}</div>",
        "Reward over the iterations",
        "Bands are ± 1 standard deviation of the samples, not of the mean.",
        legend=(("train", "training"), ("after", "held-out"), ("before", "base model, held-out")),
    )
    content = f"<div class=hero>{curve}{_histogram(record, unit)}</div>{_numbers(record)}"
    return pieces.section("Reward", content)


def _curve_label(record: Record) -> str:
    parts = []
    for name, points in (("Training", record.trained), ("Held-out", record.evaluated)):
        if points:
            means = {number: reward.mean for number, reward in points}
            parts.append(_trend(f"{name} reward", means))
    return " ".join(parts)


def _histogram(record: Record, unit: str) -> str:
    numbers = sorted(record.held_out)
    if not numbers:
        return ""
    before = [sample.reward for sample in record.held_out[numbers[0]]]
    after = [sample.reward for sample in record.held_out[numbers[-1]]] if len(numbers) > 1 else []
    label = f"Histogram of {len(before)} held-out rewards, before and after."
    canvas = Canvas(name="histogram", label=label, width=380, height=330)
    text = "Dashed lines are the means."
    if record.change:
        text += f" Mean difference of a pair: {_change(record.change)} (standard error)."
    legend = (("before", "before"), ("after", "after")) if after else (("before", "base model"),)
    chart = charts.histogram(canvas, before, after, unit)
    return pieces.figure(chart, "Held-out rewards", text, legend=legend)


def _change(change: Change) -> str:
    digits = words.digits(change.error) if change.error > 0 else 3
    return f"{'+' if change.mean > 0 else ''}{words.fixed(change.mean, digits)} ± {change.error:.{digits}f}"


def _numbers(record: Record) -> str:
    """The curve as a table, folded away."""
    decimals = _decimals(record)
    rows = "".join(
        f"<tr><th scope=row>{line.number}<td>{line.queries:,}"
        f"<td>{_spread(line.reward, decimals)}<td>{_spread(line.held_out, decimals)}</tr>"
        for line in record.lines
    )
    head = "".join(
        f"<th scope=col>{name}" for name in ("iteration", "queries", "training", "held-out")
    )
    return (
        "<details><summary>The numbers (mean ± standard deviation)</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>"
    )


def _spread(reward: Spread | None, decimals: int) -> str:
    if reward is None:
        return ""
    return f"{words.fixed(reward.mean, decimals)} ± {words.fixed(reward.std, decimals)}"


def _steps(record: Record) -> str:
    names = _ordered(name for line in record.lines for name in line.by_step)
    columns = 3 if len(names) in (3, 5, 6) else 2
    figures = "".join(_heat_map(record, name, columns) for name in names)
    text = (
        "Each denoising step of each iteration; step 0 begins from pure noise. The stronger the "
        "colour, the larger the value."
    )
    return pieces.section("Denoising steps", pieces.grid(figures, columns, "heat"), text)


def _heat_map(record: Record, name: str, columns: int) -> str:
    found = {line.number: line.by_step[name] for line in record.lines if name in line.by_step}
    meaning = _meaning(name)
    values = [value for column in found.values() for value in column.values()]
    label = (
        f"Heat map of {meaning.title.lower()} over {words.count(len(found), 'iteration')} and "
        f"{words.count(len(set().union(*found.values())), 'denoising step')}: "
        f"{words.significant(min(values))} to {words.significant(max(values))} {meaning.unit}."
    )
    canvas = Canvas(
        name=f"step-{pieces.slug(name)}",
        label=label,
        width=340 if columns == 3 else 460,
        height=210,
    )
    chart = charts.heat_map(canvas, found, meaning.unit)
    return pieces.figure(chart, meaning.title, meaning.text)


def _health(record: Record) -> str:
    """Every metric and every held-out guard, also those that nobody foresaw."""
    found: dict[str, dict[int, float]] = {}
    for line in record.lines:
        for name, value in {**line.metrics, **line.guards}.items():
            found.setdefault(name, {})[line.number] = value
    figures = "".join(_small_chart(name, found[name]) for name in _ordered(found))
    tolerance = record.recipe.get("training", {}).get("ratio_tolerance")
    text = ""
    if tolerance and "first_log_ratio" in found:
        text = f"A first log-ratio above {words.significant(tolerance)} would have stopped the run."
    return pieces.section("Health", pieces.grid(figures, 3), text)


def _small_chart(name: str, points: Mapping[int, float]) -> str:
    meaning = _meaning(name)
    canvas = Canvas(
        name=f"metric-{pieces.slug(name)}",
        label=_trend(meaning.title, points),
        width=340,
        height=170,
    )
    return pieces.figure(charts.line(canvas, points, meaning.unit), meaning.title, meaning.text)


def _timing(record: Record) -> str:
    if not record.seconds:
        return ""
    parts = list(dict.fromkeys(part for each in record.seconds.values() for part in each))
    parts = sorted(parts, key=lambda part: part == "evaluate")
    label = f"Stacked bars: seconds of each iteration for {', '.join(parts)}. {_pace(record)}"
    legend = tuple((charts.PARTS[i % len(charts.PARTS)], part) for i, part in enumerate(parts))
    wide = Canvas(name="timing", label=label, width=1060, height=220)
    narrow = Canvas(name="timing-narrow", label=label, width=390, height=220)
    content = pieces.figure(
        f"<div class=wide>{charts.stacked(wide, record.seconds, parts)}</div>"
        f"<div class=narrow>{charts.stacked(narrow, record.seconds, parts)}</div>",
        "Seconds an iteration",
        "",
        legend=legend,
    )
    return pieces.section("Timing", content, _pace(record))


def _pace(record: Record) -> str:
    """Medians over the iterations; evaluation is not counted as training."""
    learning = {
        number: sum(seconds for part, seconds in parts.items() if part != "evaluate")
        for number, parts in record.seconds.items()
    }
    rates = [
        reward.count / learning[number]
        for number, reward in record.trained
        if learning.get(number, 0) > 0
    ]
    text = f"{words.duration(record.total_seconds)} in all."
    if not rates:
        return text
    typical = statistics.median(
        learning[number] for number, _ in record.trained if number in learning
    )
    return (
        f"{text} A typical iteration takes {words.significant(typical)} s without evaluation: "
        f"{words.significant(statistics.median(rates))} samples a second, sampled, scored and trained on "
        "(medians)."
    )


def _asked(record: Record) -> str:
    tables = {name: value for name, value in record.recipe.items() if isinstance(value, Mapping)}
    top = {name: value for name, value in record.recipe.items() if name not in tables}
    blocks = "".join(pieces.block(name, table) for name, table in tables.items())
    command = record.environment.get("command")
    content = f"<pre><code>{escape(str(command))}</code></pre>\n" if command else ""
    content += f"<div class=blocks>{pieces.block('run', top) if top else ''}{blocks}</div>"
    return pieces.section(
        "What was asked", content, "The resolved recipe, with every default written out."
    )


def _environment(record: Record) -> str:
    known = {k: v for k, v in record.environment.items() if k != "command" and v is not None}
    nested = {name: value for name, value in known.items() if isinstance(value, Mapping)}
    top = {name: value for name, value in known.items() if name not in nested}
    blocks = [pieces.block("software", top)] if top else []
    blocks += [pieces.block(name, table) for name, table in nested.items()]
    return pieces.section(
        "Environment", f"<div class=blocks>{''.join(blocks)}</div>" if blocks else ""
    )


# --- pieces --------------------------------------------------------------------------------------


def _ordered(names: Iterable[str]) -> list[str]:
    """Known quantities in the order of the page, then the others by name."""
    order = list(MEANINGS)
    return sorted(
        set(names), key=lambda name: (order.index(name) if name in order else len(order), name)
    )


def _meaning(name: str) -> Meaning:
    return MEANINGS.get(name) or Meaning(name.replace("_", " ").capitalize(), "", "")


def _unit(record: Record) -> str:
    return words.unit(record.recipe.get("reward", {}).get("name", ""))


# --- numbers in words ----------------------------------------------------------------------------


def _trend(title: str, points: Mapping[int, float]) -> str:
    """A curve for those who cannot see it."""
    numbers = list(points)
    first, last = points[numbers[0]], points[numbers[-1]]
    if len(numbers) == 1:
        return f"{title}: {words.significant(first)} at iteration {numbers[0]}."
    return (
        f"{title}: {words.significant(first)} at iteration {numbers[0]}, {words.significant(last)} at "
        f"iteration {numbers[-1]}; lowest {words.significant(min(points.values()))}, highest "
        f"{words.significant(max(points.values()))}."
    )


def _decimals(record: Record) -> int:
    """As many as show two digits of the samples' standard deviation."""
    spreads = [reward for _, reward in (*record.evaluated, *record.trained)]
    std = next((reward.std for reward in spreads if reward.std > 0), 0.0)
    return words.digits(std) if std > 0 else 2
