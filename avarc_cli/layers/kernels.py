"""The implementations of a network's operations, which are known by one name.

"torch" and "triton" are those of all operations; "flash+torch" and "flash+triton" are flash-attn's of attention, and
the other one's of all the rest (`avarc_kernels.dispatch`).
"""

from __future__ import annotations

from torch import nn

from avarc_cli.errors import UsageError
from avarc_cli.layers.linears import QuantizedLinear
from avarc_cli.settings import FLASH
from avarc_kernels.flash_attention import WIDEST_HEAD

FIX = "use --kernels auto, torch or triton"


def use_kernels(network: nn.Module, kernels: str, *, head_width: int | None) -> None:
    """Give these kernels to the quantized linears of a network whose other operations have them.

    Args:
        head_width: channels of a head of attention; None where attention is PyTorch's, whatever the kernels.
    Raises: UsageError for flash-attn where it does not compute the network's attention.
    """
    if kernels.startswith(FLASH):
        if head_width is None:
            why = "flash-attn computes attention to all positions before; this model's is another, which is PyTorch's"
            raise UsageError("flash-attn is not for this model", why, FIX)
        if head_width > WIDEST_HEAD:
            why = f"its heads have {head_width} channels, those of flash-attn at most {WIDEST_HEAD}"
            raise UsageError("flash-attn is not for this model", why, FIX)
    for module in network.modules():
        if isinstance(module, QuantizedLinear):
            module.kernels = kernels


def others(kernels: str) -> str:
    """What computes all operations but attention: "torch" or "triton"."""
    return kernels.removeprefix(f"{FLASH}+")
