"""Wall time, CPU time, peak memory and a profile of a function, and the machine's own rate of matrix products."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from avarc_cli.heap import return_freed_memory

T = TypeVar("T")
OPS_SHOWN = 8
KINDS = {  # of CUDA kernels, by a part of their names; those of Triton are shown by name
    "attention": r"sdpa|fmha|flash_fwd|MemEffAttention",
    "products": r"nvjet|gemm|cublas",
    "elementwise, copies": r"elementwise|CatArray|Memcpy|Memset|gather|index",
}


def timed(run: Callable[[], Tensor], device: torch.device) -> tuple[float, float]:
    """(wall seconds, CPU seconds of all threads) of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_memory(run: Callable[[], T], device: torch.device) -> tuple[int | None, T]:
    """The most bytes that a call took beyond what was allocated before, and its result; None where not measurable."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        out = run()
        return torch.cuda.max_memory_allocated(device) - before, out
    return_freed_memory()
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")  # resets the high-water mark (Linux)
    except OSError:
        return None, run()
    before = _status("VmRSS")
    out = run()
    return max(0, _status("VmHWM") - before), out


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def breakdown(run: Callable[[], Tensor], device: torch.device) -> tuple[tuple[str, float], ...]:
    """(operation, fraction of the time) of one call, largest first."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent[_kind(event.key) if cuda else event.key] += (
            event.self_device_time_total if cuda else event.self_cpu_time_total
        )
    total = sum(spent.values()) or 1.0
    return tuple((name, seconds / total) for name, seconds in spent.most_common(OPS_SHOWN) if seconds)


def _kind(name: str) -> str:
    """What a CUDA kernel of this name, a C++ signature, computes; where that is unknown, the function's own name."""
    for kind, words in KINDS.items():
        if re.search(words, name):
            return kind
    plain = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.split(r"[<(]", plain)[0].rpartition("::")[2]
