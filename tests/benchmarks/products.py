"""float32 products of a VAR-d16's and a LlamaGen-L's linears by the two libraries that PyTorch ships for a CPU.

Interleaved rounds; of each linear the fastest round counts, by wall time. The last row is what `product_library`
measures and chooses. With --avx2, no instructions beyond AVX2. Results: docs/execution.md.

usage: python tests/benchmarks/products.py [--avx2] [--json]
"""

import sys
import time

import torch
from avx2 import limit_to_avx2
from figure_tables import Cell, Table, show, wants_json

from avarc_cli import product_library
from avarc_kernels.linear import linear

LINEARS = {"d16": [(1024, 3072), (1024, 1024), (1024, 4096), (4096, 1024)]}
LINEARS["llamagen-l"] = [(1024, 3072), (1024, 1024), (1024, 2816), (2816, 1024), (1024, 16384)]
ROWS = (1, 30, 256, 680, 2048)
LIBRARIES = ("torch", "onednn")
ROUNDS = 7


def rates(linears: list[tuple[int, int]], rows: int) -> list[float]:
    """GFLOP/s of each library."""
    spent = dict.fromkeys(LIBRARIES, 0.0)
    for channels, out in linears:
        x, weight = torch.randn(rows, channels), torch.randn(out, channels)
        fastest = dict.fromkeys(LIBRARIES, float("inf"))
        for i in range(1 + ROUNDS):
            for library in LIBRARIES:
                started = time.perf_counter()
                linear(x, weight, None, backend=library)
                if i:  # the first one warms up
                    fastest[library] = min(fastest[library], time.perf_counter() - started)
        for library in LIBRARIES:
            spent[library] += fastest[library]
    work = sum(2e-9 * rows * channels * out for channels, out in linears)
    return [work / seconds for seconds in spent.values()]


@torch.inference_mode()
def main(*, as_json: bool) -> None:
    rows: list[list[Cell]] = []
    for name, linears in LINEARS.items():
        for count in ROWS:
            mkl, onednn = rates(linears, count)
            rows.append([name, str(count), mkl, onednn, onednn / mkl])
    found = product_library.compare()
    rows.append([f"measured at first use: {found.library} is chosen", "", None, None, found.gain])
    columns = [("linears of", ""), ("rows", ""), ("MKL, GFLOP/s", ".0f"), ("oneDNN, GFLOP/s", ".0f"), ("ratio", ".2f")]
    show(Table(columns, rows), as_json=as_json)


if __name__ == "__main__":
    if "--avx2" in sys.argv:
        limit_to_avx2()
    main(as_json=wants_json(sys.argv))
