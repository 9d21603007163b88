"""Without a GPU: every kernel through Triton's compiler and NVIDIA's assembler for Hopper, from what its launch passes.

This catches what the interpreter accepts and a compiler does not, and kernels too large for a GPU's shared memory.
It runs as a process of its own, because the tests beside it have chosen the interpreter.
"""

import os
import subprocess
import sys

import pytest

SHARED_MEMORY = 227 * 1024  # of a block on sm_90
COMPILE = f"""
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from avarc_kernels import adaln_triton, block_causal_attention_triton, linear_gelu_triton, linear_log_prob_triton, nearest_code_triton, quantize_rows_triton

POINTERS = {{torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32", torch.int8: "i8",
            torch.float8_e4m3fn: "fp8e4nv"}}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Recorder:
    "Stands in for a kernel and keeps what it is launched with."

    def __getitem__(self, grid):
        return lambda *args, **named: setattr(self, "launch", (args, named))


def compiled(module, name, call):
    kernel, recorder = getattr(module, name), Recorder()
    setattr(module, name, recorder)
    call()
    setattr(module, name, kernel)
    args, named = recorder.launch
    options = {{key: named.pop(key) for key in OPTIONS if key in named}}
    values = dict(zip(kernel.arg_names, args)) | named
    signature, constants, aligned = {{}}, {{}}, {{}}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or isinstance(value, int) and value == 1:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + POINTERS[value.dtype]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
        if isinstance(value, torch.Tensor) or isinstance(value, int) and value % 16 == 0:
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert result.asm["cubin"] and result.metadata.shared <= {SHARED_MEMORY}, result.metadata.shared
    print(name, "wgmma" in result.asm["ptx"])


half = dict(dtype=torch.bfloat16)
x, table, row = torch.empty(2, 680, 1920), torch.empty(7, 6, 1920), torch.zeros(2, dtype=torch.int64)
gate, scale, shift = table[:, 0], table[:, 1], table[:, 2]
qkv = torch.empty(2, 680, 3, 16, 64, **half).permute(2, 0, 3, 1, 4)
hidden, head = torch.empty(100, 1024, **half), torch.empty(4096, 1024, **half)
target = torch.zeros(100, dtype=torch.int64)

compiled(linear_log_prob_triton, "_linear_log_prob_kernel",
         lambda: linear_log_prob_triton.linear_log_prob(hidden, head, torch.empty(4096), target))
compiled(block_causal_attention_triton, "_block_causal_attention_kernel",
         lambda: block_causal_attention_triton.block_causal_attention(*qkv, [424, 680], 1.0, torch.ones(16)))
compiled(linear_gelu_triton, "_linear_gelu_kernel", lambda: linear_gelu_triton.linear_gelu(hidden, head, torch.empty(4096, **half)))
compiled(adaln_triton, "_adaln_kernel", lambda: adaln_triton.adaln(x, scale, shift, row, torch.bfloat16))
compiled(adaln_triton, "_adaln_kernel", lambda: adaln_triton.gated_residual_adaln(
    x, x.bfloat16(), gate, scale, shift, None, torch.bfloat16))
compiled(nearest_code_triton, "_nearest_code_kernel",
         lambda: nearest_code_triton.nearest_code(torch.empty(9, 32), torch.empty(4096, 32), torch.empty(4096)))
compiled(quantize_rows_triton, "_quantize_rows_kernel", lambda: quantize_rows_triton.quantize_rows(hidden, torch.int8))
compiled(quantize_rows_triton, "_quantize_rows_kernel", lambda: quantize_rows_triton.quantize_rows(hidden, torch.float8_e4m3fn))
"""


@pytest.mark.slow  # LLVM and ptxas: some 15 seconds
def test_every_kernel_compiles_for_hopper_and_products_use_its_tensor_cores(tmp_path):
    triton = pytest.importorskip("triton", reason="triton is not installed (it has no wheels but for Linux)")
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 4):
        pytest.skip("ASTSource took other arguments before Triton 3.4")
    script = tmp_path / "compile.py"
    script.write_text(COMPILE)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    tensor_cores = dict(line.split() for line in done.stdout.splitlines())
    for name in ("_linear_log_prob_kernel", "_block_causal_attention_kernel", "_linear_gelu_kernel"):
        assert tensor_cores[name] == "True", name
    assert len(tensor_cores) == 6
