"""What every page is made of: the document, its sections, figures and pictures, and the style sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from burnish.report.record import Sample

THUMBNAIL = 256
"""Larger images are embedded at most this wide and high, in pixels."""

PIXEL_ART = 128
"""Images up to this wide and high, in pixels, are enlarged with hard edges."""


def document(title: str, header: str, sections: Iterable[str], style: str = "") -> str:
    """The whole page. `style` comes after the style sheet that all pages share."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title} · burnish</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        f"<header>\n{header}\n</header>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def section(title: str, content: str, text: str = "") -> str:
    if not content:
        return ""
    intro = f"<p class=intro>{text}</p>\n" if text else ""
    name = title.lower().replace(" ", "-")
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n'
        f"{intro}{content}\n</section>\n"
    )


def grid(figures: str, columns: int, kind: str = "") -> str:
    return f'<div class="grid columns-{columns} {kind}">{figures}</div>' if figures else ""


def figure(chart: str, title: str, text: str, *, legend: Sequence[tuple[str, str]] = ()) -> str:
    keys = "".join(f'<li style="--key: var(--{color})">{escape(name)}' for color, name in legend)
    key = f"<ul class=legend>{keys}</ul>" if keys else ""
    caption = f"<b>{escape(title)}</b> <span>{escape(text)}</span>{key}"
    return f"<figure class=chart><figcaption>{caption}</figcaption>{chart}</figure>"


def block(title: str, table: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in flat(table)
    )
    return f"<div class=block><h3>{escape(title)}</h3><dl>{rows}</dl></div>"


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested tables as dotted keys, as the command line writes them."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(each) for each in value)
        else:
            yield f"{prefix}{key}", str(value).lower() if isinstance(value, bool) else str(value)


def picture(sample: Sample, text: str) -> str:
    """The image itself in the page; `text` is what a reader who cannot see it is told."""
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


def slug(name: str) -> str:
    """A name that may stand in an id."""
    return "".join(c if c.isalnum() else "-" for c in name)


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1c2124; --muted: #626c71; --rule: #e2e4e1; --panel: #f4f5f2;
  --before: #7d8a92; --after: #b4532a; --train: #33708f;
  --part-0: #33708f; --part-1: #b4532a; --part-2: #a9b3b7; --part-3: #7c8a4e;
  --series-0: #b4532a; --series-1: #33708f; --series-2: #5f7f2a; --series-3: #8a4f9e;
  --series-4: #bd8a12; --series-5: #c4427a; --series-6: #1c8f83; --series-7: #4a55b0;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --ink: #e6e8e7; --muted: #98a2a7; --rule: #2b3135; --panel: #1b1f23;
    --before: #8f9ba3; --after: #e5895c; --train: #6fb0d2;
    --part-0: #5a9dc0; --part-1: #d67d52; --part-2: #59646a; --part-3: #9dae66;
    --series-0: #e5895c; --series-1: #6fb0d2; --series-2: #a5c46a; --series-3: #c596d9;
    --series-4: #e2b644; --series-5: #ee86b0; --series-6: #5ac8ba; --series-7: #98a3f2;
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
