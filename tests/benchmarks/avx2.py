"""A benchmark as on a processor without AVX-512, AVX-VNNI and AMX: its libraries use no instructions beyond AVX2."""

import os
import sys

import torch

LIMITS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


def limit_to_avx2() -> None:
    """PyTorch, oneDNN and MKL read the environment when they load, so this process starts again with it."""
    if not LIMITS.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | LIMITS)
    torch.cpu._is_vnni_supported = lambda: False
