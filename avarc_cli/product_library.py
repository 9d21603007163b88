"""Which library multiplies float32 matrices on a CPU: the one that is faster, measured once on a machine.

PyTorch calls MKL on x86, or another BLAS, and ships oneDNN beside it. Which is faster depends on the processor
(docs/execution.md), and the last bits of scores depend on the choice. So it is kept for the processor, the number of
threads and the version of PyTorch, run.json records it (`precision.arithmetic`), and the environment variable
AVARC_PRODUCTS or `ModelSpec.products` fixes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
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
MOST_WAITING = 0.1  # of the time: 0.01 to 0.02 on two idle cores, 0.49 with another process on each
GAIN = 1.05  # a smaller difference may be noise, and is not worth other bits than those of PyTorch's own library


@dataclass(frozen=True)
class Comparison:
    """Seconds of `LINEARS` by each library, of the fastest round of each: (wall, CPU time of all threads)."""

    torch: tuple[float, float]
    onednn: tuple[float, float]
    waiting: float
    """The share of the time that a thread waited for a core, of the one that waited longest."""

    def __post_init__(self) -> None:
        """Raises: ValueError for seconds that are not positive and finite, and for a negative share."""
        if not all(0 < seconds < float("inf") for seconds in (*self.torch, *self.onednn)):
            raise ValueError("seconds are positive")
        if not 0 <= self.waiting < float("inf"):
            raise ValueError("a share is not negative")

    @property
    def gain(self) -> float:
        """How many times as fast oneDNN is, by the clock that says less: other processes disturb both differently."""
        return min(own / other for own, other in zip(self.torch, self.onednn, strict=True))

    @property
    def library(self) -> str:
        """The one to use; by the rule where the times say little."""
        if self.disturbed:
            return _by_rule()
        return BY_ONEDNN if self.gain >= GAIN else BY_TORCH

    @property
    def disturbed(self) -> bool:
        """Whether a thread waited so long that the times say little about the libraries."""
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
            for what AVARC_PRODUCTS says; where it says nothing, for the one that is faster by a measurement.
    Raises: UsageError for any other, and for oneDNN in a PyTorch without it.
    """
    check_products(products)
    chosen = from_environment() or AUTO if products == AUTO else products
    if device.type != "cpu":
        return BY_TORCH
    missing = onednn_missing(torch.empty(0))
    if chosen == BY_ONEDNN and missing is not None:
        named = f"leave out {VARIABLE}, or set it to {BY_TORCH}"
        begun = "go on where PyTorch has it, or begin again with PyTorch's own products"
        raise UsageError("oneDNN cannot multiply here", missing, named if products == AUTO else begun)
    if chosen == BY_RULE:
        return _by_rule()
    if chosen == AUTO:
        return BY_TORCH if missing is not None else compared().library
    return chosen


def _by_rule() -> str:
    return BY_ONEDNN if precisions.onednn_is_faster(torch.empty(0)) else BY_TORCH


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


def compared() -> Comparison:
    """Both libraries on this machine with this number of threads, as measured earlier or now."""
    key = _key()
    found = COMPARISONS.stored(key)
    if found is None:
        found = compare()
        COMPARISONS.store(key, found)
    return found


def _key() -> dict[str, Any]:
    return {
        "cpu": environment.machine()["cpu"],
        "instructions": torch.backends.cpu.get_cpu_capability(),  # "AMD EPYC" may have AVX-512 or not
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": ROWS,
        "linears": [list(shape) for shape in LINEARS],
    }


@torch.inference_mode()
def compare() -> Comparison:
    """Time both libraries in turns, for about a second; the fastest turn of each linear counts."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(ROWS, channels, generator=generator) for channels, _ in LINEARS]
    weights = [torch.randn(out, channels, generator=generator) for channels, out in LINEARS]
    fastest = {backend: [[float("inf")] * 2 for _ in LINEARS] for backend in (BY_TORCH, BY_ONEDNN)}
    started, waited, rounds = 0.0, dict[str, int](), -1
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
    longest = max((now - waited.get(thread, now) for thread, now in _waited().items()), default=0)
    waiting = 1e-9 * longest / (time.perf_counter() - started)
    return Comparison(_sums(fastest[BY_TORCH]), _sums(fastest[BY_ONEDNN]), waiting)


def _sums(bests: list[list[float]]) -> tuple[float, float]:
    return sum(wall for wall, _ in bests), sum(cpu for _, cpu in bests)


def _clocks() -> tuple[float, float]:
    """Wall and CPU seconds."""
    return time.perf_counter(), time.process_time()


def _waited() -> dict[str, int]:
    """Nanoseconds that each thread of this process has waited for a core; nothing where the system does not tell."""
    waited = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread that has ended
            waited[file.parent.name] = int(file.read_text().split()[1])
    return waited


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
    why = f"measured: oneDNN is {found.gain:.2f} times as fast; it is used from {GAIN} on"
    if found.disturbed:
        file = COMPARISONS.file(_key())
        why = f"by the rule: threads waited for cores while both were measured; to measure again, delete '{file}'"
    return environment.Choice(what, picked, why)


def _read(values: Mapping[str, Any]) -> Comparison:
    (torch_wall, torch_cpu), (onednn_wall, onednn_cpu) = values["torch"], values["onednn"]
    seconds = (float(torch_wall), float(torch_cpu)), (float(onednn_wall), float(onednn_cpu))
    return Comparison(*seconds, float(values["waiting"]))


def _write(found: Comparison) -> dict[str, Any]:
    return {"torch": list(found.torch), "onednn": list(found.onednn), "waiting": found.waiting}


COMPARISONS = Measured(paths.products_folder, "seconds", "the comparison of libraries", _read, _write)
