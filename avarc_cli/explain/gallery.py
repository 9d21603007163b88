"""Explanations as HTML: one card per image, whose maps show their values at the pointer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avarc_cli import page
from avarc_cli.explain.explanation import Explanation, Line, Panel, headline, limit_of, signed
from avarc_cli.explain.maps import Float, Weighting
from avarc_cli.explain.palette import PUOR, paint
from avarc_cli.explain.pixels import source_pixels
from avarc_cli.explain.predictions import ImagePrediction
from avarc_cli.words import percent

MAP, SMALL = 250, 80  # CSS pixels
CHART_WIDTH, CHART_HEIGHT, CHART_RIGHT = 300, 130, 150
MAX_TICKS = 16  # labels below the chart
STYLE = f"""
.maps figure {{ width: {MAP}px; }} .maps figcaption {{ font-size: .85rem; }} .maps b {{ color: var(--ink); }}
.maps img, .strip img {{ border: 1px solid var(--line); }}
.strip figure {{ width: {SMALL}px; text-align: center; font-size: .75rem; line-height: 1.3; }}
.strip {{ gap: .6rem; }} .badge {{ border-radius: 99px; padding: .1rem .6rem; font-size: .8rem; font-weight: 600; }}
.right {{ border: 1px solid var(--good); color: var(--good); }}
.wrong {{ border: 1px solid var(--vermilion); color: var(--vermilion); }}
.card header {{ display: flex; flex-wrap: wrap; gap: .3rem .8rem; align-items: baseline; margin-bottom: .7rem; }}
.legend {{ display: flex; align-items: center; gap: .5rem; font-size: .8rem; margin: .5rem 0 .9rem; }}
.legend span.ramp {{ width: 12rem; height: .7rem; border: 1px solid var(--line);
  background: linear-gradient(90deg, {", ".join("#" + c for c in PUOR)}); }}
h4 {{ margin: .2rem 0 .4rem; font-size: .85rem; }}
.lead path {{ fill: none; stroke-width: 1.6; }}
.lead .strong {{ stroke-width: 2.6; }} .lead line {{ stroke: var(--line); }}
#value {{ position: fixed; display: none; pointer-events: none; z-index: 9; padding: .25rem .5rem; border-radius: 6px;
  background: #1f2328; color: #ffffff; font: 12px system-ui, sans-serif; white-space: nowrap; }}
