"""Compile every Triton kernel for Hopper (sm_90) without a GPU: `python tests/kernels/compile_kernels.py`.

Each kernel goes through Triton's compiler and NVIDIA's assembler, for the arguments that its host function launches it
with. Prints one JSON object: kernel -> {"shared_memory": bytes per block, the most of its variants; "tensor_cores":
whether all variants use wgmma instructions}. TRITON_INTERPRET must not be set.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from avarc_kernels import (
    adaln_triton,
    block_causal_attention_triton,
    head_layer_norm_triton,
    linear_gelu_triton,
    linear_log_prob_triton,
    nearest_code_triton,
    quantize_rows_triton,
    rms_norm_triton,
    rotary_triton,
    swiglu_triton,
)

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")  # launch options, not parameters of the kernel


def main() -> None:
    report: dict[str, dict[str, Any]] = {}
    for module, name, call in launches():
        compiled = compile_launch(getattr(module, name), *record_launch(module, name, call))
        assert compiled.asm["cubin"]
        entry = report.setdefault(name, {"shared_memory": 0, "tensor_cores": True})
        entry["shared_memory"] = max(entry["shared_memory"], compiled.metadata.shared)
        entry["tensor_cores"] &= "wgmma" in compiled.asm["ptx"]
    print(json.dumps(report))


def launches() -> Iterator[tuple[ModuleType, str, Callable[[], object]]]:
    """Module and name of every kernel, and a call that launches it; sizes are those of VAR-d16 and VAR-d30."""
    bf16 = torch.bfloat16
    x, table, row = torch.empty(2, 680, 1920), torch.empty(7, 6, 1920), torch.zeros(2, dtype=torch.int64)
    gate, scale, shift = table[:, 0], table[:, 1], table[:, 2]
    qkv = torch.empty(2, 680, 3, 16, 64, dtype=bf16).permute(2, 0, 3, 1, 4)
    hidden, weight = torch.empty(100, 1024, dtype=bf16), torch.empty(4096, 1024, dtype=bf16)
    token = torch.zeros(100, dtype=torch.int64)

    module: ModuleType
    module, name = linear_log_prob_triton, "_linear_log_prob_kernel"
    yield module, name, partial(module.linear_log_prob, hidden, weight, torch.empty(4096), token)

    module, name = block_causal_attention_triton, "_block_causal_attention_kernel"
    yield module, name, partial(module.block_causal_attention, *qkv, [424, 680], 1.0, torch.ones(16), 1e-12)

    grouped = partial(module.block_causal_attention, qkv[0], *qkv[1:, :, ::4], range(1, 681), 1.0, None, 0.0)
    yield module, name, grouped

    module, name = linear_gelu_triton, "_linear_gelu_kernel"
    yield module, name, partial(module.linear_gelu, hidden, weight, torch.empty(4096, dtype=bf16))

    module, name = adaln_triton, "_adaln_kernel"
    yield module, name, partial(module.adaln, x, scale, shift, row, bf16, 1e-6)
    yield module, name, partial(module.gated_residual_adaln, x, x.bfloat16(), gate, scale, shift, None, bf16, 1e-6)

    module, name = nearest_code_triton, "_nearest_code_kernel"
    yield module, name, partial(module.nearest_code, torch.empty(9, 32), torch.empty(4096, 32), torch.empty(4096))

    module, name = quantize_rows_triton, "_quantize_rows_kernel"
    yield module, name, partial(module.quantize_rows, hidden, torch.int8, 127.0, 1e-30)
    yield module, name, partial(module.quantize_rows, hidden, torch.float8_e4m3fn, 448.0, 1e-30)

    rows, ffn = torch.empty(100, 1024), torch.empty(100, 2816, dtype=bf16)
    module, name = rms_norm_triton, "_residual_rms_norm_kernel"
    yield module, name, partial(module.residual_rms_norm, rows, None, rows[0], 1e-5, bf16)
    yield module, name, partial(module.residual_rms_norm, rows, hidden, rows[0], 1e-5, bf16)

    heads, gain = torch.empty(2, 256, 16, 48, dtype=bf16), torch.empty(48)
    module, name = head_layer_norm_triton, "_head_layer_norm_kernel"
    yield module, name, partial(module.head_layer_norm, heads, gain, gain, 1e-6, bf16)

    module, name = rotary_triton, "_rotary_kernel"
    yield module, name, partial(module.rotary, torch.empty(2, 256, 32, 64, dtype=bf16), torch.empty(256, 32, 2), bf16)

    module, name = swiglu_triton, "_swiglu_kernel"
    yield module, name, partial(module.swiglu, ffn, ffn)


class Recorder:
    """Takes the place of a kernel and records the arguments of its launch."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *args: Any, **kwargs: Any) -> None:
        self.args, self.kwargs = args, kwargs


def record_launch(module: ModuleType, name: str, call: Callable[[], object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that `call` launches the kernel with."""
    recorder = Recorder()
    with patch.object(module, name, recorder):
        call()
    return recorder.args, recorder.kwargs


def compile_launch(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CompiledKernel:
    """The kernel specialised as Triton's own launcher would: on ones, and on pointers and sizes that 16 divides."""
    options = {key: kwargs.pop(key) for key in OPTIONS if key in kwargs}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=HOPPER, options=options)


if __name__ == "__main__":
    main()
