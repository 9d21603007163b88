"""Every kernel through Triton's compiler and NVIDIA's assembler for Hopper, which needs no GPU.

This finds code that the interpreter accepts and the compiler does not, and tiles that exceed the shared memory of a
GPU. It runs in a process of its own, because the tests next to it have loaded the interpreter.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_kernels.py")
SHARED_MEMORY = 227 * 1024  # bytes per block on sm_90
MATMULS = {"_linear_log_prob_kernel", "_block_causal_attention_kernel", "_linear_gelu_kernel"}


@pytest.mark.slow  # LLVM and ptxas: about 15 seconds
def test_every_kernel_compiles_for_hopper_and_matmuls_use_its_tensor_cores(tmp_path):
    triton = pytest.importorskip("triton", reason="triton is not installed (it has wheels for Linux only)")
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 4):
        pytest.skip("ASTSource took other arguments before Triton 3.4")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert len(report) == 10
    assert {name for name, entry in report.items() if entry["shared_memory"] > SHARED_MEMORY} == set()
    assert {name for name, entry in report.items() if entry["tensor_cores"]} == MATMULS
