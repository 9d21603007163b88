"""Explanations as HTML: one card per image, whose maps lie over it and show their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from avarc_cli import page
from avarc_cli.explain.explanation import Explanation, Line, Panel, headline, limit_of, signed
from avarc_cli.explain.maps import Float, Weighting
from avarc_cli.explain.palette import PUOR, paint
from avarc_cli.explain.pixels import source_pixels
from avarc_cli.explain.predictions import ImagePrediction
from avarc_cli.words import percent

CHART_WIDTH, CHART_HEIGHT, CHART_RIGHT = 300, 130, 150
MAX_TICKS = 16  # labels below the chart
RAMP = ",".join(f"#{color}" for color in PUOR)
ORDERS = (
    ("surprise down", "least likely first"),
    ("surprise up", "most likely first"),
    ("probability up", "least sure first"),
    ("probability down", "surest first"),
    ("margin up", "smallest margin first"),
    ("margin down", "largest margin first"),
)


def gallery(explanations: Sequence[Explanation], weighting: Weighting, title: str, about: str) -> str:
    """A self-contained page of cards.

    Args:
        title, about: heading, and a sentence on what was explained; plain text.
    Raises: UsageError as `Weighting.of_grids`.
    """
    cards = [card(e, weighting) for e in explanations]
    return page.render("gallery.html", title=title, about=about, cards=cards, orders=ORDERS)


def card(e: Explanation, weighting: Weighting) -> Markup:
    """One image's explanation as an article, for a page with maps.css and maps.js.

    Raises: UsageError as `Weighting.of_grids`.
    """
    panels = e.panels(weighting)
    limit, last = limit_of([panel.cells for panel in panels]), panels[-1]
    return page.render(
        "card.html",
        e=e,
        data=_data(e, last),
        headline=headline(e),
        what="decoded from its tokens" if e.decoded else "input",
        input=None if e.pixels is None else page.picture(e.pixels),
        maps=[_map(panel, limit) for panel in panels],
        limit=f"{limit:.2g}",
        ramp=RAMP,
        last=last.title,
        tokens=_tokens(last) if last.by_footprint else None,
        scales=_scales(last) if len(last.grids) > 1 else (),
        chart=_chart(e),
    )


def plain_card(prediction: ImagePrediction, protocol: Mapping[str, Any], within: Path | None = None) -> Markup:
    """An image of a run without its maps: the picture, if its file still exists, and the best classes.

    Args:
        within: as in `source_pixels`.
    """
    tokens = protocol["tokens"]
    names = dict(zip(protocol["candidates"], protocol.get("candidate_names", ()), strict=False))
    pixels = source_pixels(tokens["source"], prediction.path, tokens["preprocess"], tokens.get("dataset", ""), within)
    ranked = zip(prediction.class_ids, prediction.posterior, strict=True)
    return page.render(
        "plain_card.html",
        path=prediction.path,
        data={
            "data-label": page.text(prediction.label_name),
            "data-said": page.text(names.get(prediction.class_ids[0], "")),
        },
        picture=None if pixels is None else page.picture(pixels),
        rows=[(names.get(c, c), percent(probability)) for c, probability in ranked],
        label=prediction.label_name or "unknown",
    )


def _data(e: Explanation, last: Panel) -> dict[str, object]:
    """What lists of cards are filtered and sorted by."""
    return {
        "data-label": page.text(e.label_name),
        "data-said": page.text(e.names[0]),
        "data-result": "unlabelled" if e.correct is None else "right" if e.correct else "wrong",
        "data-probability": e.posterior[0],
        "data-surprise": f"{e.negative_log_likelihood:.6g}",
        "data-margin": f"{last.log_likelihood_ratio:.6g}",
    }


def _map(panel: Panel, limit: float) -> dict[str, object]:
    total = signed(panel.map_sum)
    return {
        "title": panel.title,
        "formula": panel.formula,
        "sum": total,
        "picture": page.picture(paint(panel.cells, limit)),
        "alt": f"map of {panel.title}, {panel.formula}: sum {total} nats",
        "cells": _values(panel.cells, "in this cell"),
    }


def _scales(panel: Panel) -> list[dict[str, object]]:
    """The grids one by one; of a single one, the map has shown it already."""
    limit, shown = limit_of(panel.grids), []
    for grid in panel.grids:
        rows, columns = grid.shape
        total = signed(float(grid.sum()))
        shown.append(
            {
                "title": f"{rows}×{columns}",
                "sum": total,
                "limit": f"{limit:.2g}",
                "picture": page.picture(paint(grid, limit)),
                "alt": f"scale of {rows} by {columns} tokens: sum {total} nats",
                "cells": _values(grid, "in this token"),
            }
        )
    return shown


def _tokens(panel: Panel) -> dict[str, object]:
    """The tokens as one row."""
    limit, values = limit_of(panel.grids), panel.grids[0]
    total = signed(float(values.sum()))
    return {
        "sum": total,
        "limit": f"{limit:.2g}",
        "picture": page.picture(paint(values, limit)),
        "alt": f"{values.shape[1]} tokens in one row: sum {total} nats",
        "cells": _values(values, "in this token"),
    }


def _chart(e: Explanation) -> Markup:
    """Each class's cumulative log-odds as a line from the first step to the last, labelled at its end."""
    lines, labels = e.cumulative_log_odds(), e.steps().labels
    low = min(0.0, *(float(line.values.min()) for line in lines))
    high = max(0.0, *(float(line.values.max()) for line in lines))
    span = (high - low) or 1.0

    def x(k: int) -> float:
        return 34 + (CHART_WIDTH - 44) * k / max(len(labels) - 1, 1)

    def y(nats: float) -> float:
        return 10 + (CHART_HEIGHT - 20) * (high - nats) / span

    floor, drawn = -100.0, []
    for line in lines:
        floor = max(y(float(line.values[-1])), floor + 13)
        path = "L".join(f"{x(k):.1f} {y(float(v)):.1f}" for k, v in enumerate(line.values))
        drawn.append(_line(e, line, path, floor))
    height, every = CHART_HEIGHT + 20, -(-len(labels) // MAX_TICKS)
    values = [v for v in sorted({low, 0.0, high}) if v == 0 or abs(y(v) - y(0)) > 12]
    return page.render(
        "lead.svg",
        width=CHART_WIDTH + CHART_RIGHT,
        height=max(height, int(floor) + 8),
        right=CHART_WIDTH,
        zero=f"{y(0):.1f}",
        foot=height - 4,
        alt="; ".join(f"{line.name} {signed(float(line.values[-1]))}" for line in lines),
        x_ticks=[(f"{x(k):.0f}", label) for k, label in enumerate(labels) if k % every == 0],
        y_ticks=[(f"{y(v) + 4:.1f}", signed(v, 0)) for v in values],
        lines=drawn,
    )


def _line(e: Explanation, line: Line, path: str, y: float) -> dict[str, object]:
    is_baseline = e.contrast is not None and line.name == e.baseline_name
    end = "" if is_baseline else signed(float(line.values[-1]), 0)
    return {
        "path": path,
        "color": line.color,
        "strong": line.name == e.names[e.target],
        "y": f"{y:.1f}",
        "text_y": f"{y + 4:.1f}",
        "label": f"{line.name[:18]} {end}",
    }


def _values(cells: Float, unit: str) -> dict[str, object]:
    """Attributes of a map's picture."""
    rows, columns = cells.shape
    rounded = " ".join(signed(value, 3) for value in cells.ravel().tolist())
    return {"data-values": rounded, "data-unit": unit} | ({} if rows == columns else {"data-rows": rows})
