"""Measure what scoring costs: every available precision and backend, and plain PyTorch, in turn.

Shapes: P pairs of one image and a class, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avarc_cli.bench import graphs
from avarc_cli.bench.graphs import GraphResult
from avarc_cli.bench.timing import breakdown, peak_memory, timed
from avarc_cli.devices import pick_kernels, product_rate
from avarc_cli.family import BenchWorkload
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.precision import tf32
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.settings import FLASH, flash_refuses
from avarc_kernels import triton_missing

BATCH_TOKENS = 2048  # what scoring.batching gives a d16 on a CPU
SAMPLES = 64  # of an image, at most, in plans whose tokens are counted


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure."""

    pairs: int = 4
    """Pairs of the image and a class that are scored."""

    rounds: int = 2
    """Times that every way to score is timed; the fastest counts."""

    classes: int = 100
    """Candidates per image, for images per second and for counting the plan's tokens."""

    plan: str | None = None
    """Plan whose tokens are counted; None for the paper's where the model has its ten scales, else exhaustive."""

    precision: str | None = None
    """Only these precisions, comma-separated; None for all that are available."""

    kernels: str | None = None
    """Only these kernels, comma-separated; None for torch and, where it runs, triton."""

    graphs: bool = False
    """Whether passes of few pairs are timed as CUDA graphs too."""


@dataclass(frozen=True)
class BenchResult:
    """One way to score. Times are of the fastest round. Field names are keys of `avarc bench --json`."""

    name: str
    """"plain PyTorch" or "avarc"."""
    precision: str
    """Of the linears: "fp32"."""
    kernels: str
    """"eager" (plain PyTorch), or as `devices.pick_kernels` names them."""

    seconds: float
    """Wall time of all pairs."""

    cpu_seconds: float
    """CPU time of all pairs, all threads together."""

    pairs_per_second: float
    """Pairs of the image and a class."""
    images_per_second: float
    """Of `BenchOptions.classes` candidates each."""
    tokens_per_second: float
    """Token log-probabilities."""

    flops: float
    """Operations per second, only the necessary ones."""

    share_of_peak: float
    """`flops` as a fraction of the machine's rate of matrix products (fp32 on a CPU, bf16 on CUDA)."""

    memory: int | None
    """Most bytes taken beyond the weights; None where that cannot be measured."""

    speedup: float
    """Over plain PyTorch."""

    error_mean: float
    """Mean absolute difference to plain PyTorch, nats per token."""

    error_max: float
    """Largest absolute difference to plain PyTorch, nats per token."""

    ops: tuple[tuple[str, float], ...]
    """(operation, fraction of the time), largest first."""


@dataclass(frozen=True)
class BenchReport:
    """A bench. Field names are keys of `avarc bench --json`."""

    shape: str
    """Name of the workload."""
    device: str
    """As torch names it."""
    threads: int
    """Of torch."""
    pairs: int
    """Pairs of the image and a class that were scored."""

    peak_flops: float
    """Operations per second of matrix products."""

    results: tuple[BenchResult, ...]
    """Plain PyTorch first."""

    plan: str
    """The plan whose tokens were counted."""
    classes: int
    """Candidates of an image under that plan."""

    tokens_exhaustive: int
    """Token log-probabilities of one image when every class is scored on everything."""

    tokens_again: int
    """The same under the plan when every stage starts from the first token."""

    tokens_plan: int
    """The same under the plan when stages reuse prefixes."""

    graphs: tuple[GraphResult, ...] = ()
    """Passes of few pairs as CUDA graphs, if they were asked for."""

    graphs_skipped: str = ""
    """Why there are none although they were."""


@dataclass(frozen=True)
class _Way:
    """A way to score all pairs."""

    name: str
    precision: str
    kernels: str
    score: Callable[[], Tensor]

    def run(self) -> Tensor:
        with tf32(self.precision == "tf32"):
            return self.score()


@dataclass
class _Timing:
    """What was measured of one way."""

    out: Tensor
    """What it returned."""
    memory: int | None
    """Most bytes taken beyond the weights; None where that cannot be measured."""
    wall: float = float("inf")
    """Seconds of the fastest round."""
    cpu: float = float("inf")
    """CPU seconds of that round, all threads together."""


def measure(workload: BenchWorkload, shape: str, options: BenchOptions, device: torch.device) -> BenchReport:
    """Score the same pairs in every available way, in turn.

    Args:
        shape: name of the workload, for the report.
    Raises: UsageError for a plan, precision or kernels that are unknown or unavailable.
    """
    ends, classes = workload.segment_ends, options.classes
    plan = parse_plan(
        options.plan or default_plan(len(ends), classes), segments=len(ends), candidates=classes, samples=SAMPLES
    )
    ways = _ways(workload, options, device)
    peak, timings = _time_in_turn(ways, options.rounds, device)
    results = [
        _result(way, timing, timings[0], workload, options, peak, breakdown(way.run, device))
        for way, timing in zip(ways, timings, strict=True)
    ]
    return BenchReport(
        shape=shape,
        device=str(device),
        threads=torch.get_num_threads(),
        pairs=options.pairs,
        peak_flops=peak,
        results=tuple(results),
        plan=str(plan),
        classes=classes,
        tokens_exhaustive=classes * ends[-1],
        tokens_again=tokens_without_reuse(plan, classes, ends),
        tokens_plan=plan.tokens(classes, ends),
        graphs=_graphs(workload, ways, plan) if options.graphs and not graphs.missing(device) else (),
        graphs_skipped=(graphs.missing(device) or "") if options.graphs else "",
    )


