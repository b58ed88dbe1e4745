"""The report as one page of HTML: the verdict first, then the evidence, then what was asked."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image

from burnish.report import charts
from burnish.report.charts import Canvas
from burnish.report.record import Change, Line, Record, Sample, Spread

SHOWN = 24
"""Pairs of images on the page."""

THUMBNAIL = 256
"""Larger images are embedded at most this wide and high, in pixels."""

PIXEL_ART = 128
"""Images up to this wide and high, in pixels, are enlarged with hard edges."""

UNITS = {
    "compressibility": "minus kB of JPEG",
    "incompressibility": "kB of JPEG",
    "brightness": "mean luma in 0–1",
    "portrait-likelihood": "nats per attribute",
}
"""Of the shipped rewards; any other is in its own unit."""


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
    "diversity": Meaning(
        "Diversity", "RMS distance of pixels in 0–1", "Mean over all pairs of held-out samples."
    ),
    "blank": Meaning("Blank images", "fraction of images", "Held-out samples that hardly vary."),
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
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title} · burnish</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<p class=kind>{_kind(record)}</p>\n<h1>{title}</h1>\n{verdict(record)}\n"
        f"</header>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


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
        mean, std = _fixed(first.mean, decimals), _fixed(first.std, decimals)
        return f"Held-out reward of the base model: {mean} ± {std}."
    before, after = _fixed(first.mean, decimals), _fixed(last.mean, decimals)
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
    text = f"Stopped after {record.done} of {_count(record.asked, 'iteration')}."
    return f"<strong>{text}</strong>"


def _training_sentence(record: Record) -> str:
    if not record.trained:
        return ""
    decimals = _decimals(record)
    (first, before), (last, after) = record.trained[0], record.trained[-1]
    if first == last:
        return f"Training reward was {_fixed(before.mean, decimals)} in iteration {first}."
    return (
        f"Training reward went from {_fixed(before.mean, decimals)} in iteration {first} to "
        f"{_fixed(after.mean, decimals)} in iteration {last}."
    )


def _guard_sentence(record: Record) -> str:
    """Diversity, and blank images, of the held-out samples."""
    evaluated = [line for line in record.lines if line.held_out]
    if not evaluated:
        return ""
    first, last = evaluated[0], evaluated[-1]
    parts = []
    if "diversity" in first.guards and "diversity" in last.guards:
        before, after = first.guards["diversity"], last.guards["diversity"]
        change = f"{before:.2f} → {after:.2f}" if len(evaluated) > 1 else f"{before:.2f}"
        parts.append(f"diversity of the held-out samples {change}")
    if "blank" in last.guards:
        parts.append(_blank(last))
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if parts else ""


def _blank(line: Line) -> str:
    assert line.held_out is not None
    number = round(line.guards["blank"] * line.held_out.count)
    if number == 0:
        return "no blank images"
    return f"<strong>{number:,} of {_count(line.held_out.count, 'image')} blank</strong>"


def _effort_sentence(record: Record) -> str:
    parts = [_count(record.lines[-1].queries, "reward query", "reward queries")]
    if record.done >= record.asked:
        parts.insert(0, _count(record.done, "iteration"))
    if record.seconds:
        parts.append(_duration(record.total_seconds))
    return f"{', '.join(parts)}."


# --- the sections --------------------------------------------------------------------------------


def _section(title: str, content: str, text: str = "") -> str:
    if not content:
        return ""
    intro = f"<p class=intro>{text}</p>\n" if text else ""
    name = title.lower().replace(" ", "-")
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n'
        f"{intro}{content}\n</section>\n"
    )


def _pairs(record: Record) -> str:
    """Pictures before and after; of the only evaluation, if there is but one."""
    numbers, decimals = sorted(record.held_out), _decimals(record)
    if len(numbers) == 1:
        name = _after(numbers[0])
        shown = record.held_out[numbers[0]][:SHOWN]
        cards = "".join(_card([(name, each)], decimals) for each in shown)
        return _section("Held-out samples", f"<div class=pairs>{cards}</div>")
    pairs = record.pairs[:SHOWN]
    if not pairs:
        return ""
    cards = "".join(_card([("before", a), ("after", b)], decimals) for a, b in pairs)
    text = (
        f"The first {len(pairs)} of {_count(len(record.pairs), 'held-out prompt')}, in their order, "
        "not chosen. Both pictures of a pair come from the same prompt and the same noise. Before: "
        f"{_after(numbers[0])}. After: {_after(numbers[-1])}. The numbers are rewards."
    )
    return _section("Before and after", f"<div class=pairs>{cards}</div>", text)


def _after(number: int) -> str:
    return "base model" if number == 0 else _count(number, "iteration")


def _card(named: Sequence[tuple[str, Sample]], decimals: int) -> str:
    """Pictures of one prompt side by side, each with its name and reward."""
    prompt = escape(named[0][1].prompt)
    pictures = "".join(
        f"<div class={'after' if name == 'after' else 'before'}>"
        f"{_picture(sample, f'{name}: {sample.prompt}')}"
        f"<p><span>{name}</span> <b>{_fixed(sample.reward, decimals)}</b></p></div>"
        for name, sample in named
    )
    return f"<figure class=pair><div class=both>{pictures}</div><figcaption>{prompt}</figcaption></figure>"


def _picture(sample: Sample, text: str) -> str:
    with Image.open(sample.image) as image:
        width, height = image.size
        if max(width, height) <= THUMBNAIL:
            kind, content = "png", sample.image.read_bytes()
        else:
            kind, content = "jpeg", _thumbnail(image)
    sharp = " class=pixels" if max(width, height) <= PIXEL_ART else ""
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f'<img{sharp} src="{source}" width={width} height={height} alt="{escape(text)}">'


def _thumbnail(image: Image.Image) -> bytes:
    """The image as JPEG, at most `THUMBNAIL` pixels wide and high."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def _rewards(record: Record) -> str:
    unit = _unit(record)
    label = _curve_label(record)
    wide = Canvas(name="reward", label=label, width=660, height=330)
    narrow = Canvas(name="reward-narrow", label=label, width=390, height=280)
    curve = _figure(
        f"<div class=wide>{charts.reward_curve(wide, record, unit)}</div>"
        f"<div class=narrow>{charts.reward_curve(narrow, record, unit)}</div>",
        "Reward over the iterations",
        "Bands are ± 1 standard deviation of the samples, not of the mean.",
        legend=(("train", "training"), ("after", "held-out"), ("before", "base model, held-out")),
    )
    content = f"<div class=hero>{curve}{_histogram(record, unit)}</div>{_numbers(record)}"
    return _section("Reward", content)


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
    return _figure(chart, "Held-out rewards", text, legend=legend)


