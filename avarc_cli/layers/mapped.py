"""Weights that are mapped from a file: memory that is no longer needed is given back."""

from __future__ import annotations

import ctypes
import os
import sys

import numpy as np
from torch import Tensor

PAGEMAP = "/proc/self/pagemap"  # 8 bytes for each page; Documentation/admin-guide/mm/pagemap.rst of Linux
PRESENT, SWAPPED, OF_A_FILE = np.uint64(1 << 63), np.uint64(1 << 62), np.uint64(1 << 61)
MADV_DONTNEED = 4


def give_back(tensor: Tensor) -> None:
    """Give back the memory of a contiguous tensor that is mapped from a file, and as the file has it.

    Should it be read after all, it is read from the file again. Other tensors, such as those that were written to, are
    left as they are, and so is everything but on Linux.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    page = os.sysconf("SC_PAGE_SIZE")
    first, end = -(-tensor.data_ptr() // page), (tensor.data_ptr() + tensor.nbytes) // page
    if end <= first:
        return
    try:
        pages = np.fromfile(PAGEMAP, np.uint64, end - first, offset=8 * first)
    except OSError:  # a sandbox without it
        return
    written = (pages & SWAPPED != 0) | ((pages & PRESENT != 0) & (pages & OF_A_FILE == 0))
    if len(pages) == end - first and not written.any():
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first * page), ctypes.c_size_t((end - first) * page), MADV_DONTNEED)