def default_plan(segments: int, classes: int) -> str:
    """The paper's plan where it can be carried out, else exhaustive scoring."""
    return "paper" if segments == 10 and classes >= 10 else "exhaustive"


def tokens_without_reuse(plan: Plan, candidates: int, ends: tuple[int, ...]) -> int:
    """Tokens scored for one image when every stage scores all of its samples from the first token on."""
    total = 0
    for stage in plan.stages:
        total += candidates * stage.samples * ends[stage.segments - 1]
        candidates = min(candidates, stage.keep)
    return total


def _ways(workload: BenchWorkload, options: BenchOptions, device: torch.device) -> list[_Way]:
    """Plain PyTorch, then every precision with every backend."""
    class_id_P = class_ids(workload, options.pairs, device)
    ways = [_Way("plain PyTorch", "fp32", "eager", lambda: workload.reference(class_id_P))]
    for name, backend, model in models(workload, options, device):
        ways.append(_Way("avarc", name, backend, scorer(model, workload.tokens_L, class_id_P)))
    return ways


def class_ids(workload: BenchWorkload, pairs: int, device: torch.device) -> Tensor:
    """The classes of this many pairs."""
    return torch.arange(pairs, device=device) % workload.num_classes


def models(
    workload: BenchWorkload, options: BenchOptions, device: torch.device
) -> Iterator[tuple[str, str, LikelihoodModel]]:
    """(precision, kernels, model) for those that are asked for, or else all that are available.

    Raises: UsageError for a precision or kernels that are unknown or unavailable.
    """
    asked = precisions.available(device) if options.precision is None else options.precision.split(",")
    names = [precisions.find(name.strip(), device).name for name in asked]
    backends = ["torch"] if triton_missing(device) else ["torch", "triton"]
    if options.kernels is not None:
        backends = [kernels.strip() for kernels in options.kernels.split(",")]
    for name in names:
        for backend in dict.fromkeys(pick_kernels(kernels, device, name) for kernels in backends):
            if backend.startswith(FLASH) and flash_refuses(name) is not None:
                continue
            yield name, backend, workload.model(name, backend)


def _graphs(workload: BenchWorkload, ways: Sequence[_Way], plan: Plan) -> tuple[GraphResult, ...]:
    """Passes up to the end of each stage, in every way but plain PyTorch."""
    stops = tuple(sorted({stage.segments for stage in plan.stages}))
    results: list[GraphResult] = []
    for way in ways[1:]:
        model, what = workload.model(way.precision, way.kernels), GraphResult(way.precision, way.kernels, 0, 0)
        results += graphs.measure_graphs(model, workload.tokens_L, stops, what)
    return tuple(results)


def scorer(model: LikelihoodModel, tokens_L: Tensor, class_id_P: Tensor) -> Callable[[], Tensor]:
    """Scores all pairs, in batches of the usual size."""
    pairs_at_once = max(1, BATCH_TOKENS // len(tokens_L)) if tokens_L.device.type != "cuda" else len(class_id_P)

    def score() -> Tensor:
        log_prob = []
        for class_id_Q in class_id_P.split(pairs_at_once):
            state = model.begin(tokens_L[None], torch.zeros_like(class_id_Q), class_id_Q)
            log_prob.append(model.extend(state, len(model.segment_ends), keep_cache_segments=0))
        return torch.cat(log_prob)

    return score


def _time_in_turn(ways: Sequence[_Way], rounds: int, device: torch.device) -> tuple[float, list[_Timing]]:
    """(operations per second of matrix products, timings). Ways take turns, so that all see the same disturbances."""
    peak = product_rate(device)
    timings: list[_Timing] = []
    for way in ways:  # warms up
        memory, out = peak_memory(way.run, device)
        timings.append(_Timing(out, memory))
    for _ in range(rounds):
        peak = max(peak, product_rate(device))  # measured again: another process may have disturbed one
        for way, timing in zip(ways, timings, strict=True):
            wall, cpu = timed(way.run, device)
            timing.wall, timing.cpu = min((timing.wall, timing.cpu), (wall, cpu))
    return peak, timings


def _result(
    way: _Way,
    timing: _Timing,
    plain: _Timing,
    workload: BenchWorkload,
    options: BenchOptions,
    peak: float,
    ops: tuple[tuple[str, float], ...],
) -> BenchResult:
    error = (timing.out.double() - plain.out.double()).abs()
    flops = workload.flops * options.pairs / timing.wall
    return BenchResult(
        name=way.name,
        precision=way.precision,
        kernels=way.kernels,
        seconds=timing.wall,
        cpu_seconds=timing.cpu,
        pairs_per_second=options.pairs / timing.wall,
        images_per_second=options.pairs / timing.wall / options.classes,
        tokens_per_second=options.pairs * workload.segment_ends[-1] / timing.wall,
        flops=flops,
        share_of_peak=flops / peak,
        memory=timing.memory,
        speedup=plain.wall / timing.wall,
        error_mean=float(error.mean()),
        error_max=float(error.max()),
        ops=ops,
    )