def _change(change: Change) -> str:
    digits = _digits(change.error) if change.error > 0 else 3
    return (
        f"{'+' if change.mean > 0 else ''}{_fixed(change.mean, digits)} ± {change.error:.{digits}f}"
    )


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
    return f"{_fixed(reward.mean, decimals)} ± {_fixed(reward.std, decimals)}"


def _steps(record: Record) -> str:
    names = _ordered(name for line in record.lines for name in line.by_step)
    columns = 3 if len(names) in (3, 5, 6) else 2
    figures = "".join(_heat_map(record, name, columns) for name in names)
    text = (
        "Each denoising step of each iteration; step 0 begins from pure noise. The stronger the "
        "colour, the larger the value."
    )
    return _section("Denoising steps", _grid(figures, columns, "heat"), text)


def _heat_map(record: Record, name: str, columns: int) -> str:
    found = {line.number: line.by_step[name] for line in record.lines if name in line.by_step}
    meaning = _meaning(name)
    values = [value for column in found.values() for value in column.values()]
    label = (
        f"Heat map of {meaning.title.lower()} over {_count(len(found), 'iteration')} and "
        f"{_count(len(set().union(*found.values())), 'denoising step')}: "
        f"{_significant(min(values))} to {_significant(max(values))} {meaning.unit}."
    )
    canvas = Canvas(
        name=f"step-{_slug(name)}", label=label, width=340 if columns == 3 else 460, height=210
    )
    chart = charts.heat_map(canvas, found, meaning.unit)
    return _figure(chart, meaning.title, meaning.text)


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
        text = f"A first log-ratio above {_significant(tolerance)} would have stopped the run."
    return _section("Health", _grid(figures, 3), text)