"""
SCRIPT = """
const tip = document.createElement('div'); tip.id = 'value'; document.body.append(tip);
document.addEventListener('pointermove', event => {
  const map = event.target.closest('img[data-values]');
  tip.style.display = map ? 'block' : 'none';
  if (!map) return;
  const values = map.dataset.values.split(' '), rows = +map.dataset.rows || Math.round(Math.sqrt(values.length));
  const columns = values.length / rows, box = map.getBoundingClientRect();
  const cell = (x, count) => Math.max(0, Math.min(count - 1, Math.floor(x * count)));
  const row = cell((event.clientY - box.top) / box.height, rows);
  const column = cell((event.clientX - box.left) / box.width, columns);
  tip.textContent = `row ${row + 1}, column ${column + 1}: ${values[row * columns + column]} nats ${map.dataset.unit}`;
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + 'px';
  tip.style.top = event.clientY + 16 + 'px';
});
"""


def gallery(explanations: Sequence[Explanation], weighting: Weighting, title: str, about: str) -> str:
    """A self-contained page of cards.

    Args:
        title, about: heading, and a sentence on what was explained; plain text.
    Raises: UsageError as `Weighting.of_grids`.
    """
    cards = "\n".join(card(e, weighting) for e in explanations)
    read = (
        "Cells show log-likelihood ratios in nats: <b>orange</b> is evidence for the first class of a pair, "
        "<b>purple</b> for the second (or for the unconditional model), and near-white is neither. "
        "Point at a map for its values."
    )
    body = f'<h1>{page.text(title)}</h1><p class="muted">{page.text(about)}</p><p>{read}</p>\n<main>{cards}</main>'
    return page.document(title, body, style=STYLE, script=SCRIPT)


def card(e: Explanation, weighting: Weighting) -> str:
    """One image's explanation as an article; needs STYLE, and SCRIPT for values at the pointer.

    Raises: UsageError as `Weighting.of_grids`.
    """
    panels = e.panels(weighting)
    limit = limit_of([panel.cells for panel in panels])
    maps = _input(e) + "".join(_map(panel, limit) for panel in panels)
    return (
        f'<article class="card"><header><h3>{page.text(e.path)}</h3>{_badge(e)}'
        f'<span class="muted">{page.text(headline(e))}</span></header>\n'
        f'<div class="row maps">{maps}</div>{_legend(limit)}\n'
        f'<div class="row">{_strip(panels[-1])}<div><h4>{_chart_title(e)}</h4>{_chart(e)}</div></div></article>\n'
    )


def plain_card(prediction: ImagePrediction, protocol: Mapping[str, Any], within: Path | None = None) -> str:
    """An image of a run without its maps: the picture, if its file still exists, and the best classes.

    Args:
        within: as in `source_pixels`.
    """
    tokens = protocol["tokens"]
    names = dict(zip(protocol["candidates"], protocol.get("candidate_names", ()), strict=False))
    pixels = source_pixels(tokens["source"], prediction.path, tokens["preprocess"], tokens.get("dataset", ""), within)
    picture = "" if pixels is None else page.picture(pixels, f"input: {prediction.path}", side=SMALL)
    ranked = zip(prediction.class_ids, prediction.posterior, strict=True)
    rows = [[page.text(names.get(c, c)), percent(probability)] for c, probability in ranked]
    label = prediction.label_name or "unknown"
    classes = page.table(["class", "probability"], rows, numbers=[1], caption=f"label: {label}")
    return (
        f'<article class="card"><header><h3>{page.text(prediction.path)}</h3></header>'
        f'<div class="row">{picture}{classes}</div></article>\n'
    )


def _badge(e: Explanation) -> str:
    if e.correct is None:
        return ""
    kind = "right" if e.correct else "wrong"
    return f'<span class="badge {kind}">{kind}</span>'


def _input(e: Explanation) -> str:
    what = "decoded from its tokens" if e.decoded else "input"
    if e.pixels is None:
        return f'<figure><p class="muted" style="height:{MAP}px">The image was not found.</p></figure>'
    alt = f"{what}: {e.path}" + (f", label {e.label_name}" if e.label_name else "")
    label = f"<br>label: {page.text(e.label_name)}" if e.label_name else ""
    return f"<figure>{page.picture(e.pixels, alt, side=MAP)}<figcaption><b>{what}</b>{label}</figcaption></figure>"


def _map(panel: Panel, limit: float) -> str:
    alt = f"map of {panel.title}, {panel.formula}: sum {signed(panel.map_sum)} nats"
    shown = page.picture(paint(panel.cells, limit), alt, side=MAP, extra=_values(panel.cells, "in this cell"))
    return (
        f"<figure>{shown}<figcaption><b>{page.text(panel.title)}</b><br>"
        f'<span title="{page.text(panel.formula)}">sum {signed(panel.map_sum)} nats</span></figcaption></figure>'
    )


def _legend(limit: float) -> str:
    end = f"{limit:.2g}"
    return (
        f'<div class="legend"><span>against −{end}</span><span class="ramp" role="img" '
        f'aria-label="colors from purple, {end} nats against, over white to orange, {end} nats for"></span>'
        f"<span>+{end} for, nats per cell</span></div>"
    )


def _strip(panel: Panel) -> str:
    """The grids one by one, unless there is only one, which the map has shown already."""
    if panel.by_footprint:
        return _tokens(panel)
    if len(panel.grids) == 1:
        return ""
    limit = limit_of(panel.grids)
    shown = ""
    for grid in panel.grids:
        rows, columns = grid.shape
        total = signed(float(grid.sum()))
        alt = f"scale of {rows} by {columns} tokens: sum {total} nats"
        picture = page.picture(paint(grid, limit), alt, side=SMALL, extra=_values(grid, "in this token"))
        shown += f"<figure>{picture}{rows}×{columns}<br>{total}</figure>"
    note = f"colors end at {limit:.2g} nats per token; under each scale the sum of its tokens"
    return (
        f'<div><h4>{page.text(panel.title)}, scale by scale</h4><div class="row strip">{shown}</div>'
        f'<p class="muted" style="font-size:.8rem">{note}</p></div>'
    )


def _tokens(panel: Panel) -> str:
    """The tokens as one row, and what the map above does with them."""
    limit, values = limit_of(panel.grids), panel.grids[0]
    total = signed(float(values.sum()))
    alt = f"{values.shape[1]} tokens in one row: sum {total} nats"
    extra = _values(values, "in this token")
    picture = page.picture(paint(values, limit), alt, side=2 * MAP, height=40, extra=extra)
    return (
        f"<div><h4>{page.text(panel.title)}, token by token</h4>{picture}"
        f'<p class="muted" style="font-size:.8rem">colors end at {limit:.2g} nats per token; the sum is {total}. '
        "The maps are attributions through the decoder: each token's nats are placed where the decoded image changes "
        "when its code is replaced by the mean code.</p></div>"
    )


def _chart_title(e: Explanation) -> str:
    return f"Cumulative log-odds vs {page.text(e.baseline_name)}, nats"


def _chart(e: Explanation) -> str:
    """Each class's cumulative log-odds as a line from the first step to the last, labelled at its end."""
    lines, labels = e.cumulative_log_odds(), e.steps().labels
    low = min(0.0, *(float(line.values.min()) for line in lines))
    high = max(0.0, *(float(line.values.max()) for line in lines))
    span = (high - low) or 1.0

    def x(k: int) -> float:
        return 34 + (CHART_WIDTH - 44) * k / max(len(labels) - 1, 1)

    def y(nats: float) -> float:
        return 10 + (CHART_HEIGHT - 20) * (high - nats) / span

    width, height = CHART_WIDTH + CHART_RIGHT, CHART_HEIGHT + 20
    parts = [f'<line x1="34" x2="{CHART_WIDTH}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>']
    parts += [
        f'<text class="muted" x="{x(k):.0f}" y="{height - 4}" text-anchor="middle">{label}</text>'
        for k, label in enumerate(labels)
        if k % -(-len(labels) // MAX_TICKS) == 0
    ]
    parts += [
        f'<text class="muted" x="28" y="{y(v) + 4:.1f}" text-anchor="end">{signed(v, 0)}</text>'
        for v in sorted({low, 0.0, high})
        if v == 0 or abs(y(v) - y(0)) > 12
    ]
    floor = -100.0
    for line in lines:
        points = "L".join(f"{x(k):.1f} {y(float(v)):.1f}" for k, v in enumerate(line.values))
        floor = max(y(float(line.values[-1])), floor + 13)
        parts.append(_line(e, line, points, floor))
    alt = "; ".join(f"{line.name} {signed(float(line.values[-1]))}" for line in lines)
    height = max(height, int(floor) + 8)
    return (
        f'<svg class="lead" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="cumulative log-odds over all tokens, in nats: {page.text(alt)}">{"".join(parts)}</svg>'
    )


def _line(e: Explanation, line: Line, points: str, label_y: float) -> str:
    strong = "strong" if line.name == e.names[e.target] else ""
    is_baseline = e.contrast is not None and line.name == e.baseline_name
    end = "" if is_baseline else signed(float(line.values[-1]), 0)
    return (
        f'<path class="{strong}" d="M{points}" style="stroke:{line.color}"/>'
        f'<circle cx="{CHART_WIDTH + 4}" cy="{label_y:.1f}" r="4" style="fill:{line.color}"/>'
        f'<text x="{CHART_WIDTH + 12}" y="{label_y + 4:.1f}">{page.text(line.name[:18])} {end}</text>'
    )


def _values(cells: Float, unit: str) -> str:
    rounded = " ".join(signed(value, 3) for value in cells.ravel().tolist())
    rows, columns = cells.shape
    shape = "" if rows == columns else f' data-rows="{rows}"'
    return f'data-values="{rounded}" data-unit="{unit}"{shape}'
