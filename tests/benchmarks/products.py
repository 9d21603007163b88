"""float32 products of a VAR-d16's and a LlamaGen-L's linears by the two libraries that PyTorch ships for a CPU.

Interleaved rounds. Rates are of the fastest round, by wall time and by CPU time (of all threads together): other
processes disturb the latter less. At the end what `product_library` measures and chooses, some times in a row.

usage: python tests/benchmarks/products.py
"""

import time

import torch

from avarc_cli import product_library
from avarc_kernels.linear import linear

LINEARS = {
    "d16 mat_qkv": (1024, 3072),
    "d16 proj": (1024, 1024),
    "d16 fc1": (1024, 4096),
    "d16 fc2": (4096, 1024),
    "llamagen-l w1": (1024, 2816),
    "llamagen-l w2": (2816, 1024),
    "llamagen-l head": (1024, 16384),
}
ROWS = (1, 30, 256, 680, 2048)
ROUNDS = 7
CHOICES = 5


@torch.inference_mode()
def main() -> None:
    """Print GFLOP/s and what is chosen."""
    print(f"{torch.get_num_threads()} threads, GFLOP/s: wall MKL or BLAS, oneDNN; CPU MKL or BLAS, oneDNN")
    for rows in ROWS:
        for name, (channels, out) in LINEARS.items():
            x, weight = torch.randn(rows, channels), torch.randn(out, channels)
            seconds: dict[str, list[tuple[float, float]]] = {"torch": [], "onednn": []}
            for _ in range(1 + ROUNDS):  # the first one warms up
                for backend, times in seconds.items():
                    started = time.perf_counter(), time.process_time()
                    linear(x, weight, None, backend=backend)
                    times.append((time.perf_counter() - started[0], time.process_time() - started[1]))
            work = 2e-9 * rows * channels * out
            rates = [work / min(t[clock] for t in times[1:]) for clock in (0, 1) for times in seconds.values()]
            print(f"{rows:4}  {name:15}", *(f"  {rate:6.0f}" for rate in rates), flush=True)
    for _ in range(CHOICES):
        began = time.perf_counter()
        found = product_library.compare()
        took = time.perf_counter() - began
        print(f"oneDNN is {found.gain:.3f} times as fast: {found.library}, measured in {took:.1f} s")


main()
