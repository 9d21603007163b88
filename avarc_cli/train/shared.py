"""Memory that the processes of a training share with others on the same machine."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from avarc_cli.layers import collectives
from avarc_cli.layers.rows import Rows


def allocate(shape: tuple[int, ...]) -> tuple[np.ndarray, Rows]:
    """Zeros, uint8, and which of its rows this process is to fill; the others are filled by others.

    All processes of the training call it. The memory has no name in any file system, and is free again when the last
    of them has ended, in whatever way. On other systems than Linux each process has its own, and fills it.
    """
    rank, machines = collectives.rank(), collectives.from_all(_machine())
    here = [other for other, machine in enumerate(machines) if machine == machines[rank]]
    shares, creates = len(here) > 1, len(here) > 1 and here[0] == rank
    file = os.memfd_create("avarc") if creates else -1
    if creates:
        os.truncate(file, math.prod(shape))
    files = collectives.from_all(Path(f"/proc/{os.getpid()}/fd/{file}"))
    memory = np.asarray(np.memmap(files[here[0]], np.uint8, "r+", shape=shape)) if shares else np.zeros(shape, np.uint8)
    collectives.from_all(None)  # by now all have opened it
    if creates:
        os.close(file)
    return memory, Rows.whole(shape[0]).split(len(here))[here.index(rank)]


def _machine() -> object:
    """What processes have in common that can open each other's files in /proc."""
    if not hasattr(os, "memfd_create"):
        return collectives.rank()
    return Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
