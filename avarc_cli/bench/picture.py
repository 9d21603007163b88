"""A bench as a bar chart."""

from __future__ import annotations

from pathlib import Path

from avarc_cli.bench.measure import BenchReport
from avarc_cli.storage import replacing
from avarc_cli.words import counted


def bars(report: BenchReport, path: Path) -> None:
    """Write a PNG of pairs per second, plain PyTorch first. Raises: OSError."""
    from matplotlib.figure import Figure

    labels = [f"{r.name}, {r.precision}, {r.kernels}" for r in report.results]
    rates = [r.pairs_per_second for r in report.results]
    figure = Figure(figsize=(7, 1 + 0.45 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.barh(labels, rates, color=["#adc6d9", *["#0072b2"] * (len(labels) - 1)])
    axes.bar_label(drawn, [f"{r.pairs_per_second:.3g}  ({r.speedup:.2f}x)" for r in report.results], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlabel("pairs of image and class per second")
    axes.set_title(
        f"{report.shape} on {report.device}, {counted(report.threads, 'thread')}, {counted(report.pairs, 'pair')}"
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
