"""Explanations as HTML: one card an image, whose maps tell their values where the pointer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from avarc_cli import page
from avarc_cli.explain.choose import Verdict
from avarc_cli.explain.explain import source_pixels
from avarc_cli.explain.explanation import Explanation, Panel, headline, limit_of, percent, signed
from avarc_cli.explain.maps import Float, Weighting
from avarc_cli.explain.palette import PUOR, paint

MAP, SMALL = 250, 80  # CSS pixels
CHART_WIDTH, CHART_HEIGHT, CHART_RIGHT = 300, 130, 150
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
  const values = map.dataset.values.split(' '), side = Math.round(Math.sqrt(values.length));
  const box = map.getBoundingClientRect(), cell = x => Math.max(0, Math.min(side - 1, Math.floor(x * side)));
  const row = cell((event.clientY - box.top) / box.height), column = cell((event.clientX - box.left) / box.width);
  tip.textContent = `row ${row + 1}, column ${column + 1}: ${values[row * side + column]} nats ${map.dataset.unit}`;
  tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + 'px';
  tip.style.top = event.clientY + 16 + 'px';
});
"""


def gallery(explanations: Sequence[Explanation], weighting: Weighting, title: str, about: str) -> str:
    """A self-contained page of cards. about: a sentence on what was explained, plain text."""
    cards = "\n".join(card(e, weighting) for e in explanations)
    read = (
        "Each cell shows log-ratios in nats: <b>orange</b> speaks for the first class of a pair, <b>purple</b> for the "
        "second (or for no class in particular), and what is nearly white for neither. Point at a map for its values."
    )
    body = f'<h1>{page.text(title)}</h1><p class="muted">{page.text(about)}</p><p>{read}</p>\n<main>{cards}</main>'
    return page.document(title, body, style=STYLE, script=SCRIPT)


def card(e: Explanation, weighting: Weighting) -> str:
    """One image's explanation as an article; needs STYLE, and SCRIPT for values under the pointer."""
    panels = e.panels(weighting)
    limit = limit_of([panel.cells for panel in panels])
    maps = _input(e) + "".join(_map(panel, limit) for panel in panels)
    return (
        f'<article class="card"><header><h3>{page.text(e.path)}</h3>{_badge(e)}'
        f'<span class="muted">{page.text(headline(e))}</span></header>\n'
        f'<div class="row maps">{maps}</div>{_legend(limit)}\n'
        f'<div class="row"><div><h4>{page.text(panels[-1].title)}, scale by scale</h4>{_strip(e, panels[-1])}</div>'
        f"<div><h4>{_lead_title(e)}</h4>{_lead_chart(e)}</div></div></article>\n"
    )


