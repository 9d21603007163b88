"""Products of the linears of a VAR-d16 and a LlamaGen-L on a CPU: float32 by each library, and int16.

Interleaved rounds; of each linear the fastest round counts, by wall time. The last row is what `product_library`
measures and chooses. With --avx2, no instructions beyond AVX2. Results: docs/execution.md.

usage: python tests/benchmarks/products.py [--avx2] [--json]
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from avx2 import limit_to_avx2
from figure_tables import Cell, Table, show, wants_json
from torch import Tensor

from avarc_cli import product_library
from avarc_cli.settings import LIBRARIES
from avarc_kernels.int16_linear import int16_linear, pack
from avarc_kernels.int16_linear import missing as int16_missing
from avarc_kernels.linear import linear, missing

LINEARS = {"d16": [(1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)]}
LINEARS["llamagen-l"] = [(1024, 3072), (1024, 1024), (1024, 2816), (2816, 1024), (1024, 16384)]
ROWS = (1, 30, 256, 680, 2048)
ROUNDS = 7
Product = Callable[[Tensor], Tensor]


def products(weight: Tensor) -> dict[str, Product]:
    """The product with this weight in each way."""
    ways: dict[str, Product] = {
        library: partial(linear, weight_FC=weight, bias_F=None, backend=library)
        for library in LIBRARIES
        if missing(library, weight) is None
    }
    if int16_missing() is None:
        ways["int16"] = partial(int16_linear, weight=pack(weight), bias_N=None)
    return ways


def rates(linears: list[tuple[int, int]], rows: int) -> dict[str, float]:
    """GFLOP/s of each way."""
    spent: dict[str, float] = defaultdict(float)
    for channels, out in linears:
        x, ways = torch.randn(rows, channels), products(torch.randn(out, channels))
        fastest = dict.fromkeys(ways, float("inf"))
        for i in range(1 + ROUNDS):
            for name, product in ways.items():
                started = time.perf_counter()
                product(x)
                if i:  # the first one warms up
                    fastest[name] = min(fastest[name], time.perf_counter() - started)
        for name, seconds in fastest.items():
            spent[name] += seconds
    work = sum(2e-9 * rows * channels * out for channels, out in linears)
    return {name: work / seconds for name, seconds in spent.items()}


def best(of: dict[str, float]) -> float:
    return max(of[library] for library in LIBRARIES if library in of)


@torch.inference_mode()
def main(*, as_json: bool) -> None:
    rows: list[list[Cell]] = []
    for name, linears in LINEARS.items():
        for count in ROWS:
            of = rates(linears, count)
            rows.append([name, str(count), *map(of.get, LIBRARIES), best(of) / of["torch"], of.get("int16")])
    found = product_library.compare()
    how = "by the rule: other processes disturbed it" if found.disturbed else "measured at first use"
    rows.append([f"{how}: {found.library} is chosen", "", *[None] * 3, max(found.gains.values(), default=None), None])
    columns = [("linears of", ""), ("rows", ""), ("MKL, GFLOP/s", ".0f"), ("oneDNN", ".0f"), ("avarc", ".0f")]
    columns += [("best / MKL", ".2f"), ("int16", ".0f")]
    show(Table(columns, rows), as_json=as_json)


if __name__ == "__main__":
    if "--avx2" in sys.argv:
        limit_to_avx2()
    main(as_json=wants_json(sys.argv))
