"""Building blocks of self-contained HTML pages: one file, no network, images inline, light or dark."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from avarc_cli.names import to_line

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f8fa; --ink: #1f2328; --muted: #59636e;
  --line: #d1d9e0; --blue: #0072b2; --vermilion: #c24e00; --good: #007a5a; --track: #e3e8ed; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1318; --card: #171c23; --ink: #e6edf3; --muted: #9aa5b1;
  --line: #333c46; --blue: #56b4e9; --vermilion: #f0883e; --good: #3fc39a; --track: #29313a; } }
@media print { :root { color-scheme: light; --paper: #ffffff; --card: #ffffff; --ink: #000000; --muted: #444444;
  --line: #bbbbbb; --blue: #0072b2; --vermilion: #c24e00; --good: #007a5a; --track: #e3e8ed; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  section, article, figure { break-inside: avoid; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .3rem 0 .8rem; max-width: 50rem; }
.muted, figcaption, caption { color: var(--muted); }
figure { margin: 0; } img { display: block; max-width: 100%; } svg { max-width: 100%; height: auto; }
svg text { fill: var(--ink); font: 11px system-ui, "DejaVu Sans", sans-serif; } svg .muted { fill: var(--muted); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.1rem;
  margin: 0 0 1.1rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 1.2rem; align-items: flex-start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td.number, th.number { text-align: right; }
.bar { display: block; height: .6rem; border-radius: 3px; background: var(--track); width: 11rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--blue); }
"""


def document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """A page. `body`, `style` and `script` are trusted HTML, CSS and JavaScript; `title` is text."""
    scripts = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title><style>{STYLE}{style}</style></head>\n'
        f"<body>\n{body}\n{scripts}</body></html>\n"
    )


def text(value: object) -> str:
    """Any value as one line, escaped for HTML and XML, text and attributes."""
    return html.escape(to_line(str(value)))


def picture(pixels_HW3: np.ndarray, alt: str, *, side: int, height: int | None = None, extra: str = "") -> str:
    """An image element with inline PNG data, square unless it has a height.

    Args:
        side, height: in CSS pixels. extra: further attributes, trusted.
    """
    crisp = "image-rendering:pixelated" if len(pixels_HW3) < side else ""
    return (
        f'<img src="{data_of(pixels_HW3)}" alt="{text(alt)}" width="{side}" height="{height or side}" '
        f'style="{crisp}" {extra}>'
    )


def data_of(pixels_HW3: np.ndarray) -> str:
    """An image as the address of an image element: PNG, inline."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (), caption: str) -> str:
    """A table. Cells are trusted HTML; names and caption are text. numbers: positions of right-aligned columns."""
    kind = [' class="number"' if i in numbers else "" for i in range(len(columns))]
    head = "".join(f'<th scope="col"{k}>{text(name)}</th>' for k, name in zip(kind, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{cell}</td>" for k, cell in zip(kind, row, strict=True)) + "</tr>\n" for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def bar(fraction: float) -> str:
    """A horizontal bar for a fraction between 0 and 1, hidden from screen readers: show the number beside it."""
    return f'<span class="bar" aria-hidden="true"><i style="width:{100 * fraction:.1f}%"></i></span>'