def _small_chart(name: str, points: Mapping[int, float]) -> str:
    meaning = _meaning(name)
    canvas = Canvas(
        name=f"metric-{_slug(name)}", label=_trend(meaning.title, points), width=340, height=170
    )
    return _figure(charts.line(canvas, points, meaning.unit), meaning.title, meaning.text)


def _timing(record: Record) -> str:
    if not record.seconds:
        return ""
    parts = list(dict.fromkeys(part for each in record.seconds.values() for part in each))
    parts = sorted(parts, key=lambda part: part == "evaluate")
    label = f"Stacked bars: seconds of each iteration for {', '.join(parts)}. {_pace(record)}"
    legend = tuple((charts.PARTS[i % len(charts.PARTS)], part) for i, part in enumerate(parts))
    wide = Canvas(name="timing", label=label, width=1060, height=220)
    narrow = Canvas(name="timing-narrow", label=label, width=390, height=220)
    content = _figure(
        f"<div class=wide>{charts.stacked(wide, record.seconds, parts)}</div>"
        f"<div class=narrow>{charts.stacked(narrow, record.seconds, parts)}</div>",
        "Seconds an iteration",
        "",
        legend=legend,
    )
    return _section("Timing", content, _pace(record))


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
    text = f"{_duration(record.total_seconds)} in all."
    if not rates:
        return text
    typical = statistics.median(
        learning[number] for number, _ in record.trained if number in learning
    )
    return (
        f"{text} A typical iteration takes {_significant(typical)} s without evaluation: "
        f"{_significant(statistics.median(rates))} samples a second, sampled, scored and trained on "
        "(medians)."
    )


def _asked(record: Record) -> str:
    tables = {name: value for name, value in record.recipe.items() if isinstance(value, Mapping)}
    top = {name: value for name, value in record.recipe.items() if name not in tables}
    blocks = "".join(_block(name, table) for name, table in tables.items())
    command = record.environment.get("command")
    content = f"<pre><code>{escape(str(command))}</code></pre>\n" if command else ""
    content += f"<div class=blocks>{_block('run', top) if top else ''}{blocks}</div>"
    return _section(
        "What was asked", content, "The resolved recipe, with every default written out."
    )


def _environment(record: Record) -> str:
    known = {k: v for k, v in record.environment.items() if k != "command" and v is not None}
    nested = {name: value for name, value in known.items() if isinstance(value, Mapping)}
    top = {name: value for name, value in known.items() if name not in nested}
    blocks = [_block("software", top)] if top else []
    blocks += [_block(name, table) for name, table in nested.items()]
    return _section("Environment", f"<div class=blocks>{''.join(blocks)}</div>" if blocks else "")


def _block(title: str, table: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in _flat(table)
    )
    return f"<div class=block><h3>{escape(title)}</h3><dl>{rows}</dl></div>"


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested tables as dotted keys, as the command line writes them."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(str(each) for each in value)
        else:
            yield f"{prefix}{key}", str(value).lower() if isinstance(value, bool) else str(value)


# --- pieces --------------------------------------------------------------------------------------


def _grid(figures: str, columns: int, kind: str = "") -> str:
    return f'<div class="grid columns-{columns} {kind}">{figures}</div>' if figures else ""


