"""What `avarc bench --roofline` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from avarc_cli import console
from avarc_cli.words import counted

if TYPE_CHECKING:
    from avarc_cli.bench.roofline import Job, Roofline, RooflineReport
    from avarc_cli.tables import Layout

PAIRS = 12  # of the large job: four batches of a d16 on a CPU
GAINS = 3  # that are named


def show(report: RooflineReport) -> None:
    """Print a table of each precision's parts."""
    peaks = {name: f"{rate / 1e9:,.0f} G operations/s" for name, rate in report.peaks.operations.items()}
    peaks |= {"bytes": f"{report.peaks.bytes / 1e9:,.0f} GB/s, read and written"}
    console.result(
        {"roofline": report},
        console.stack(
            f"{report.shape} on {report.device}, {counted(report.threads, 'thread')}",
            console.fields("Peaks, measured", peaks),
            *(part for result in report.results for part in _tables(result)),
            "of peak: of the rate of matrix products; where there are none, of moved bytes\n"
            "host work: what belongs to no other part, such as copies and Python",
        ),
        brief=[(r.precision, r.kernels, f"{r.jobs[-1].at_peak / r.jobs[-1].seconds:.2f}") for r in report.results],
    )


def _tables(result: Roofline) -> tuple[Layout, str]:
    columns = ["", *(name for job in result.jobs for name in (counted(job.pairs, "pair"), "of peak"))]
    rows = [
        [name, *(cell for job in result.jobs for cell in _part(job, i))]
        for i, name in enumerate(part.name for part in result.jobs[0].parts)
    ]
    whole = [cell for job in result.jobs for cell in (_ms(job.seconds), f"{job.at_peak / job.seconds:.0%}")]
    gains = [f"{counted(job.pairs, 'pair')}: {_gains(job)}" for job in result.jobs]
    title = f"{result.precision}, {result.kernels}"
    left = "\n".join(["left to gain, of the time", *(f"  {line}" for line in gains)])
    return console.table(title, columns, [*rows, ["whole", *whole]]), left


def _part(job: Job, index: int) -> tuple[str, str]:
    part = job.parts[index]
    return _ms(part.seconds), f"{part.share_of_peak:.0%}" if part.at_peak else ""


def _gains(job: Job) -> str:
    """What is left to gain, and what timing the parts cost."""
    total = sum(share for _, share in job.gains)
    named = ", ".join(f"{name} {share:.0%}" for name, share in job.gains[:GAINS])
    return f"{total:.0%} ({named}); timing: {job.seconds / job.seconds_untimed - 1:+.0%}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"
