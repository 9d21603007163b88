"""The blocks that a network repeats: recomputed in the backward pass to save memory, or compiled one by one."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The largest modules that are called and of which the network has several of one type in a row.

    Where a network calls the parts of its blocks instead (VAR's attention and feed-forward), those parts.
    """
    found: list[nn.Module] = []
    inner: set[nn.Module] = set()
    for owner in network.modules():  # outer ones first
        if owner in inner or not isinstance(owner, nn.ModuleList | nn.Sequential):
            continue
        entries = list(owner)
        if len(entries) < 2 or len({type(entry) for entry in entries}) > 1:
            continue
        for entry in entries:
            inner.update(entry.modules())
            found += [entry] if _is_called(entry) else [part for part in entry.children() if _is_called(part)]
    return [block for block in found if any(True for _ in block.children())]  # a single layer is not worth it


def _is_called(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


M_MMAP_THRESHOLD, LARGE = -3, 1 << 20  # of glibc's malloc.h; bytes


def return_memory() -> None:
    """Make malloc give the memory of large tensors back to the system when they are freed, where it is glibc's.

    By itself it soon keeps all below 32 MiB. The optimizer's state, which the first step allocates, then lies between
    the places of activations, and the next step needs others: as much memory as recomputing saves.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)


@contextmanager
def recomputed(network: nn.Module) -> Iterator[None]:
    """Keep only the inputs of repeated blocks for the backward pass, which computes the rest again."""
    return_memory()
    blocks = repeated_blocks(network)
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def compiled(network: nn.Module) -> Iterator[None]:
    """Compile repeated blocks: equal ones share one compilation, and the names of weights stay."""
    blocks = repeated_blocks(network)
    for block in blocks:
        block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
