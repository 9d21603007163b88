"""A benchmark as on a processor with AVX2 and no more: without AVX-512, VNNI, bf16 products and AMX."""

import os
import sys

import torch

from avarc_kernels import c_library

LIMITS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def limit_to_avx2() -> None:
    """PyTorch, oneDNN and MKL read the environment when they load, so this process starts again with it."""
    if not LIMITS.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | LIMITS)
    for beyond in ("vnni", "avx512_bf16", "amx_tile"):
        setattr(torch.cpu, f"_is_{beyond}_supported", lambda: False)
    c_library.FLAGS = (*c_library.FLAGS, "-march=haswell")
