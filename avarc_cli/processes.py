"""The processes of one training, as torchrun or a scheduler starts them, before torch is imported.

They are described by the variables that `torch.distributed` reads: RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR.
"""

from __future__ import annotations

import os


def count() -> int:
    """Processes that train together; 1 unless a launcher says otherwise."""
    started = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return _number("WORLD_SIZE", 1) if started else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return _number("RANK", 0) if count() > 1 else 0


def local_rank() -> int:
    """Its number among those of this machine, from 0: that of its GPU."""
    return _number("LOCAL_RANK", rank()) if count() > 1 else 0


def local_count() -> int:
    """Processes that train together on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if count() > 1 else 1


def is_first() -> bool:
    """Whether this process writes files and shows progress: one of them does."""
    return rank() == 0


def quiet_torch() -> None:
    """Before torch is imported: where there are several, its C++ code reports errors only.

    Otherwise every process advises against `find_unused_parameters`, which some networks need.
    """
    if count() > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
