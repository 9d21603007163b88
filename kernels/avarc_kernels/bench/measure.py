"""What an op's file hands over, and how it is timed and checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

Call = Callable[[], Tensor]
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
WIDTHS = {"d16": (1024, 16), "d30": (1920, 30), "small": (128, 2)}  # width, heads; heads are 64 wide
SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16) if HAS_GPU else (1, 2, 3, 4, 5, 6)  # the interpreter is slow
VOCABULARY = 4096 if HAS_GPU else 600
CPU_REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op on one shape in one dtype.

    calls: implementations by name: "triton" is ours, "torch" our definition, others what it is compared with.
    check: (error of a result, error allowed): of any call's result against float64.
    flops, traffic: useful operations (a multiply-add counts as 2) and bytes that must move, per call.
    """

    op: str
    shape: str
    dtype: torch.dtype
    calls: dict[str, Call]
    check: Callable[[Tensor], tuple[float, float]]
    flops: float = 0.0
    traffic: float = 0.0


@dataclass(kw_only=True)
class Figure:
    """One call of a case, measured. times are seconds, memory bytes above what was allocated before."""

    op: str
    shape: str
    dtype: str
    name: str
    seconds: float | None = None
    memory: int | None = None
    error: float | None = None
    allowed: float | None = None
    flops_per_second: float | None = None
    bytes_per_second: float | None = None
    failed: str = field(default="")

    @property
    def wrong(self) -> bool:
        """Whether one of our own implementations broke its promise, or did not run."""
        off = self.error is not None and self.allowed is not None and not self.error <= self.allowed
        return self.name in ("triton", "torch") and (off or bool(self.failed))


def measure(case: Case, name: str, *, timed: bool) -> Figure:
    """Check the call against float64 and, where `timed`, time it."""
    figure = Figure(op=case.op, shape=case.shape, dtype=str(case.dtype).removeprefix("torch."), name=name)
    call = case.calls[name]
    try:
        figure.error, figure.allowed = case.check(call())
        if timed:
            figure.seconds = seconds(call)
            figure.memory = peak(call)
            figure.flops_per_second = case.flops / figure.seconds or None
            figure.bytes_per_second = case.traffic / figure.seconds or None
    except Exception as e:  # noqa: BLE001 - a kernel or a rival that fails must not hide the figures of the others
        figure.failed = f"{type(e).__name__}: {str(e).strip().partition(chr(10))[0][:200]}"
    return figure


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


def peak(call: Call) -> int | None:
    """Bytes that a call allocates at most, its result included; None on a CPU, where nobody counts."""
    if not HAS_GPU:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large square product: the machine's own peak, to measure kernels by."""
    n = 8192 if HAS_GPU else 1024
    a, b = torch.randn(2, n, n, device=DEVICE).to(dtype)
    return 2 * n**3 / seconds(lambda: a @ b)


def against(truth: Tensor, plain: Tensor) -> Callable[[Tensor], tuple[float, float]]:
    """The tolerance rule: at most twice as far from float64 as PyTorch's own result, plus 1e-6.

    `truth` and `plain` may cover the first rows only.
    """
    allowed = 2 * (plain.double() - truth).abs().max().item() + 1e-6
    return lambda ours: ((ours[: len(truth)].double() - truth).abs().max().item(), allowed)


def compiled(call: Call) -> Call:
    """The call through torch.compile, compiled when first called; the shapes never change."""
    return torch.compile(call, dynamic=False) if HAS_GPU else _no_gpu


def _no_gpu() -> Tensor:
    raise RuntimeError("compared on a GPU only")
