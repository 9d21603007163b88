from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avarc_cli.tokens.encoded import EncodedChunk, EncodedFormat, Unreadable
from avarc_cli.tokens.fingerprints import Fingerprints
from avarc_cli.tokens.form import TokenForm
from avarc_cli.work.chunks import CORRUPT, ChunkFolder, Chunks

CHUNK = EncodedChunk(
    rows=np.array([3, 5]),
    tokens=np.arange(20, dtype=np.uint16).reshape(2, 2, 5),
    latents=np.ones((2, 3, 2, 2), dtype=np.float16),
    unreadable=(Unreadable(4, "caf\udce9.png", "why"),),
    fingerprints=Fingerprints(np.arange(6).reshape(3, 2), np.arange(48, dtype=np.uint8).reshape(3, 16)),
)


def make_folder(path, *, images=8, size=3, samples=2, latents=True):
    return ChunkFolder(path, Chunks(images, size), EncodedFormat(TokenForm(samples, 5), latents))


def assert_equal(one: EncodedChunk, other: EncodedChunk) -> None:
    assert np.array_equal(one.rows, other.rows) and np.array_equal(one.tokens, other.tokens)
    assert np.array_equal(one.latents, other.latents) and one.unreadable == other.unreadable


def test_a_chunk_comes_back_as_it_was_saved(tmp_path):
    folder = make_folder(tmp_path)
    folder.save(1, CHUNK)
    assert_equal(folder.load(1), CHUNK)
    assert folder.corrupt(range(3)) == [0, 2]  # they were not saved
    with np.load(tmp_path / "000001.npz") as file:
        assert file.files == ["rows", "tokens", "latents", "unreadable", "stamps", "digests"]


@pytest.mark.parametrize("changes", [{"samples": 1}, {"size": 4}, {"images": 5}])
def test_a_chunk_of_another_request_counts_as_corrupt(tmp_path, changes):
    make_folder(tmp_path).save(1, CHUNK)
    assert make_folder(tmp_path, **changes).corrupt([1]) == [1]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_noticed_or_harmless(tmp_path, data):
    folder = make_folder(tmp_path)
    folder.save(1, CHUNK)
    path = tmp_path / "000001.npz"
    changed = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place : place + 3] = data.draw(st.binary(max_size=3))
    path.write_bytes(changed)
    try:
        back = folder.load(1)
    except CORRUPT:
        return
    assert_equal(back, CHUNK)
