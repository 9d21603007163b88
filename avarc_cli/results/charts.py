"""Charts of a report as inline SVG, in the page's colors, light or dark, and in print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from avarc_cli import page
from avarc_cli.words import counted

LEFT, TOP, WIDTH, HEIGHT = 46, 12, 320, 220  # of the plotting area, in pixels
LOG_FROM = 30  # with this many candidates or more, the axis is logarithmic
MAX_TICKS = 16  # labels on the x axis


@dataclass(frozen=True)
class Bin:
    """Images whose prediction has a probability in [low, high)."""

    low: float
    high: float

    images: int
    """Number of images, at least 1."""

    confidence: float
    """Mean probability of their predictions."""

    accuracy: float
    """Fraction of correct predictions."""


def bins(confidence: Sequence[float], right: Sequence[bool], count: int = 10) -> list[Bin]:
    """Equal-width bins of the prediction's probability; empty ones are left out."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(count)]
    for probability, hit in zip(confidence, right, strict=True):
        members[min(int(probability * count), count - 1)].append((probability, hit))
    return [
        Bin(i / count, (i + 1) / count, len(m), sum(c for c, _ in m) / len(m), sum(h for _, h in m) / len(m))
        for i, m in enumerate(members)
        if m
    ]


def reliability(binned: Sequence[Bin]) -> Markup:
    """Accuracy over the probability of the prediction; on the diagonal where the model is calibrated."""
    alt = "; ".join(
        f"{b.low:.0%} to {b.high:.0%}: {counted(b.images, 'image')}, {b.accuracy:.1%} correct" for b in binned
    )
    return page.render(
        "reliability.svg",
        frame=_frame([(v, f"{v:.0%}") for v in (0, 0.25, 0.5, 0.75, 1)], [(v, f"{v:.0%}") for v in (0, 0.5, 1)]),
        bars=[_bar(b) for b in binned],
        alt=f"reliability diagram. {alt}",
        x_label="probability of the prediction",
    )


def _bar(b: Bin) -> dict[str, object]:
    x, width, y = _x(b.low) + 2, _x(b.high) - _x(b.low) - 4, _y(b.accuracy)
    inside = y <= TOP + 12
    return {
        "x": f"{x:.1f}",
        "y": f"{y:.1f}",
        "width": f"{width:.1f}",
        "height": f"{max(_y(0) - y, 1):.1f}",
        "middle": f"{x + width / 2:.1f}",
        "inside": inside,
        "text_y": f"{y + 13 if inside else y - 4:.1f}",
        "images": b.images,
        "confidence": f"{_x(b.confidence):.1f}",
        "title": f"{counted(b.images, 'image')}: mean probability {b.confidence:.1%}, accuracy {b.accuracy:.1%}",
    }


def survivors(ends: Sequence[int], left: Sequence[float], candidates: int, total: int, x_label: str) -> Markup:
    """Candidates left after every segment.

    Args:
        ends: last segment of each stage, counted from 1. left: candidates that survive each stage, on average.
        candidates: at the beginning. total: segments of the model. x_label: of the axis that counts segments.
    """
    high = max(float(candidates), 2.0)
    logarithmic = candidates >= LOG_FROM

    def height(value: float) -> float:
        return math.log(max(value, 1)) / math.log(high) if logarithmic else value / high

    points = [(0.0, float(candidates))]
    for end, after in zip(ends, left, strict=True):
        points += [(end / total, points[-1][1]), (end / total, after)]
    points.append((1.0, points[-1][1]))
    ticks = [(height(v), f"{v:,.0f}") for v in sorted({1.0, float(candidates), *(round(v) for v in left)})]
    every = -(-total // MAX_TICKS)
    story = ", ".join(f"{v:.3g} after {end}" for end, v in zip(ends, left, strict=True))
    return page.render(
        "survivors.svg",
        frame=_frame([(k / total, str(k)) for k in range(every, total + 1, every)], _apart(ticks)),
        path="L".join(f"{_x(a):.1f} {_y(height(v)):.1f}" for a, v in points),
        alt=f"candidates left: {candidates} at first, {story}",
        x_label=x_label,
    )


def _apart(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """The ticks without those whose text would overlap another's."""
    kept: list[tuple[float, str]] = []
    for tick in reversed(ticks):
        if all(abs(tick[0] - other[0]) * HEIGHT > 13 for other in kept):
            kept.append(tick)
    return kept


def _frame(x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]) -> dict[str, object]:
    return {
        "width": LEFT + WIDTH + 14,
        "height": TOP + HEIGHT + 40,
        "left": LEFT,
        "right": LEFT + WIDTH,
        "top": TOP,
        "bottom": TOP + HEIGHT,
        "x_ticks": [(f"{_x(v):.1f}", label) for v, label in x_ticks],
        "y_ticks": [(f"{_y(v):.1f}", f"{_y(v) + 4:.1f}", label) for v, label in y_ticks],
    }


def _x(fraction: float) -> float:
    return LEFT + WIDTH * fraction


def _y(fraction: float) -> float:
    return TOP + HEIGHT * (1 - fraction)
