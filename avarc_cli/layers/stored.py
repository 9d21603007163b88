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


def copied(module: nn.Module) -> dict[str, Tensor]:
    """A state dict of copies, none of them packed."""
    return {key: t.to_dense() if t.is_mkldnn else t.clone() for key, t in module.state_dict().items()}
