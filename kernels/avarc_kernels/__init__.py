"""The operations that generative classification spends its time in.

An op is `x.py` (definition, contract and dispatch) and, where there is a faster one, `x_triton.py`,
imported only when chosen. This package imports torch and triton only and raises ValueError.
"""

from avarc_kernels.attention import segment_attention
from avarc_kernels.likelihood import linear_log_prob
from avarc_kernels.quantize import nearest_code

__all__ = ["linear_log_prob", "nearest_code", "segment_attention"]
