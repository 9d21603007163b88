"""float32 products of a LlamaGen-L's linears by the two libraries that PyTorch ships for a CPU.

usage: python tests/benchmarks/products.py
"""

import time
from statistics import median

import torch

from avarc_kernels.linear import linear

LINEARS = {"wqkv": (1024, 3072), "wo": (1024, 1024), "w1": (1024, 2816), "w2": (2816, 1024), "head": (1024, 16384)}
ROWS = (256, 1024, 2048)
ROUNDS = 7


@torch.inference_mode()
def main() -> None:
    """Print GFLOP/s, the median of interleaved rounds."""
    print(f"{torch.get_num_threads()} threads\nrows  linear  MKL or BLAS  oneDNN")
    for rows in ROWS:
        for name, (channels, out) in LINEARS.items():
            x, weight = torch.randn(rows, channels), torch.randn(out, channels)
            seconds: dict[str, list[float]] = {"torch": [], "onednn": []}
            for _ in range(1 + ROUNDS):  # the first one warms up
                for backend, times in seconds.items():
                    started = time.perf_counter()
                    linear(x, weight, None, backend=backend)
                    times.append(time.perf_counter() - started)
            rates = [2e-9 * rows * channels * out / median(times[1:]) for times in seconds.values()]
            print(f"{rows:4}  {name:6}  {rates[0]:11.0f}  {rates[1]:6.0f}")


main()
