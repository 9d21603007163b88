"""The layout of convolutions' weights in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

LARGE = 1 << 26  # bytes, whose copy takes a few hundredths of a second
_IS_LAID_OUT = "is_channels_last"


def channels_last(network: nn.Module) -> None:
    """Lay the weights of convolutions out for channels-last images.

    Those of large children are copied when the child is first called: scoring the tokens of a cache calls neither
    encoder nor decoder, and leaves their weights in the file that they are mapped from.
    """
    for child in network.children():
        if sum(p.nbytes for p in child.parameters()) >= LARGE:
            child.register_forward_pre_hook(_lay_out)
        else:
            child.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it


def _lay_out(module: nn.Module, _: Any) -> None:
    if not getattr(module, _IS_LAID_OUT, False):
        with torch.inference_mode(False):  # the weights stay ordinary tensors
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotation lacks it
        setattr(module, _IS_LAID_OUT, True)
