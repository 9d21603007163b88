"""Memory of large tensors is used again inside, and given back afterwards."""

import resource
import sys

import pytest
import torch

from avarc_cli import heap

LARGE = 12 << 20  # float32 numbers: 48 MiB, more than malloc keeps by itself
PAGES = 4 * LARGE // resource.getpagesize()
glibc = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")


def faults(times=4):
    """New pages that it takes to make and free a large tensor this many times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.empty(LARGE).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@glibc
def test_freed_tensors_are_used_again_inside_only():
    with heap.kept():
        faults(1)
        inside = faults()
    assert inside < PAGES / 2
    assert faults() > 3 * PAGES


@glibc
def test_thresholds_are_as_usual_after_an_error():
    with pytest.raises(RuntimeError), heap.kept():
        raise RuntimeError
    assert faults() > 3 * PAGES
