"""Explanations as one picture, PNG or SVG. Drawn with matplotlib, which is imported when a picture is asked for."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from avarc_cli.explain.explanation import Explanation, Panel, headline, limit_of, signed
from avarc_cli.explain.maps import Float, Weighting
from avarc_cli.explain.palette import table

WIDTH, HEIGHT = 12.0, 6.0  # inches of one image's block
DPI = 130
INK, MUTED, FRAME = "#1f2328", "#656d76", "#c4cad1"
OUTLINE_SIDE = 32  # pixels
MAX_STRIP = 12  # scales in the strip; of more, some in between are left out
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
    """One block an image, one below the other. kind: "png" or "svg"."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a script that the font does not have: boxes will do
        figure = Figure(figsize=(WIDTH, HEIGHT * len(explanations)), facecolor="white", dpi=DPI)
        FigureCanvasAgg(figure)
        blocks = figure.subfigures(len(explanations), 1, squeeze=False)[:, 0]
        for block, explanation in zip(blocks, explanations, strict=True):
            _draw_block(block, explanation, weighting)
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": "avarc"})
    return buffer.getvalue()


def _draw_block(block: Any, e: Explanation, weighting: Weighting) -> None:
    panels = e.panels(weighting)
    block.text(0.025, 0.95, _cut(e.path, 90), fontsize=12, fontweight="bold", va="center")
    block.text(0.025, 0.905, _cut(headline(e), 130), fontsize=10, color=MUTED, va="center")
    _draw_maps(block, e, panels)
    _draw_strip(block, e, panels[-1])
    _draw_leads(block, e)


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
        _outline(axes, e.pixels, len(panel.cells))
        _caption(axes, panel.title, f"sum {signed(panel.total)} nats")
    bar = block.add_axes((left + len(panels) * step + size + 0.012, bottom, 0.011, height))
    colours = block.figure.colorbar(shown, cax=bar)
    colours.set_label("nats a cell", fontsize=8)
    colours.ax.tick_params(labelsize=7.5, length=2)
    colours.outline.set_edgecolor(FRAME)
    for y, text in ((1.03, "for"), (-0.03, "against")):
        bar.text(0.5, y, text, ha="center", va="bottom" if y > 1 else "top", fontsize=8, transform=bar.transAxes)


def _draw_strip(block: Any, e: Explanation, panel: Panel) -> None:
    scales = _some(len(panel.scales))
    limit = limit_of(panel.scales)
    left, width, top = 0.025, 0.62, 0.34
    block.text(left, top, f"{_cut(panel.title, 60)}, scale by scale", fontsize=9.5, fontweight="bold", va="center")
    step = min(0.1, width / len(scales))
    size = step * 0.86
    height = size * WIDTH / HEIGHT
    for i, k in enumerate(scales):
        axes = block.add_axes((left + i * step, 0.305 - height, size, height))
        _show(axes, panel.scales[k], limit)
        side = e.patch_nums[k]
        text = f"{side}×{side}\n{signed(float(panel.scales[k].sum()))}"
        axes.text(0.5, -0.06, text, ha="center", va="top", fontsize=8, transform=axes.transAxes, linespacing=1.35)
    note = f"colours from −{limit:.2g} to +{limit:.2g} nats a token; under each scale the sum of its tokens, in nats"
    block.text(left, 0.025, note, fontsize=8, color=MUTED, va="bottom")


def _draw_leads(block: Any, e: Explanation) -> None:
    leads = e.leads()
    axes = block.add_axes((0.7, 0.1, 0.185, 0.205))
    against = "unconditional" if e.rival is None else e.names[e.rival]
    block.text(0.67, 0.34, f"Lead over {_cut(against, 30)}, nats", fontsize=9.5, fontweight="bold", va="center")
    x = np.arange(1, len(e.patch_nums) + 1)
    ends = _apart([line[-1] for _, line in leads], axis_height=0.205 * HEIGHT)
    for (name, lead), colour, end in zip(leads, e.line_colours(leads), ends, strict=True):
        strong = name in (e.names[e.subject], against)
        axes.plot(x, lead, color=colour, linewidth=2 if strong else 1.2, marker="o", markersize=3 if strong else 2)
        axes.annotate(
            _cut(name, 18) + (f" {signed(lead[-1], 0)}" if name != against else ""),
            (x[-1], lead[-1]),
            (x[-1] + 0.12 * (len(x) - 1) / 4 + 0.05, end),
            fontsize=8,
            color=colour,
            va="center",
            annotation_clip=False,
        )
    axes.axhline(0, color=FRAME, linewidth=1, zorder=0)
    axes.set_xticks(x, [str(p) for p in e.patch_nums], fontsize=7.5)
    axes.tick_params(axis="y", labelsize=7.5, length=2)
    axes.tick_params(axis="x", length=2)
    axes.set_xlabel("tokens a side, coarse to fine", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _show(axes: Any, cells: Float, limit: float) -> Any:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap(table() / 255.0)
    shown = axes.imshow(cells, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
    _bare(axes)
    return shown


def _outline(axes: Any, pixels: np.ndarray | None, cells: int) -> None:
    """The picture's middle grey as a thin line over a map, so that the eye finds the place again."""
    if pixels is None:
        return
    grey = _coarse(pixels.mean(axis=2), OUTLINE_SIDE)
    level = (float(grey.min()) + float(grey.max())) / 2
    if grey.min() == grey.max():
        return
    at = (np.arange(len(grey)) + 0.5) / len(grey) * cells - 0.5  # a cell's centre is a whole number
    axes.contour(at, at, grey, levels=[level], colors=[INK], linewidths=0.9, alpha=0.45)


def _coarse(grey_HH: np.ndarray, side: int) -> np.ndarray:
    """Mean over blocks of pixels: outlines of a photograph's every hair would hide the map."""
    block = max(1, len(grey_HH) // side)
    kept = len(grey_HH) // block * block
    coarse: Float = grey_HH[:kept, :kept].reshape(kept // block, block, kept // block, block).mean(axis=(1, 3))
    return coarse


def _bare(axes: Any) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(FRAME)


def _caption(axes: Any, title: str, below: str) -> None:
    axes.set_title("\n".join(textwrap.wrap(_cut(title, 64), 32)[:2]), fontsize=9.5, fontweight="bold", pad=5)
    axes.text(0.5, -0.03, _cut(below, 44), ha="center", va="top", fontsize=8.5, color=MUTED, transform=axes.transAxes)


def _label(e: Explanation) -> str:
    return f"label: {e.label_name}" if e.label_name else ""


def _apart(values: Sequence[float], axis_height: float) -> list[float]:
    """Heights for the labels of lines that end at these values (descending), so that none covers another."""
    low, high = min(0.0, *values), max(0.0, *values)
    gap = (high - low or 1.0) * 0.16 / axis_height  # a line of text is 0.16 inches high
    placed: list[float] = []
    for value in values:
        placed.append(min(value, placed[-1] - gap) if placed else value)
    return placed


def _some(count: int) -> list[int]:
    """All scales, or MAX_STRIP of them from the coarsest to the finest."""
    return sorted(set(np.linspace(0, count - 1, min(count, MAX_STRIP)).round().astype(int).tolist()))


def _cut(text: str, width: int) -> str:
    """The text in one line of at most so many characters, with what is no valid Unicode written out."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
