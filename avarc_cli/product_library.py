"""Which library multiplies float32 matrices on a CPU: the one that is faster, measured once on a machine.

PyTorch calls MKL on x86, or another BLAS, and ships oneDNN beside it. Which is faster depends on the processor
(docs/execution.md), and the last bits of scores depend on the choice. So it is kept for the processor, the number of
threads and the version of PyTorch, unless other processes disturbed the measurement. run.json records it
(`precision.arithmetic`), and the environment variable AVARC_PRODUCTS or `ModelSpec.products` fixes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from avarc_cli import environment
from avarc_cli.errors import UsageError
from avarc_cli.layers import precision as precisions
from avarc_cli.layers.precision import Precision
from avarc_cli.settings import BY_ONEDNN, BY_RULE, BY_TORCH, check_products
from avarc_cli.zoo import paths
from avarc_cli.zoo.measured import Measured
from avarc_kernels.linear import linear, onednn_missing

AUTO = "auto"
VARIABLE = "AVARC_PRODUCTS"
ROWS = 512
LINEARS = ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024))  # of a block of width 1024: channels in and out
SECONDS = 0.8  # that are measured for, after one round to warm up
LEAST_ROUNDS = 2
MOST_WAITING = 0.1  # of a measurement's time: 0.004 on an idle machine, 0.47 beside another program of as many threads
GAIN = 1.05  # a smaller difference may be noise, and is not worth other bits than those of PyTorch's own library


@dataclass(frozen=True)
class Comparison:
    """Seconds of `LINEARS` by each library, of the fastest round of each: (wall, CPU time of all threads)."""

    torch: tuple[float, float]
    onednn: tuple[float, float]
    waiting: float = 0.0
    """The share of the time that threads waited for a core. What is kept does not have it: it is little."""

    def __post_init__(self) -> None:
        """Raises: ValueError for seconds that are not positive and finite."""
        if not all(0 < seconds < float("inf") for seconds in (*self.torch, *self.onednn)):
            raise ValueError("seconds are positive")

    @property
    def gain(self) -> float:
        """How many times as fast oneDNN is, by the clock that says less: other processes disturb both differently."""
        return min(own / other for own, other in zip(self.torch, self.onednn, strict=True))

    @property
    def library(self) -> str:
        """The one to use."""
        return BY_ONEDNN if self.gain >= GAIN else BY_TORCH

    @property
    def disturbed(self) -> bool:
        """Whether other processes took the cores for so long that it says little about the libraries."""
        return self.waiting > MOST_WAITING


def find(name: str, device: torch.device, products: str = AUTO) -> Precision:
    """The precision of this name on this device, with the library that `resolve` gives.

    Raises: UsageError, as `precision.find` and `resolve`.
    """
    return replace(precisions.find(name, device), library=resolve(products, device))


def resolve(products: str, device: torch.device) -> str:
    """The library that a choice stands for: "torch" or "onednn".

    Args:
        products: one of these, "rule" for the one that `precision.onednn_is_faster` expects to be faster, or "auto"
            for what AVARC_PRODUCTS says; where it says nothing, for the one that is faster by a measurement, and by the
            rule where other processes disturb that.
    Raises: UsageError for any other, and for oneDNN in a PyTorch without it.
    """
    check_products(products)
    chosen = from_environment() or AUTO if products == AUTO else products
    if device.type != "cpu":
        return BY_TORCH
    missing = onednn_missing(torch.empty(0))
    if chosen == BY_ONEDNN and missing is not None:
        raise UsageError("oneDNN cannot multiply here", missing, f"leave out {VARIABLE}, or set it to {BY_TORCH}")
    if chosen == AUTO:
        found = None if missing is not None else compared()
        chosen = BY_RULE if found is None else found.library
    if chosen == BY_RULE:
        return BY_ONEDNN if precisions.onednn_is_faster(torch.empty(0)) else BY_TORCH
    return chosen


def without_measurement(products: str) -> str:
    """The same choice, but by the rule where it would be measured."""
    return BY_RULE if products == AUTO and (from_environment() or AUTO) == AUTO else products


def from_environment() -> str | None:
    """What AVARC_PRODUCTS says; None where it says nothing. Raises: UsageError for a value that there is not."""
    products = os.environ.get(VARIABLE, "").strip().lower()
    if products:
        check_products(products)
    return products or None


def recorded(arithmetic: str) -> str:
    """The library of a run by its `arithmetic` in run.json."""
    return BY_ONEDNN if precisions.BY_ONEDNN_WORDS in arithmetic else BY_TORCH


def compared() -> Comparison | None:
    """Both libraries on this machine with this number of threads; None where other processes disturb the measurement.

    As measured earlier or now. It is the same during a whole process.
    """
    return _compared(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())


@cache
def _compared(instructions: str, threads: int) -> Comparison | None:
    key = {
        "cpu": environment.machine()["cpu"],
        "instructions": instructions,  # "AMD EPYC" may have AVX-512 or not
        "threads": threads,
        "most_waiting": MOST_WAITING,
        "torch": torch.__version__,
        "rows": ROWS,
        "linears": [list(shape) for shape in LINEARS],
    }
    found = COMPARISONS.stored(key)
    if found is None:
        found = compare()
        if found.disturbed:
            return None
        COMPARISONS.store(key, found)
    return found


@torch.inference_mode()
def compare() -> Comparison:
    """Time both libraries in turns, for about a second; the fastest turn of each linear counts."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(ROWS, channels, generator=generator) for channels, _ in LINEARS]
    weights = [torch.randn(out, channels, generator=generator) for channels, out in LINEARS]
    fastest = {backend: [[float("inf")] * 2 for _ in LINEARS] for backend in (BY_TORCH, BY_ONEDNN)}
    started, waited, rounds = 0.0, 0.0, -1
    while rounds < LEAST_ROUNDS or time.perf_counter() - started < SECONDS:
        for x, weight, *bests in zip(inputs, weights, *fastest.values(), strict=True):
            for backend, best in zip(fastest, bests, strict=True):
                before = _clocks()
                linear(x, weight, None, backend=backend)
                if rounds >= 0:  # the first warms up
                    best[:] = [min(b, now - then) for b, now, then in zip(best, _clocks(), before, strict=True)]
        rounds += 1
        if rounds == 0:
            started, waited = time.perf_counter(), _waited()
    waiting = (_waited() - waited) / (time.perf_counter() - started) / torch.get_num_threads()
    return Comparison(_sums(fastest[BY_TORCH]), _sums(fastest[BY_ONEDNN]), waiting)


