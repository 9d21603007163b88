"""malloc keeps the memory of large freed tensors inside the block, and has its usual thresholds afterwards."""

import ctypes

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
