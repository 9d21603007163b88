"""What the file of an operation provides, and how it is checked and timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from avarc_kernels.testing import assert_within, max_error

Call = Callable[[], Tensor]
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
CHECKED_ROWS = 1024  # of matmuls: float64 is slow on most GPUs
CPU_REPEATS = 5
OURS = ("triton", "torch")  # implementations whose error is bounded; the others are shown for comparison


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation on one shape in one dtype."""

    op: str
    shape: str
    dtype: torch.dtype
    calls: dict[str, Call]  # implementations by name; `OURS` and others
    expected: Tensor  # the first rows of the result, in float64
    bound: float  # on the absolute error of our implementations
    compared: Callable[[Tensor], Tensor] = lambda result: result  # what is compared to `expected`
    flops: float = 0.0  # useful operations per call; a multiply-add counts as 2
    traffic: float = 0.0  # bytes that a call must move


@dataclass(kw_only=True)
class Figure:
    """One measured call of a case."""

    op: str
    shape: str
    dtype: str
    name: str
    seconds: float | None = None
    memory: int | None = None  # bytes allocated at the peak, minus those allocated before
    error: float | None = None  # largest absolute error
    allowed: float | None = None
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    failed: str = ""  # the exception, if there was one
    mismatch: str = ""  # where the error is largest, if it exceeds what is allowed

    @property
    def wrong(self) -> bool:
        """Whether one of our implementations failed or exceeded its error bound."""
        return self.name in OURS and bool(self.failed or self.mismatch)


def measure(case: Case, name: str, *, timed: bool) -> Figure:
    """Check one implementation against float64 and, if `timed`, time it."""
    figure = Figure(op=case.op, shape=case.shape, dtype=str(case.dtype).removeprefix("torch."), name=name)
    call = case.calls[name]
    try:
        _check(case, call, figure)
        if timed:
            figure.seconds = seconds(call)
            figure.memory = peak_memory(call)
            figure.flops_per_second = case.flops / figure.seconds or None
            figure.bytes_per_second = case.traffic / figure.seconds or None
    except Exception as e:  # noqa: BLE001 - one implementation that fails must not hide the figures of the others
        figure.failed = f"{type(e).__name__}: {str(e).strip().partition(chr(10))[0][:200]}"
    return figure


def _check(case: Case, call: Call, figure: Figure) -> None:
    actual = case.compared(call())[: len(case.expected)]
    figure.error, figure.allowed = max_error(actual, case.expected), case.bound
    try:
        assert_within(actual, case.expected, case.bound, op=case.op)
    except AssertionError as e:
        figure.mismatch = str(e)


def seconds(call: Call) -> float:
    """Median time of a call; on a GPU with a cold L2 cache."""
    if HAS_GPU:
        from triton.testing import do_bench

        return float(do_bench(call, warmup=50, rep=200, return_mode="median")) / 1e3
    times = []
    for _ in range(CPU_REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def peak_memory(call: Call) -> int | None:
    """Bytes that a call allocates at its peak, its result included; None on a CPU, where torch does not count them."""
    if not HAS_GPU:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations per second of a large square matmul: the peak that this machine reaches."""
    n = 8192 if HAS_GPU else 1024
    a, b = torch.randn(2, n, n, device=DEVICE).to(dtype)
    return 2 * n**3 / seconds(lambda: a @ b)


def compiled(call: Call) -> Call:
    """The call through torch.compile, compiled when first called; the shapes never change."""
    return torch.compile(call, dynamic=False) if HAS_GPU else _no_gpu


def _no_gpu() -> Tensor:
    raise RuntimeError("compared on a GPU only")
