"""The lock file of a path, with other processes as rivals: locks belong to processes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from programs import start

from avarc_cli.errors import AvarcError
from avarc_cli.work.locks import ALL_CHUNKS, chunk_lock, lock_file, only_writer


@contextmanager
def rival(path: Path, *chunks: int) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds these chunks (from, to), or everything."""
    program = ("hold_chunks", path, *chunks) if chunks else ("hold_lock", "file", path)
    process = start(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_path_has_one_writer_and_the_lock_file_goes_with_it(tmp_path):
    path = tmp_path / "file"
    with rival(path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(AvarcError, match="is being written by another process"), only_writer(path):
            pass
    with only_writer(path):  # the lock died with its process
        assert lock_file(path).exists()
    assert not list(tmp_path.iterdir())


def test_processes_hold_different_chunks_and_never_the_same(tmp_path):
    path = tmp_path / "file"
    with rival(path, 3, 6) as process:
        assert process.stdout.readline() == "held\n"
        with chunk_lock(path, wait=True) as lock:
            lock.claim(range(3))
            with pytest.raises(AvarcError, match="another process"):
                lock.claim(range(5, 8))
            assert not lock.is_sole_holder()
        assert lock_file(path).exists()
        with chunk_lock(path, wait=True) as lock, pytest.raises(AvarcError, match="another process"):
            lock.claim(ALL_CHUNKS)
        process.communicate("")  # it ends, and releases its chunks
        assert not lock_file(path).exists()
        with chunk_lock(path, wait=True) as lock:
            assert lock.is_sole_holder()
    assert not list(tmp_path.iterdir())


def test_who_waits_for_the_exclusive_lock_gets_it_when_it_is_released(tmp_path):
    path = tmp_path / "file"
    with chunk_lock(path, wait=False) as lock:
        lock.claim(range(3))
        with rival(path, 3, 6) as process:
            lock.release_exclusive()
            assert process.stdout.readline() == "held\n"
            lock.acquire_exclusive()
            assert not lock.is_sole_holder()


def test_no_chunks_can_always_be_claimed(tmp_path):
    with chunk_lock(tmp_path / "file", wait=False) as lock:
        lock.claim(range(0))