def _figure(chart: str, title: str, text: str, *, legend: Sequence[tuple[str, str]] = ()) -> str:
    keys = "".join(f'<li style="--key: var(--{color})">{escape(name)}' for color, name in legend)
    key = f"<ul class=legend>{keys}</ul>" if keys else ""
    caption = f"<b>{escape(title)}</b> <span>{escape(text)}</span>{key}"
    return f"<figure class=chart><figcaption>{caption}</figcaption>{chart}</figure>"


def _ordered(names: Iterable[str]) -> list[str]:
    """Known quantities in the order of the page, then the others by name."""
    order = list(MEANINGS)
    return sorted(
        set(names), key=lambda name: (order.index(name) if name in order else len(order), name)
    )


def _meaning(name: str) -> Meaning:
    return MEANINGS.get(name) or Meaning(name.replace("_", " ").capitalize(), "", "")


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _unit(record: Record) -> str:
    name = record.recipe.get("reward", {}).get("name", "")
    return UNITS.get(name, f"reward ({name})" if name else "reward")


# --- numbers in words ----------------------------------------------------------------------------


def _trend(title: str, points: Mapping[int, float]) -> str:
    """A curve for those who cannot see it."""
    numbers = list(points)
    first, last = points[numbers[0]], points[numbers[-1]]
    if len(numbers) == 1:
        return f"{title}: {_significant(first)} at iteration {numbers[0]}."
    return (
        f"{title}: {_significant(first)} at iteration {numbers[0]}, {_significant(last)} at "
        f"iteration {numbers[-1]}; lowest {_significant(min(points.values()))}, highest "
        f"{_significant(max(points.values()))}."
    )


def _decimals(record: Record) -> int:
    """As many as show two digits of the samples' standard deviation."""
    spreads = [reward for _, reward in (*record.evaluated, *record.trained)]
    std = next((reward.std for reward in spreads if reward.std > 0), 0.0)
    return _digits(std) if std > 0 else 2


def _digits(size: float) -> int:
    """Decimals that show two digits of a positive number."""
    return max(0, 1 - math.floor(math.log10(size)))


def _fixed(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "−")


def _significant(value: float) -> str:
    """Three significant digits; powers of ten for what would be long."""
    if value == 0 or not math.isfinite(value) or 0.001 <= abs(value) < 100_000:
        return f"{value:,.3g}".replace("-", "−") if abs(value) < 1000 else f"{value:,.0f}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g} × 10{charts.superscript(int(exponent))}".replace("-", "−")


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1c2124; --muted: #626c71; --rule: #e2e4e1; --panel: #f4f5f2;
  --before: #7d8a92; --after: #b4532a; --train: #33708f;
  --part-0: #33708f; --part-1: #b4532a; --part-2: #a9b3b7; --part-3: #7c8a4e;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --ink: #e6e8e7; --muted: #98a2a7; --rule: #2b3135; --panel: #1b1f23;
    --before: #8f9ba3; --after: #e5895c; --train: #6fb0d2;
    --part-0: #5a9dc0; --part-1: #d67d52; --part-2: #59646a; --part-3: #9dae66;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 1128px; padding: 56px 24px 96px; background: var(--paper); color: var(--ink);
  font: 15px/1.55 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
