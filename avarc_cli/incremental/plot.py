"""A figure of a protocol: the matrix of accuracies, and the mean accuracy after each task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avarc_cli.storage import replacing

if TYPE_CHECKING:
    from avarc_cli.incremental.measures import Results

OURS, BASELINE = "#0072b2", "#d55e00"  # Okabe and Ito: apart for the color-blind too


def draw(results: Results, path: Path) -> None:
    """Write the figure (PNG)."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    titles = results.split.titles
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    _matrix(left, results.with_offset.matrix, titles)
    stages = np.arange(len(titles))
    _line(right, stages, results.with_offset.seen, "classes added to a frozen model", OURS, "o-")
    if results.baseline is not None:
        _line(right, stages, results.baseline.seen, "all weights fine-tuned", BASELINE, "s--")
    right.set_xticks(stages, ["base " + titles[0], *("+ " + title for title in titles[1:])])
    right.set_ylim(0, 1.08)
    right.set_ylabel("mean accuracy over the tasks known")
    right.spines[["top", "right"]].set_visible(False)
    right.legend(frameon=False, loc="lower left")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _matrix(axes: Any, matrix: np.ndarray, titles: tuple[str, ...]) -> None:
    axes.imshow(np.ma.masked_invalid(matrix), vmin=0, vmax=1, cmap="Blues")
    for (i, j), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            axes.text(j, i, f"{value:.1%}", ha="center", va="center", color="white" if value > 0.5 else "black")
    axes.set_xticks(range(len(titles)), titles)
    axes.set_yticks(range(len(titles)), titles)
    axes.set_xlabel("tested on")
    axes.set_ylabel("after learning")


def _line(axes: Any, stages: np.ndarray, values: np.ndarray, label: str, color: str, style: str) -> None:
    axes.plot(stages, values, style, color=color, label=label)
    for x, y in zip(stages, values, strict=True):
        axes.annotate(f"{y:.1%}", (x, y), xytext=(0, 7), textcoords="offset points", ha="center", color=color)