def _sums(bests: list[list[float]]) -> tuple[float, float]:
    return sum(wall for wall, _ in bests), sum(cpu for _, cpu in bests)


def _clocks() -> tuple[float, float]:
    """Wall and CPU seconds."""
    return time.perf_counter(), time.process_time()


def _waited() -> float:
    """Seconds that the threads of this process have waited for a core; 0 where the system does not tell."""
    nanoseconds = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread that has ended
            nanoseconds += int(file.read_text().split()[1])
    return nanoseconds / 1e9


def choice() -> environment.Choice:
    """What is used on this machine, and why, for `avarc doctor`. Raises: UsageError as `from_environment`."""
    what, said = "float32 products", from_environment() or AUTO
    names = {BY_TORCH: "PyTorch's own", BY_ONEDNN: "oneDNN"}
    picked = names[resolve(AUTO, torch.device("cpu"))]
    if said != AUTO:
        return environment.Choice(what, picked, f"{VARIABLE} says so")
    if why := onednn_missing(torch.empty(0)):
        return environment.Choice(what, picked, why)
    found = compared()
    if found is None:
        why = "expected to be faster on this processor: other processes used it while both were measured"
        return environment.Choice(what, picked, why)
    why = f"measured: oneDNN is {found.gain:.2f} times as fast; it is used from {GAIN} on"
    return environment.Choice(what, picked, why)


def _read(values: Mapping[str, Any]) -> Comparison:
    (torch_wall, torch_cpu), (onednn_wall, onednn_cpu) = values["torch"], values["onednn"]
    return Comparison((float(torch_wall), float(torch_cpu)), (float(onednn_wall), float(onednn_cpu)))


def _write(found: Comparison) -> dict[str, list[float]]:
    return {"torch": list(found.torch), "onednn": list(found.onednn)}


COMPARISONS = Measured(paths.products_folder, "seconds", "the comparison of libraries", _read, _write)