h1, .verdict { font-family: "Iowan Old Style", Charter, Georgia, "Times New Roman", serif; font-weight: 400; }
h1 { margin: 0; font-size: 21px; font-style: italic; color: var(--muted); overflow-wrap: anywhere; }
.kind { margin: 0 0 4px; font-size: 13px; color: var(--muted); }
.verdict { margin: 14px 0 18px; max-width: 24em; font-size: 35px; line-height: 1.22; text-wrap: balance; }
.details { margin: 0; max-width: 46em; font-size: 16px; color: var(--muted); }
.details strong { color: var(--after); font-weight: 600; }
section { margin-top: 64px; padding-top: 18px; border-top: 1px solid var(--rule); }
h2 { margin: 0 0 6px; font-size: 18px; font-weight: 600; line-height: 1.3; }
h3 { margin: 0 0 6px; font-size: 13px; font-weight: 600; }
.intro { margin: 0 0 22px; max-width: 46em; color: var(--muted); }
h2 + div, h2 + figure { margin-top: 20px; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-size: 13px; line-height: 1.45; color: var(--muted); }
figcaption b { display: block; color: var(--ink); font-weight: 600; }
svg { display: block; width: 100%; height: auto; margin-top: 10px; overflow: visible; }
svg text { font-family: inherit; }
.heat path { shape-rendering: crispEdges; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(252px, 1fr)); gap: 30px 24px; }
.pairs:has(img:not(.pixels)) { grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); }
.both { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.both > :only-child { grid-column: 1 / -1; max-width: 50%; }
.pair img { display: block; width: 100%; height: auto; background: var(--panel); }
.pixels { image-rendering: pixelated; }
.both p { display: flex; flex-wrap: wrap; gap: 0 6px; margin: 5px 0 0; }
.both p { font-size: 12.5px; line-height: 1.3; color: var(--muted); }
.both b { font-weight: 600; color: var(--ink); }
.after b { color: var(--after); }
.pair figcaption { margin-top: 4px; font-size: 12.5px; }
.hero { display: grid; grid-template-columns: 660fr 380fr; gap: 32px 40px; }
.grid { display: grid; gap: 36px 30px; }
.columns-2 { grid-template-columns: repeat(2, 1fr); }
.columns-3 { grid-template-columns: repeat(3, 1fr); }
.chart { display: flex; flex-direction: column; justify-content: space-between; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 4px 0 0; padding: 0; list-style: none; }
.legend li::before {
  content: ""; display: inline-block; width: 14px; height: 3px; margin-right: 7px;
  vertical-align: middle; background: var(--key);
}
.narrow { display: none; }
details { margin-top: 24px; font-size: 13px; }
summary { cursor: pointer; color: var(--muted); }
table { margin-top: 12px; border-collapse: collapse; }
th, td { padding: 3px 28px 3px 0; border-bottom: 1px solid var(--rule); }
th, td { font-weight: 400; text-align: right; white-space: nowrap; }
thead th { color: var(--muted); }
pre {
  margin: 0 0 24px; padding: 12px 16px; background: var(--panel);
  white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
.blocks { columns: 3; column-gap: 30px; }
.block { margin: 0 0 26px; break-inside: avoid; }
dl { margin: 0; font-size: 13px; }
dl div { display: flex; justify-content: space-between; gap: 16px; }
dl div { padding: 3px 0; border-top: 1px solid var(--rule); }
dt { color: var(--muted); white-space: nowrap; }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; min-width: 0; }
@media (max-width: 860px) {
  .hero { grid-template-columns: 1fr; }
  .hero .chart + .chart svg { max-width: 430px; }
  .columns-3 { grid-template-columns: repeat(2, 1fr); }
  .blocks { columns: 2; }
}
@media (max-width: 560px) {
  body { padding: 32px 16px 64px; }
  .verdict { font-size: 27px; }
  section { margin-top: 48px; }
  .columns-2, .columns-3 { grid-template-columns: 1fr; }
  .blocks { columns: 1; }
  .wide { display: none; }
  .narrow { display: block; }
  .chart svg { max-width: 430px; }
  .pairs, .pairs:has(img:not(.pixels)) { grid-template-columns: 1fr 1fr; gap: 24px 16px; }
  .both { gap: 2px; }
  .both p, .pair figcaption { font-size: 11.5px; }
}
@media print {
  :root { --paper: #fff; }
  body { padding: 0; max-width: none; font-size: 10.5pt; }
  .hero { grid-template-columns: 660fr 380fr; gap: 24px; }
  .columns-3 { grid-template-columns: repeat(3, 1fr); }
  .blocks { columns: 3; }
  section { margin-top: 32px; }
  h2 { break-after: avoid; }
  .pairs { grid-template-columns: repeat(4, 1fr); gap: 16px; }
  details { display: none; }
}
"""
