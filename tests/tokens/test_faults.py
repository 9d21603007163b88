"""What disks, folders and strange names do to encoding and to caches."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from avarc_cli.data import Preprocess
from avarc_cli.errors import AvarcError, CacheError
from avarc_cli.tokens import Shard, encode, merge, read, verify

PRE = Preprocess("none", 8)


def test_a_cache_cut_at_any_byte_is_refused(images, stub_tokenizer, tmp_path):
    out = tmp_path / "t.h5"
    encode(images, stub_tokenizer(), PRE, out, samples=2, latents=True)
    complete = out.read_bytes()
    cut = tmp_path / "cut.h5"
    lengths = {*range(0, len(complete), 9), *range(len(complete) - 100, len(complete))}
    for length in lengths:
        cut.write_bytes(complete[:length])
        with pytest.raises(CacheError, match="corrupt"):
            read(cut)


def test_changed_bytes_are_found_or_harmless(images, stub_tokenizer, tmp_path):
    out = tmp_path / "t.h5"
    encode(images, stub_tokenizer(), PRE, out, samples=2, latents=True)
    complete, original = out.read_bytes(), read(out)
    tokens, latents = original.tokens(range(11)), original.latents(range(11))
    found = 0
    for place in np.random.default_rng(0).permutation(len(complete))[:200].tolist():
        changed = bytearray(complete)
        changed[place] ^= 1 << place % 8
        out.write_bytes(changed)
        try:
            cache = read(out)
            verify(cache).check(out)
        except CacheError:
            found += 1
            continue
        assert (cache.header, cache.paths) == (original.header, original.paths)
        assert np.array_equal(cache.labels, original.labels)
        assert np.array_equal(cache.tokens(range(11)), tokens)
        assert np.array_equal(cache.latents(range(11)), latents)
    assert found > 100


def replace(path, name, make):
    """Replace a dataset of a cache by what make(file, shape, dtype) puts there."""
    with h5py.File(path, "r+") as file:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        make(file, shape, dtype)


def elsewhere(path, data):
    with h5py.File(path, "w") as file:
        file["x"] = data


OTHER_PLACES = {
    "never written": lambda file, shape, dtype: file.create_dataset("labels", shape, dtype),
    "chunked": lambda file, shape, dtype: file.create_dataset("labels", shape, dtype, chunks=(2,)),
    "packed": lambda file, shape, dtype: file.create_dataset("labels", data=np.zeros(shape, dtype), compression="gzip"),
    "external": lambda file, shape, dtype: file.create_dataset("labels", shape, dtype, external="/etc/passwd"),
    "external link": lambda file, shape, dtype: file.__setitem__("labels", h5py.ExternalLink("other.h5", "/x")),
    "soft link": lambda file, shape, dtype: file.__setitem__("labels", h5py.SoftLink("/tokens")),
    "one more link": lambda file, shape, dtype: file.__setitem__("more", h5py.ExternalLink("other.h5", "/x")),
}


def make_virtual(file, shape, dtype):
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource("other.h5", "x", shape)
    file.create_virtual_dataset("labels", layout)


def make_compact(file, shape, dtype):
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(dtype)
    h5py.h5d.create(file.id, b"labels", kind, space, properties)


@pytest.mark.parametrize("make", [*OTHER_PLACES.values(), make_virtual, make_compact])
def test_a_dataset_whose_bytes_are_not_in_the_file_is_refused(images, stub_tokenizer, tmp_path, make):
    out = tmp_path / "t.h5"
    encode(images, stub_tokenizer(), PRE, out)
    elsewhere(tmp_path / "other.h5", read(out).labels)
    replace(out, "labels", make)
    with pytest.raises(CacheError, match="corrupt"):
        read(out)


@pytest.mark.parametrize("count", [10**8, 10**12])
def test_a_cache_that_claims_more_images_than_it_holds_is_refused(images, stub_tokenizer, tmp_path, count):
    out = tmp_path / "t.h5"
    encode(images, stub_tokenizer(), PRE, out)
    for name in ("tokens", "labels", "paths"):
        for_all = {"chunks": True} if count > 10**9 else {}
        replace(
            out,
            name,
            lambda file, shape, dtype: file.create_dataset(name, (count, *shape[1:]), dtype, **for_all),  # noqa: B023
        )
    with pytest.raises(CacheError, match="corrupt"):
        read(out)


def test_a_corrupt_partial_cache_is_neither_unpacked_nor_joined(images, stub_tokenizer, tmp_path):
    parts = [tmp_path / f"{i}.h5" for i in (1, 2)]

    def shard(number, out):
        encode(images, stub_tokenizer(), PRE, out, shard=Shard(number, 2), chunk_size=2, batch_size=2)

    for number, part in enumerate(parts, start=1):
        shard(number, part)
    with h5py.File(parts[0], "r+") as file:
        file["tokens"][1] ^= 1
    before = parts[0].read_bytes()
    for use in (lambda: shard(2, parts[0]), lambda: merge(parts, tmp_path / "all.h5")):
        with pytest.raises(CacheError, match="corrupt") as error:
            use()
        assert "/tokens of rows 0 to" in error.value.why
    assert parts[0].read_bytes() == before and not (tmp_path / "1.h5.parts").exists()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("/dev/full", "it is a device or a pipe"),
        ("pipe", "it is a device or a pipe"),
        ("none/t.h5", "is not a folder"),
    ],
)
def test_a_path_that_is_no_file_is_refused_before_anything_is_computed(images, stub_tokenizer, tmp_path, place, why):
    os.mkfifo(tmp_path / "pipe")

    def never() -> None:
        raise AssertionError("computed")

    with pytest.raises(AvarcError, match="cannot write") as error:
        encode(images, stub_tokenizer(never), PRE, tmp_path / place)
    assert why in error.value.why


def test_a_device_is_not_read_as_a_cache():
    with pytest.raises(CacheError, match="is not a regular file"):
        read("/dev/null")


def test_an_unfinished_cache_is_an_error_that_names_its_chunks(images, stub_tokenizer, tmp_path):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(AvarcError):
        encode(images, stub_tokenizer(stop), PRE, tmp_path / "t.h5")
    with pytest.raises(CacheError, match="does not exist yet") as error:
        read(tmp_path / "t.h5")
    assert "t.h5.parts" in error.value.why and "again" in error.value.fix


def test_a_folder_without_permission_is_an_error(images, stub_tokenizer, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("root may write anywhere")
    with pytest.raises(AvarcError, match="cannot write") as error:
        encode(images, stub_tokenizer(), PRE, folder / "t.h5")
    assert "denied" in error.value.why


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system cannot be mounted here; test_kill.py fills a disk by a limit on file sizes")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_what_is_finished(images, stub_tokenizer, tmp_path, small_disk: Path):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(8 * 1024))
    out = small_disk / "t.h5"
    with pytest.raises(AvarcError, match="cannot write") as error:
        encode(images, stub_tokenizer(), PRE, out, chunk_size=2, latents=True)
    assert "No space left" in error.value.why and "finished chunks are kept" in error.value.fix
    kept = len(list((small_disk / "t.h5.parts").glob("*.npz")))
    assert kept > 0 and not list(small_disk.rglob("*.tmp"))
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert encode(images, stub_tokenizer(), PRE, out, chunk_size=2, latents=True).encoded == 11 - 2 * kept
    encode(images, stub_tokenizer(), PRE, tmp_path / "complete.h5", chunk_size=2, latents=True)
    assert out.read_bytes() == (tmp_path / "complete.h5").read_bytes()
