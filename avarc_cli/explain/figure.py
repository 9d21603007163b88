"""Explanations as one picture, PNG or SVG, drawn with matplotlib (imported when the first picture is drawn)."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from avarc_cli.explain.explanation import Explanation, Panel, headline, limit_of, shorten, signed
from avarc_cli.explain.maps import Float, Weighting
from avarc_cli.explain.palette import color_table

WIDTH, HEIGHT = 12.0, 6.0  # inches of one image's block
DPI = 130
INK, MUTED, FRAME = "#1f2328", "#656d76", "#c4cad1"
OUTLINE_SIDE = 32  # pixels
MAX_STRIP = 12  # scales in the strip; with more, some in between are left out
MAX_TICKS = 24  # labels on the x axis of the chart
NARROW, MAX_NARROW_TICKS = 0.3, 10  # the same of a chart of less than this width
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FRAME,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.parse_math": False,  # a file may be called $x$.png
    "svg.hashsalt": "avarc",  # the same explanation is the same file
    "svg.fonttype": "path",
}


def draw(explanations: Sequence[Explanation], weighting: Weighting, kind: str) -> bytes:
    """One block per image, one below the other, as the bytes of a file.

    Args:
        kind: "png" or "svg".
    Raises: UsageError as `Weighting.of_grids`.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks is drawn as boxes
        figure = Figure(figsize=(WIDTH, HEIGHT * len(explanations)), facecolor="white", dpi=DPI)
        FigureCanvasAgg(figure)
        blocks = figure.subfigures(len(explanations), 1, squeeze=False)[:, 0]
        for block, explanation in zip(blocks, explanations, strict=True):
            _draw_block(block, explanation, weighting)
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": "avarc"})
    return buffer.getvalue()


def _draw_block(block: Any, e: Explanation, weighting: Weighting) -> None:
    panels = e.panels(weighting)
    block.text(0.025, 0.95, shorten(e.path, 90), fontsize=12, fontweight="bold", va="center")
    block.text(0.025, 0.905, shorten(headline(e), 130), fontsize=10, color=MUTED, va="center")
    _draw_maps(block, e, panels)
    if panels[-1].by_footprint:
        _draw_tokens(block, panels[-1])
        _draw_chart(block, e, 0.7, 0.185)
    elif len(panels[-1].grids) > 1:  # a single grid is the map itself
        _draw_strip(block, panels[-1])
        _draw_chart(block, e, 0.7, 0.185)
    else:
        _draw_chart(block, e, 0.055, 0.74)


def _draw_maps(block: Any, e: Explanation, panels: Sequence[Panel]) -> None:
    limit = limit_of([panel.cells for panel in panels])
    left, bottom, size, step = 0.025, 0.425, 0.198, 0.222
    height = size * WIDTH / HEIGHT
    image = block.add_axes((left, bottom, size, height))
    _caption(image, "decoded from its tokens" if e.decoded else "input", f"{_label(e)}")
    if e.pixels is not None:
        image.imshow(e.pixels, interpolation="nearest" if len(e.pixels) < 128 else "antialiased")
    else:
        image.text(0.5, 0.5, "image not found", ha="center", va="center", color=MUTED, transform=image.transAxes)
    _bare(image)
    for i, panel in enumerate(panels, start=1):
        axes = block.add_axes((left + i * step, bottom, size, height))
        shown = _show(axes, panel.cells, limit)
        _outline(axes, e.pixels, panel.cells.shape)
        _caption(axes, panel.title, f"sum {signed(panel.map_sum)} nats")
    bar = block.add_axes((left + len(panels) * step + size + 0.012, bottom, 0.011, height))
    colors = block.figure.colorbar(shown, cax=bar)
    colors.set_label("nats per cell", fontsize=8)
    colors.ax.tick_params(labelsize=7.5, length=2)
    colors.outline.set_edgecolor(FRAME)
    for y, text in ((1.03, "for"), (-0.03, "against")):
        bar.text(0.5, y, text, ha="center", va="bottom" if y > 1 else "top", fontsize=8, transform=bar.transAxes)


def _draw_strip(block: Any, panel: Panel) -> None:
    """The grids one by one."""
    scales = _some(len(panel.grids))
    limit = limit_of(panel.grids)
    left, width, top = 0.025, 0.62, 0.34
    block.text(left, top, f"{shorten(panel.title, 60)}, scale by scale", fontsize=9.5, fontweight="bold", va="center")
    step = min(0.1, width / len(scales))
    size = step * 0.86
    height = size * WIDTH / HEIGHT
    for i, k in enumerate(scales):
        axes = block.add_axes((left + i * step, 0.305 - height, size, height))
        grid = panel.grids[k]
        _show(axes, grid, limit)
        rows, columns = grid.shape
        text = f"{rows}×{columns}\n{signed(float(grid.sum()))}"
        axes.text(0.5, -0.06, text, ha="center", va="top", fontsize=8, transform=axes.transAxes, linespacing=1.35)
    note = f"colors from −{limit:.2g} to +{limit:.2g} nats per token; under each scale the sum of its tokens, in nats"
    block.text(left, 0.025, note, fontsize=8, color=MUTED, va="bottom")