def plain_card(verdict: Verdict, protocol: Mapping[str, Any]) -> str:
    """An image of a run without its maps: the picture, if it is still there, and what the model said."""
    tokens = protocol["tokens"]
    names = dict(zip(protocol["candidates"], protocol.get("candidate_names", ()), strict=False))
    pixels = source_pixels(tokens["source"], verdict.path, tokens["preprocess"], tokens.get("dataset", ""))
    picture = "" if pixels is None else page.picture(pixels, f"input: {verdict.path}", side=SMALL)
    rows = [
        [page.text(names.get(c, c)), percent(share)] for c, share in zip(verdict.order, verdict.posterior, strict=True)
    ]
    said = page.table(["class", "probability"], rows, numbers=[1], caption=f"label: {verdict.label_name or 'unknown'}")
    return (
        f'<article class="card"><header><h3>{page.text(verdict.path)}</h3></header>'
        f'<div class="row">{picture}{said}</div></article>\n'
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
    alt = f"map of {panel.title}, {panel.formula}: sum {signed(panel.total)} nats"
    shown = page.picture(paint(panel.cells, limit), alt, side=MAP, extra=_values(panel.cells, "in this cell"))
    return (
        f"<figure>{shown}<figcaption><b>{page.text(panel.title)}</b><br>"
        f'<span title="{page.text(panel.formula)}">sum {signed(panel.total)} nats</span></figcaption></figure>'
    )


def _legend(limit: float) -> str:
    end = f"{limit:.2g}"
    return (
        f'<div class="legend"><span>against −{end}</span><span class="ramp" role="img" '
        f'aria-label="colours from purple, {end} nats against, over white to orange, {end} nats for"></span>'
        f"<span>+{end} for, nats a cell</span></div>"
    )


def _strip(e: Explanation, panel: Panel) -> str:
    limit = limit_of(panel.scales)
    shown = ""
    for side, grid in zip(e.patch_nums, panel.scales, strict=True):
        total = signed(float(grid.sum()))
        alt = f"scale of {side} by {side} tokens: sum {total} nats"
        picture = page.picture(paint(grid, limit), alt, side=SMALL, extra=_values(grid, "in this token"))
        shown += f"<figure>{picture}{side}×{side}<br>{total}</figure>"
    note = f"colours end at {limit:.2g} nats a token; under each scale the sum of its tokens"
    return f'<div class="row strip">{shown}</div><p class="muted" style="font-size:.8rem">{note}</p>'


def _lead_title(e: Explanation) -> str:
    return f"Lead over {page.text('unconditional' if e.rival is None else e.names[e.rival])}, nats"


def _lead_chart(e: Explanation) -> str:
    """Lines of each class's lead from the coarsest scale to the finest, labelled at their ends."""
    leads = e.leads()
    low = min(0.0, *(float(line.min()) for _, line in leads))
    high = max(0.0, *(float(line.max()) for _, line in leads))
    span = (high - low) or 1.0
    count = len(e.patch_nums)

    def x(k: int) -> float:
        return 34 + (CHART_WIDTH - 44) * k / max(count - 1, 1)

    def y(nats: float) -> float:
        return 10 + (CHART_HEIGHT - 20) * (high - nats) / span

    width, height = CHART_WIDTH + CHART_RIGHT, CHART_HEIGHT + 20
    parts = [f'<line x1="34" x2="{CHART_WIDTH}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>']
    parts += [
        f'<text class="muted" x="{x(k):.0f}" y="{height - 4}" text-anchor="middle">{side}</text>'
        for k, side in enumerate(e.patch_nums)
    ]
    parts += [
        f'<text class="muted" x="28" y="{y(v) + 4:.1f}" text-anchor="end">{signed(v, 0)}</text>'
        for v in sorted({low, 0.0, high})
        if v == 0 or abs(y(v) - y(0)) > 12
    ]
    floor = -100.0
    for (name, lead), colour in zip(leads, e.line_colours(leads), strict=True):
        floor = max(y(float(lead[-1])), floor + 13)
        strong = "strong" if name == e.names[e.subject] else ""
        points = "L".join(f"{x(k):.1f} {y(float(v)):.1f}" for k, v in enumerate(lead))
        parts.append(f'<path class="{strong}" d="M{points}" style="stroke:{colour}"/>')
        end = "" if e.rival is not None and name == e.names[e.rival] else signed(float(lead[-1]), 0)
        parts.append(
            f'<circle cx="{CHART_WIDTH + 4}" cy="{floor:.1f}" r="4" style="fill:{colour}"/>'
            f'<text x="{CHART_WIDTH + 12}" y="{floor + 4:.1f}">{page.text(name[:18])} {end}</text>'
        )
    alt = "; ".join(f"{name} {signed(float(lead[-1]))}" for name, lead in leads)
    height = max(height, int(floor) + 8)
    return (
        f'<svg class="lead" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="lead after the last scale, in nats: {page.text(alt)}">{"".join(parts)}</svg>'
    )


def _values(cells: Float, unit: str) -> str:
    rounded = " ".join(signed(value, 3) for value in cells.ravel().tolist())
    return f'data-values="{rounded}" data-unit="{unit}"'
