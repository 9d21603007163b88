"""Few pairs scored by CUDA graphs: the kernels of a pass are recorded once, and replayed without launching each.

A pass of one to four pairs may take less time on a GPU than its launches take the processor; then a graph is faster.

Shapes: P pairs of one image and a class, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from avarc_cli.bench.timing import timed
from avarc_cli.errors import first_line
from avarc_cli.likelihood import LikelihoodModel

PAIRS = (1, 2, 4)
WARMUPS = 3  # passes before one is recorded: cuBLAS allocates what it needs in the first
PASSES = 10  # that are timed together
ROUNDS = 3  # of which the fastest counts

Pass = Callable[[], Tensor]


@dataclass(frozen=True)
class GraphResult:
    """A pass over the first segments of an image. Field names are keys of `avarc bench --json`."""

    precision: str
    """Of the linears."""
    kernels: str
    """As of a `BenchResult`."""
    pairs: int
    """Of the pass."""
    segments: int
    """That it scores."""

    eager_seconds: float | None = None
    """Of a pass whose kernels are launched one by one."""
    replay_seconds: float | None = None
    """Of the same pass as a graph."""
    speedup: float | None = None
    """Of the graph over launches."""
    error_max: float | None = None
    """Largest absolute difference between the two, nats per token."""

    failed: str = ""
    """Why the pass cannot be recorded, as one that waits for the GPU; "" where it can."""


def missing(device: torch.device) -> str | None:
    """Why there are no CUDA graphs on this device; None where there are."""
    return None if device.type == "cuda" else f"CUDA graphs need a CUDA device, not {device.type}"


def captured(run: Pass) -> Pass:
    """The pass as a CUDA graph. Raises: RuntimeError for one that waits for the GPU or copies from pageable memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def measure_graphs(
    model: LikelihoodModel,
    tokens_L: Tensor,
    stops: tuple[int, ...],
    what: GraphResult,
    capture: Callable[[Pass], Pass] = captured,
) -> tuple[GraphResult, ...]:
    """Time passes of few pairs up to each of these segments.

    Args:
        what: precision and kernels of the model. capture: makes a graph of a pass.
    """
    shapes = [replace(what, pairs=pairs, segments=stop) for stop in stops for pairs in PAIRS]
    return tuple(_measure(model, tokens_L, shape, capture) for shape in shapes)


def _measure(
    model: LikelihoodModel, tokens_L: Tensor, shape: GraphResult, capture: Callable[[Pass], Pass]
) -> GraphResult:
    device = tokens_L.device
    try:
        eager = _fastest(lambda: _passes(model, tokens_L, shape), device)
        states = _states(model, tokens_L, shape, WARMUPS + 1)
        replay = capture(_pass(model, states, shape))
        graph = _fastest(lambda: replay, device)
    except RuntimeError as problem:
        return replace(shape, failed=first_line(problem))
    out = _passes(model, tokens_L, shape)()
    error_max = float((replay().double() - out.double()).abs().max())
    return replace(shape, eager_seconds=eager, replay_seconds=graph, speedup=eager / graph, error_max=error_max)


def _states(model: LikelihoodModel, tokens_L: Tensor, shape: GraphResult, count: int) -> Iterator[Any]:
    """States before the first segment: what a stage prepares before its passes is neither timed nor recorded."""
    class_id_P = torch.arange(shape.pairs) % model.num_classes
    sequence_P = torch.zeros_like(class_id_P)
    return iter([model.begin(tokens_L[None], sequence_P, class_id_P) for _ in range(count)])


def _pass(model: LikelihoodModel, states: Iterator[Any], shape: GraphResult) -> Pass:
    """Scores the next of the states."""
    return lambda: model.extend(next(states), shape.segments, keep_cache_segments=0)


def _passes(model: LikelihoodModel, tokens_L: Tensor, shape: GraphResult) -> Pass:
    """As many passes as are timed together, on states of their own."""
    return _pass(model, _states(model, tokens_L, shape, PASSES), shape)


def _fastest(make: Callable[[], Pass], device: torch.device) -> float:
    """Seconds of a pass, the fewest of some rounds."""
    return min(_seconds(make(), device) for _ in range(ROUNDS))


def _seconds(run: Pass, device: torch.device) -> float:
    def several() -> Tensor:
        for _ in range(PASSES - 1):
            run()
        return run()

    if device.type == "cuda":
        torch.cuda.synchronize(device)  # until the states are there
    return timed(several, device)[0] / PASSES
