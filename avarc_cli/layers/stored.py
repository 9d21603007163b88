"""The tensors that a network stores: how much memory they take, where they are, and copies of them.

On a CPU the weights of linears may be packed (`avarc_kernels.linear.packed`): such a tensor hides its elements.
"""

from __future__ import annotations

from torch import Tensor, nn


def stored_bytes(module: nn.Module) -> int:
    """Memory of a module's parameters and buffers, each tensor counted once."""
    return sum({address(t): t.nbytes for t in [*module.parameters(), *module.buffers()]}.values())


def address(tensor: Tensor) -> int:
    """Where a tensor begins; of a packed one, where its Python object is."""
    return id(tensor) if tensor.is_mkldnn else tensor.data_ptr()


def plain(tensor: Tensor) -> Tensor:
    """The tensor in rows and columns: a copy of a packed one, any other itself."""
    return tensor.to_dense() if tensor.is_mkldnn else tensor


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict in rows and columns, to be saved or read."""
    return {key: plain(tensor) for key, tensor in module.state_dict().items()}
