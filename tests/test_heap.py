"""Inside a block malloc keeps the memory of freed tensors, or Python does not collect; afterwards all is as usual."""

import ctypes
import gc

import pytest

from avarc_cli import heap

USUAL = [(-4, 65536), (-3, 32 << 20), (-1, 64 << 20), "trim"]


@pytest.fixture
def asked(monkeypatch):
    """What was asked of glibc."""

    calls = []

    class Library:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

        def malloc_trim(self, pad):
            calls.append("trim")

    monkeypatch.setattr(heap.sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    return calls


def test_large_tensors_are_not_mapped_inside(asked):
    with heap.keep_freed_memory():
        assert asked == [(-4, 0), (-1, heap.NEVER)]
        asked.clear()
    assert asked == USUAL


def test_thresholds_are_as_usual_after_an_error(asked):
    with pytest.raises(RuntimeError), heap.keep_freed_memory():
        raise RuntimeError
    assert asked[2:] == USUAL


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with heap.keep_freed_memory():
        pass


@pytest.mark.parametrize("enabled", [True, False])
def test_python_does_not_collect_inside_and_does_afterwards_what_it_did_before(enabled):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with heap.without_collection(), heap.without_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(RuntimeError), heap.without_collection():
            raise RuntimeError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
