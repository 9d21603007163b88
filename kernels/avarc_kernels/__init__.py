"""The operations that generative classification spends its time in.

An op is `x.py` (definition, contract and dispatch) and, where there is a faster one, `x_triton.py`,
imported only when chosen. This package imports torch and triton only and raises ValueError.
"""

from avarc_kernels.adaln import adaln, gated_residual_adaln
from avarc_kernels.block_causal_attention import block_causal_attention
from avarc_kernels.dispatch import triton_missing
from avarc_kernels.linear_gelu import linear_gelu
from avarc_kernels.linear_log_prob import linear_log_prob
from avarc_kernels.nearest_code import nearest_code
from avarc_kernels.quantize_rows import quantize_rows

__all__ = [
    "adaln",
    "block_causal_attention",
    "gated_residual_adaln",
    "linear_gelu",
    "linear_log_prob",
    "nearest_code",
    "quantize_rows",
    "triton_missing",
]
