from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from programs import run, start

from avarc_cli.data import Preprocess
from avarc_cli.errors import CacheError, Interrupted, UsageError
from avarc_cli.tokens import Shard, encode, merge, read

PRE = Preprocess("none", 8)
OPTIONS = {"samples": 2, "latents": True, "chunk_size": 2, "batch_size": 2}


@pytest.fixture
def complete(images, stub_tokenizer, tmp_path) -> bytes:
    images.paths[3].write_bytes(b"unreadable")
    path = tmp_path / "complete.h5"
    encode(images, stub_tokenizer(), PRE, path, **OPTIONS)
    return path.read_bytes()


@pytest.fixture
def shard(images, stub_tokenizer, tmp_path):
    """Encodes shard i of n to a file of this name."""

    def do(i, n, name="t.h5", **options):
        return encode(images, stub_tokenizer(), PRE, tmp_path / name, shard=Shard(i, n), **(OPTIONS | options))

    return do


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in {"images", "complete.h5"})


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_one_after_the_other_to_one_file_give_the_bytes_of_one_run(shard, complete, tmp_path, order):
    results = [shard(i, 3) for i in order]
    assert [result.complete for result in results] == [False, False, True]
    assert (tmp_path / "t.h5").read_bytes() == complete
    assert left(tmp_path) == ["t.h5"]
    assert results[-1].images == 10 and len(results[-1].unreadable) == 1
    assert shard(order[0], 3).already_done


@pytest.mark.parametrize("n", [2, 5, 9])  # 9: three of them have nothing to do
def test_shards_to_files_of_their_own_are_joined_to_the_bytes_of_one_run(shard, complete, tmp_path, n):
    names = [f"{i}.h5" for i in range(1, n + 1)]
    results = [shard(i, n, name) for i, name in enumerate(names, start=1)]
    made = [tmp_path / name for name in names if (tmp_path / name).exists()]
    assert len(made) == min(n, 6) and not any(result.complete for result in results)
    merged = merge(made[::-1], tmp_path / "all.h5")
    assert merged.shards and merged.images == 10
    assert (tmp_path / "all.h5").read_bytes() == complete


def test_a_partial_cache_is_not_read_as_a_complete_one(shard, tmp_path):
    shard(2, 3)
    with pytest.raises(CacheError, match="is a partial token cache") as error:
        read(tmp_path / "t.h5")
    assert "2 of 6 chunks" in error.value.why and "avarc cache merge" in error.value.fix
    partial = read(tmp_path / "t.h5", allow_partial=True)
    assert partial.rows.tolist() == [4, 5, 6, 7]


def test_a_shard_that_was_interrupted_continues_and_keeps_the_chunks_of_others(
    shard, complete, images, stub_tokenizer, tmp_path
):
    def stop():
        raise KeyboardInterrupt

    shard(1, 2)
    with pytest.raises(Interrupted, match="3 of 6 chunks are kept"):
        encode(images, stub_tokenizer(stop), PRE, tmp_path / "t.h5", shard=Shard(2, 2), **OPTIONS)
    assert shard(2, 2).encoded == 5
    assert (tmp_path / "t.h5").read_bytes() == complete


def test_an_undivided_run_finishes_what_shards_began(shard, complete, tmp_path):
    shard(3, 3)
    assert shard(1, 1).encoded == 8
    assert (tmp_path / "t.h5").read_bytes() == complete


def test_the_first_shard_decides_about_chunks_and_batches(shard, complete, tmp_path):
    said: list[str] = []
    shard(1, 3)
    for i in (2, 3):
        shard(i, 3, chunk_size=5, batch_size=4, say=said.append)
    assert (tmp_path / "t.h5").read_bytes() == complete
    assert len(said) == 2 and "batches of 2" in said[0]


def test_a_shard_of_another_request_is_refused_with_both_values(shard, tmp_path):
    shard(1, 3)
    with pytest.raises(CacheError, match="another request") as error:
        shard(2, 3, samples=1)
    assert "samples: 2 there, 1 here" in error.value.why
    with pytest.raises(UsageError, match="--overwrite does not go with --shard"):
        shard(2, 3, overwrite=True)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [({"samples": 3}, "samples: 2 there, 3 here"), ({"batch_size": 1}, "batch_size: 2 there, 1 here")],
)
def test_shards_of_different_requests_are_not_joined(shard, tmp_path, changes, shown):
    shard(1, 2, "a.h5")
    shard(2, 2, "b.h5", **changes)
    with pytest.raises(CacheError, match="do not go together") as error:
        merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "all.h5")
    assert shown in error.value.why


def test_missing_overlapping_and_corrupt_shards_are_errors(shard, complete, tmp_path):
    one, two, three = (tmp_path / f"{i}.h5" for i in (1, 2, 3))
    for i in (1, 2, 3):
        shard(i, 3, f"{i}.h5")
    out = tmp_path / "all.h5"
    with pytest.raises(CacheError, match="a shard is missing") as error:
        merge([one, three], out)
    assert "chunk 2" in error.value.why
    shutil.copy(one, tmp_path / "copy.h5")
    with pytest.raises(CacheError, match="overlap") as error:
        merge([one, two, three, tmp_path / "copy.h5"], out)
    assert "chunk 0 is in" in error.value.why
    with pytest.raises(CacheError, match="a partial cache and a complete one"):
        merge([one, tmp_path / "complete.h5"], out)
    with pytest.raises(UsageError, match="two or more different"):
        merge([one, one], out)
    data = bytearray(two.read_bytes())
    place = data.find(read(two, allow_partial=True).tokens([0]).astype(np.uint16).tobytes())
    data[place] ^= 1
    two.write_bytes(data)
    with pytest.raises(CacheError, match="corrupt"):
        merge([one, two, three], out)
    assert not out.exists()


def test_processes_that_write_one_cache_at_once_give_the_bytes_of_one_run(complete, tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [start("encode_shards", tmp_path, **pipes) for _ in range(3)]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for _ in range(5):
            for i, worker in enumerate(workers, start=1):
                worker.stdin.write(f"{i}/3\n")
                worker.stdin.flush()
            wholes = [worker.stdout.readline() for worker in workers]
            assert "True\n" in wholes, wholes
            assert (tmp_path / "t.h5").read_bytes() == complete
            assert left(tmp_path) == ["t.h5"]
            os.unlink(tmp_path / "t.h5")
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_a_shard_that_another_process_encodes_is_refused(shard, images, stub_tokenizer, tmp_path):
    refused: list[str] = []

    def meanwhile():
        if not refused:
            refused.append(run("hold_chunks", tmp_path / "t.h5", 3, 6).stdout)

    encode(images, stub_tokenizer(meanwhile), PRE, tmp_path / "t.h5", shard=Shard(2, 2), **OPTIONS)
    assert "is being written by another process" in refused[0]
