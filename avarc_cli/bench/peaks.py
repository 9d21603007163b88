"""What a machine can do at most, measured: matrix products of each dtype, and bytes moved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from avarc_cli.layers.linears import Int8LinearCPU
from avarc_cli.settings import LIBRARIES
from avarc_kernels.int16_linear import int16_linear, pack
from avarc_kernels.linear import linear, missing

ROWS, CHANNELS, OUT = 2048, 1024, 4096  # of a block of width 1024, a full batch on a CPU
COPIED = (2**18, 2**21, 2**25)  # float32 numbers: in a core's cache, in the caches of most CPUs, in memory
ROUNDS = 5


def rates(dtypes: Iterable[torch.dtype], device: torch.device) -> dict[torch.dtype, float]:
    """Operations per second of a matrix product of each dtype, by the fastest library."""
    return {dtype: max(map(_rate, _ways(dtype, device))) for dtype in dtypes}


def bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy: the fastest of `COPIED`, so caches are included."""
    return max(_copied(numbers, device) for numbers in COPIED)


def _copied(numbers: int, device: torch.device) -> float:
    source = torch.zeros(numbers, device=device)
    target, repeats = torch.empty_like(source), max(1, COPIED[-1] // numbers // 16)
    return 2 * source.nbytes * repeats / _best(lambda: _copy(source, target, repeats), device)


def _copy(source: Tensor, target: Tensor, repeats: int) -> None:
    for _ in range(repeats):
        target.copy_(source)


def _ways(dtype: torch.dtype, device: torch.device) -> list[tuple[Callable[[], object], torch.device]]:
    """Products of this dtype, each by another library."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, CHANNELS, generator=generator).to(device)
    weight = torch.randn(OUT, CHANNELS, generator=generator).to(device)
    if dtype.itemsize == 1:  # GPUs multiply 8-bit floats as fast as integers
        return _int8(x, weight)
    if dtype == torch.int16:
        return [(partial(int16_linear, x, pack(weight), None), device)]  # also converts x: a few percent of the time
    x, weight = x.to(dtype), weight.to(dtype)
    backends = [library for library in LIBRARIES if missing(library, x) is None]
    return [(partial(linear, x, weight, None, backend=backend), device) for backend in backends]


def _int8(x: Tensor, weight: Tensor) -> list[tuple[Callable[[], object], torch.device]]:
    """The product alone, without what turns float32 into bytes."""
    if x.device.type == "cuda":
        a, b = x.to(torch.int8), weight.to(torch.int8).T
        return [(lambda: torch._int_mm(a, b), x.device)]
    layer = torch.nn.Linear(CHANNELS, OUT, bias=False).requires_grad_(False)
    layer.weight.data = weight
    packed, x_bytes = Int8LinearCPU(layer, torch.float32), x.abs().to(torch.uint8)
    return [(lambda: packed.multiply(x_bytes), x.device)]


def _rate(way: tuple[Callable[[], object], torch.device]) -> float:
    return 2 * ROWS * CHANNELS * OUT / _best(*way)


@torch.inference_mode()
def _best(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest call."""
    seconds = []
    for _ in range(1 + ROUNDS):  # the first warms up
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])