def _draw_tokens(block: Any, panel: Panel) -> None:
    """The tokens as one row."""
    limit, values = limit_of(panel.grids), panel.grids[0]
    title = f"{shorten(panel.title, 60)}, token by token"
    block.text(0.025, 0.34, title, fontsize=9.5, fontweight="bold", va="center")
    axes = block.add_axes((0.025, 0.16, 0.6, 0.12))
    _show(axes, values, limit)
    every = -(-values.shape[1] // MAX_TICKS)
    axes.set_xticks(range(0, values.shape[1], every), range(1, values.shape[1] + 1, every), fontsize=7.5)
    note = f"colors from −{limit:.2g} to +{limit:.2g} nats per token; their sum is {signed(float(values.sum()))} nats"
    block.text(0.025, 0.06, note, fontsize=8, color=MUTED, va="bottom")
    note = (
        "maps: attribution through the decoder. Each token's nats are placed where the decoded image changes when its "
        "code is replaced by the mean code"
    )
    block.text(0.025, 0.025, note, fontsize=8, color=MUTED, va="bottom")


def _draw_chart(block: Any, e: Explanation, left: float, width: float) -> None:
    """Each class's cumulative log-odds as a line from the first step to the last, labelled at its end."""
    lines, steps = e.cumulative_log_odds(), e.steps()
    axes = block.add_axes((left, 0.1, width, 0.205))
    title = f"Cumulative log-odds vs {shorten(e.baseline_name, 30)}, nats"
    block.text(left - 0.03, 0.34, title, fontsize=9.5, fontweight="bold", va="center")
    x = np.arange(1, len(steps.labels) + 1)
    ends = _apart([line.values[-1] for line in lines], axis_height=0.205 * HEIGHT)
    for line, end in zip(lines, ends, strict=True):
        last, strong = line.values[-1], line.name in (e.names[e.target], e.baseline_name)
        axes.plot(x, line.values, color=line.color, lw=2 if strong else 1.2, marker="o", markersize=3 if strong else 2)
        axes.annotate(
            shorten(line.name, 18) + (f" {signed(last, 0)}" if line.name != e.baseline_name else ""),
            (x[-1], last),
            (x[-1] + 0.12 * (len(x) - 1) / 4 + 0.05, end),
            fontsize=8,
            color=line.color,
            va="center",
            annotation_clip=False,
        )
    axes.axhline(0, color=FRAME, linewidth=1, zorder=0)
    every = -(-len(x) // (MAX_TICKS if width > NARROW else MAX_NARROW_TICKS))
    axes.set_xticks(x[::every], steps.labels[::every], fontsize=7.5)
    axes.tick_params(axis="y", labelsize=7.5, length=2)
    axes.tick_params(axis="x", length=2)
    axes.set_xlabel(steps.title, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _show(axes: Any, cells: Float, limit: float) -> Any:
    """Draw a grid over a square, whatever its rows and columns: it covers the image, which is square."""
    from matplotlib.colors import ListedColormap

    colors = ListedColormap(color_table() / 255.0)
    aspect = "equal" if cells.shape[0] == cells.shape[1] else "auto"
    shown = axes.imshow(cells, cmap=colors, vmin=-limit, vmax=limit, interpolation="nearest", aspect=aspect)
    _bare(axes)
    return shown


def _outline(axes: Any, pixels: np.ndarray | None, shape: tuple[int, ...]) -> None:
    """The picture's middle gray as a thin line over a map of this shape, to relate the map to the picture."""
    if pixels is None:
        return
    gray = _coarse(pixels.mean(axis=2), OUTLINE_SIDE)
    level = (float(gray.min()) + float(gray.max())) / 2
    if gray.min() == gray.max():
        return
    y, x = ((np.arange(len(gray)) + 0.5) / len(gray) * cells - 0.5 for cells in shape)  # cell centers are whole numbers
    axes.contour(x, y, gray, levels=[level], colors=[INK], linewidths=0.9, alpha=0.45)


def _coarse(gray_HH: np.ndarray, side: int) -> np.ndarray:
    """Mean over blocks of pixels: the outline of every hair of a photograph would hide the map."""
    block = max(1, len(gray_HH) // side)
    kept = len(gray_HH) // block * block
    coarse: Float = gray_HH[:kept, :kept].reshape(kept // block, block, kept // block, block).mean(axis=(1, 3))
    return coarse


def _bare(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(FRAME)


def _caption(axes: Any, title: str, below: str) -> None:
    axes.set_title("\n".join(textwrap.wrap(shorten(title, 64), 32)[:2]), fontsize=9.5, fontweight="bold", pad=5)
    text = shorten(below, 44)
    axes.text(0.5, -0.03, text, ha="center", va="top", fontsize=8.5, color=MUTED, transform=axes.transAxes)


def _label(e: Explanation) -> str:
    return f"label: {e.label_name}" if e.label_name else ""


def _apart(values: Sequence[float], axis_height: float) -> list[float]:
    """Heights for the labels of lines that end at these values (descending), so that labels do not overlap."""
    low, high = min(0.0, *values), max(0.0, *values)
    gap = (high - low or 1.0) * 0.16 / axis_height  # a line of text is 0.16 inches high
    placed: list[float] = []
    for value in values:
        placed.append(min(value, placed[-1] - gap) if placed else value)
    return placed


def _some(count: int) -> list[int]:
    """All scales, or MAX_STRIP of them from the coarsest to the finest."""
    return sorted(set(np.linspace(0, count - 1, min(count, MAX_STRIP)).round().astype(int).tolist()))
