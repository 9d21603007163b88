"""Which library multiplies float32 matrices on a CPU: the fastest, measured once on a machine.

PyTorch calls MKL on x86, or another BLAS, and ships oneDNN beside it; avarc has a product of its own. Which is fastest
depends on the processor (docs/execution.md), and the last bits of scores depend on the choice. So it is kept for the
processor, the number of threads, the version of PyTorch and the C compiler, run.json records it
(`precision.arithmetic`), and the environment variable AVARC_PRODUCTS or `ModelSpec.products` fixes it.
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
from avarc_cli.settings import BY_AVARC, BY_ONEDNN, BY_RULE, BY_TORCH, LIBRARIES, check_products
from avarc_cli.zoo import paths
from avarc_cli.zoo.measured import Measured
from avarc_kernels import c_library
from avarc_kernels.linear import linear, missing

AUTO = "auto"
VARIABLE = "AVARC_PRODUCTS"
NAMES = {BY_TORCH: "PyTorch's own", BY_ONEDNN: "oneDNN", BY_AVARC: "avarc's own"}
ROWS = 512
LINEARS = ((1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024))  # of a block of width 1024: channels in and out
SECONDS = 0.8  # that are measured for, after one round to warm up
LEAST_ROUNDS = 2
MOST_WAITING = 0.1  # of the time: 0.01 to 0.02 on two idle cores, 0.49 with another process on each
GAIN = 1.05  # a smaller difference may be noise, and is not worth other bits than those of PyTorch's own library


@dataclass(frozen=True)
class Comparison:
    """How fast the libraries of a machine multiply."""

    seconds: Mapping[str, tuple[float, float]]
    """Of `LINEARS` by each library, of the fastest round of each: (wall, CPU time of all threads)."""
    waiting: float
    """The share of the time that a thread waited for a core, of the one that waited longest."""

    def __post_init__(self) -> None:
        """Raises: ValueError for seconds that are not positive and finite, and for a negative share."""
        if BY_TORCH not in self.seconds or not self.seconds.keys() <= set(LIBRARIES):
            raise ValueError("these are other libraries")
        if not all(0 < clock < float("inf") for wall, cpu in self.seconds.values() for clock in (wall, cpu)):
            raise ValueError("seconds are positive")
        if not 0 <= self.waiting < float("inf"):
            raise ValueError("a share is not negative")

    @property
    def gains(self) -> dict[str, float]:
        """How many times as fast as PyTorch's own each other library is.

        By the clock that says less: other processes disturb both differently.
        """
        own, others = self.seconds[BY_TORCH], {name: of for name, of in self.seconds.items() if name != BY_TORCH}
        return {name: min(own[0] / wall, own[1] / cpu) for name, (wall, cpu) in others.items()}

    @property
    def library(self) -> str:
        """The one to use; by the rule where the times say little."""
        if self.disturbed:
            return _by_rule()
        fast = {name: gain for name, gain in self.gains.items() if gain >= GAIN}
        return max(fast, key=fast.__getitem__, default=BY_TORCH)

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
    """The library that a choice stands for: "torch", "onednn" or "avarc".

    Args:
        products: one of these, "rule" for oneDNN where `precision.onednn_is_faster` expects it to be faster, or "auto"
            for what AVARC_PRODUCTS says; where it says nothing, for the one that is fastest by a measurement.
    Raises: UsageError for any other, and for one that cannot run here.
    """
    check_products(products)
    chosen = from_environment() or AUTO if products == AUTO else products
    if device.type != "cpu":
        return BY_TORCH
    if chosen == AUTO:
        chosen = compared().library
        return chosen if missing(chosen, torch.empty(0)) is None else _by_rule()
    if chosen == BY_RULE:
        return _by_rule()
    if why := missing(chosen, torch.empty(0)):
        named = f"leave out {VARIABLE}, or set it to {BY_TORCH}"
        begun = "go on where it can, or begin again with PyTorch's own products"
        raise UsageError(f"{NAMES[chosen]} products cannot run here", why, named if products == AUTO else begun)
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
    return next((name for name, words in precisions.LIBRARY_WORDS.items() if words in arithmetic), BY_TORCH)


def compared() -> Comparison:
    """The libraries on this machine with this number of threads, as measured earlier or now."""
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
        "compiler": c_library.compiler(),  # without one, there is one library less to choose from
        "rows": ROWS,
        "linears": [list(shape) for shape in LINEARS],
    }


@torch.inference_mode()
def compare() -> Comparison:
    """Time the libraries in turns, for about a second; the fastest turn of each linear counts."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(ROWS, channels, generator=generator) for channels, _ in LINEARS]
    weights = [torch.randn(out, channels, generator=generator) for channels, out in LINEARS]
    available = [library for library in LIBRARIES if missing(library, torch.empty(0)) is None]
    fastest = {backend: [[float("inf")] * 2 for _ in LINEARS] for backend in available}
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
    return Comparison({backend: _sums(bests) for backend, bests in fastest.items()}, waiting)


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
    picked = NAMES[resolve(AUTO, torch.device("cpu"))]
    if said != AUTO:
        return environment.Choice(what, picked, f"{VARIABLE} says so")
    cannot = [f"{NAMES[library]}: {why}" for library in LIBRARIES if (why := missing(library, torch.empty(0)))]
    found = compared()
    timed = " and ".join(f"{NAMES[library]} {gain:.2f}" for library, gain in found.gains.items())
    measured = [f"measured: {timed} times as fast as PyTorch's; used from {GAIN} on"] if timed else []
    why = "; ".join([*measured, *cannot])
    if found.disturbed:
        file = COMPARISONS.file(_key())
        why = f"by the rule: threads waited for cores while both were measured; to measure again, delete '{file}'"
    return environment.Choice(what, picked, why)


def _read(values: Mapping[str, Any]) -> Comparison:
    seconds = {library: (float(wall), float(cpu)) for library, (wall, cpu) in values["seconds"].items()}
    return Comparison(seconds, float(values["waiting"]))


def _write(found: Comparison) -> dict[str, Any]:
    return {"seconds": {library: list(clocks) for library, clocks in found.seconds.items()}, "waiting": found.waiting}


COMPARISONS = Measured(paths.products_folder, "compared", "the comparison of libraries", _read, _write)
