"""The operations that dominate the run time of generative classification.

Each operation is `x.py` (contract, PyTorch implementation, dispatch) and `x_triton.py` (the Triton kernel, imported
only when selected). `int16_linear` and `float32_linear` are C, for CPUs. The package depends on torch and, optionally,
triton and a C compiler; invalid arguments raise ValueError.
"""

from avarc_kernels.adaln import adaln, gated_residual_adaln
from avarc_kernels.block_causal_attention import block_causal_attention
from avarc_kernels.causal_attention import causal_attention
from avarc_kernels.dispatch import flash_missing, triton_missing
from avarc_kernels.head_layer_norm import head_layer_norm
from avarc_kernels.linear_gelu import linear_gelu
from avarc_kernels.linear_log_prob import linear_log_prob
from avarc_kernels.nearest_code import nearest_code
from avarc_kernels.quantize_rows import quantize_rows
from avarc_kernels.rms_norm import residual_rms_norm
from avarc_kernels.rotary import rotary
from avarc_kernels.swiglu import swiglu

__all__ = [
    "adaln",
    "block_causal_attention",
    "causal_attention",
    "flash_missing",
    "gated_residual_adaln",
    "head_layer_norm",
    "linear_gelu",
    "linear_log_prob",
    "nearest_code",
    "quantize_rows",
    "residual_rms_norm",
    "rotary",
    "swiglu",
    "triton_missing",
]
