"""How close scoring comes to what the machine can do, part by part, for small jobs and large ones.

At the measured peak, a part takes the time of its matrix products at the rate of their dtype; a part without products
the time of moving its bytes once. Host work would take none. The difference to the time that it takes is left to gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from avarc_cli.bench.measure import BenchOptions, class_ids, models, scorer
from avarc_cli.bench.parts import Recorder, Spent, recorded
from avarc_cli.bench.peaks import bandwidth, rates
from avarc_cli.bench.timing import timed
from avarc_cli.family import BenchWorkload
from avarc_cli.layers.precision import tf32
from avarc_cli.likelihood import LikelihoodModel

SMALL_JOBS = (1, 4)  # pairs
HOST = "host work"


@dataclass(frozen=True)
class Peaks:
    """What the machine can do at most, measured in the same run."""

    operations: Mapping[str, float]
    """Of matrix products per second, by dtype: "float32"."""
    bytes: float
    """Read and written per second, by a copy that fits into the caches if that is faster."""

    def seconds(self, spent: Spent) -> float:
        """What a part would take at the peak."""
        products = sum(count / self.operations[_name(dtype)] for dtype, count in spent.operations.items())
        return products or spent.bytes / self.bytes


@dataclass(frozen=True)
class Part:
    """One part of a job. Field names are keys of `avarc bench --roofline --json`."""

    name: str
    """One of `PARTS`, or "host work"."""
    seconds: float
    """Measured."""
    at_peak: float
    """Seconds that it would take at the machine's peak."""
    operations: int
    """Of matrix products; a multiply-add counts as 2."""
    bytes: int
    """Read and written, at least."""

    @property
    def share_of_peak(self) -> float:
        """Of what the machine can do at most."""
        return self.at_peak / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Job:
    """Some pairs scored together."""

    pairs: int
    """Of the image and a class."""
    seconds: float
    """Of the fastest round in which the parts were timed; theirs add up to it."""
    seconds_untimed: float
    """Of the fastest round in which they were not: the difference is what timing them costs."""
    parts: tuple[Part, ...]
    """Host work last."""

    @property
    def at_peak(self) -> float:
        """Seconds that it would take at the peak."""
        return sum(part.at_peak for part in self.parts)

    @property
    def gains(self) -> tuple[tuple[str, float], ...]:
        """(part, fraction of the job's time that it would be shorter at the peak), largest first."""
        left = [(part.name, (part.seconds - part.at_peak) / self.seconds) for part in self.parts]
        return tuple(sorted(left, key=lambda item: -item[1]))


@dataclass(frozen=True)
class Roofline:
    """One precision with one backend."""

    precision: str
    """Of the linears."""
    kernels: str
    """"torch" or "triton"."""
    jobs: tuple[Job, ...]
    """Small ones first."""


@dataclass(frozen=True)
class RooflineReport:
    """All precisions of a shape."""

    shape: str
    """Name of the workload."""
    device: str
    """As torch names it."""
    threads: int
    """Of torch."""
    peaks: Peaks
    """Of this machine."""
    results: tuple[Roofline, ...]
    """In the order of precisions."""


def measure_roofline(
    workload: BenchWorkload, shape: str, options: BenchOptions, device: torch.device
) -> RooflineReport:
    """Score jobs of a few pairs and of `options.pairs`, timing every part.

    Args:
        shape: name of the workload, for the report.
    Raises: UsageError for a precision or kernels that are unknown or unavailable.
    """
    sizes = sorted({*(pairs for pairs in SMALL_JOBS if pairs < options.pairs), options.pairs})
    measured: list[tuple[str, str, list[_Timing]]] = []
    operations: dict[torch.dtype, float] = {}
    moved = bandwidth(device)
    for precision, kernels, model in models(workload, options, device):
        timings = [_time(workload, model, precision, pairs, options.rounds, device) for pairs in sizes]
        measured.append((precision, kernels, timings))
        seen = {dtype for timing in timings for spent in timing.spent.values() for dtype in spent.operations}
        # Again after every precision: another process may have disturbed one measurement.
        rate = rates({*operations, *seen}, device)
        operations = {dtype: max(rate[dtype], operations.get(dtype, 0.0)) for dtype in rate}
        moved = max(moved, bandwidth(device))
    peaks = Peaks({_name(dtype): rate for dtype, rate in operations.items()}, moved)
    return RooflineReport(
        shape=shape,
        device=str(device),
        threads=torch.get_num_threads(),
        peaks=peaks,
        results=tuple(
            Roofline(precision, kernels, tuple(_job(timing, peaks) for timing in timings))
            for precision, kernels, timings in measured
        ),
    )


@dataclass
class _Timing:
    """What was measured of a job: the fastest rounds."""

    pairs: int
    spent: Mapping[str, Spent]
    """Of each part, in the round of `timed`."""
    timed: float = float("inf")
    """Seconds of a round in which parts were timed."""
    untimed: float = float("inf")
    """Seconds of a round in which they were not."""


def _time(
    workload: BenchWorkload, model: LikelihoodModel, precision: str, pairs: int, rounds: int, device: torch.device
) -> _Timing:
    """Score the pairs with and without timed parts, in turns."""
    score = scorer(model, workload.tokens_L, class_ids(workload, pairs, device))
    timing = _Timing(pairs, {})
    with tf32(precision == "tf32"):
        score()  # warms up
        for _ in range(rounds):
            timing.untimed = min(timing.untimed, timed(score, device)[0])
            recorder = Recorder(device)
            with recorded(recorder):
                seconds = timed(score, device)[0]
            if seconds < timing.timed:
                timing.timed, timing.spent = seconds, recorder.spent
    return timing


def _job(timing: _Timing, peaks: Peaks) -> Job:
    parts = [
        Part(name, spent.seconds, peaks.seconds(spent), sum(spent.operations.values()), spent.bytes)
        for name, spent in timing.spent.items()
    ]
    rest = timing.timed - sum(part.seconds for part in parts)
    return Job(timing.pairs, timing.timed, timing.untimed, (*parts, Part(HOST, rest, 0.0, 0, 0)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
