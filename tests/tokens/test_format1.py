"""Caches and unfinished work of format 1, which the last version with that format wrote.

    for s in '1/1 format1' '1/2 format1_share'; do set -- $s
        avarc encode avarc_cli/assets/digits/test --per-class 1 --limit 4 --samples 2 --latents --batch-size 1 \
            --shard $1 --out tests/tokens/$2.h5
    done

format1_unfinished.h5.parts is of the same encode, undivided, interrupted when the first of four chunks was saved.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

import avarc_cli
from avarc_cli.cli import main
from avarc_cli.data import Preprocess, open_images
from avarc_cli.errors import CacheError
from avarc_cli.layout import TokenLayout
from avarc_cli.loading import load_tokenizer
from avarc_cli.tokens import Shard, encode, merge, read, verify

HERE = Path(__file__).parent
DIGITS = Path(avarc_cli.__file__).parent / "assets" / "digits" / "test"
OPTIONS = {"samples": 2, "latents": True, "batch_size": 1, "chunk_size": 1}
SCALES = (1, 2, 3, 5, 8)


@pytest.fixture(scope="module")
def run():
    """Encodes the same images as the files beside this one."""
    tokenizer = load_tokenizer("digits")
    pixels = Preprocess(tokenizer.preprocess, tokenizer.image_size)
    images = open_images([DIGITS]).select(None, 1, 4)
    images = dataclasses.replace(images, source="avarc_cli/assets/digits/test")

    def run(out, **options):
        return encode(images, tokenizer, pixels, out, **(OPTIONS | options))

    return run


@pytest.fixture
def old(tmp_path):
    """A copy of a file or folder of format 1."""

    def copy(name):
        source, out = HERE / name, tmp_path / name
        return Path(shutil.copytree(source, out) if source.is_dir() else shutil.copy(source, out))

    return copy


@pytest.fixture(scope="module")
def current(run, tmp_path_factory) -> Path:
    """The cache that a run of this version makes of the same images."""
    out = tmp_path_factory.mktemp("current") / "t.h5"
    run(out)
    return out


def assert_same(path: Path, current: Path) -> None:
    """The caches have the same content, except for two things.

    Format 1 does not record what the files of the images were like, and its latents come from another version, which
    rounds differently.
    """
    with h5py.File(path) as found, h5py.File(current) as expected:
        assert dict(found.attrs) == dict(expected.attrs)
        assert set(found) - {"stamps", "digests"} == set(expected) - {"stamps", "digests"}
        for name in set(found) - {"latents", "stamps", "digests"}:
            assert np.array_equal(found[name][()], expected[name][()])
        assert_one_rounding_apart(found["latents"][:], expected["latents"][:])
    verify(read(path)).check(path)


def assert_one_rounding_apart(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype == np.float16
    np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=2**-10, atol=2**-20)


def test_a_cache_of_format_1_is_read(old, current):
    cache = read(old("format1.h5"))
    assert (cache.format, cache.header.layout) == (1, TokenLayout.multi_scale(SCALES))
    assert cache.header.layout.sides == SCALES and cache.header.inferred == {}
    verify(cache).check(cache.path)
    now = read(current)
    assert now.format == 2 and now.header == cache.header
    assert np.array_equal(now.tokens(range(4)), cache.tokens(range(4)))
    assert_one_rounding_apart(now.latents(range(4)), cache.latents(range(4)))
    assert now.paths == cache.paths and np.array_equal(now.labels, cache.labels)


def test_a_complete_cache_of_format_1_counts_as_done(run, old):
    path = old("format1.h5")
    before = path.read_bytes()
    assert run(path).already_done and path.read_bytes() == before
    with pytest.raises(CacheError) as error:
        run(path, samples=3)
    assert error.value.why == "samples: 2 there, 3 here"


def test_a_partial_cache_of_format_1_is_continued(run, old, current):
    path = old("format1_share.h5")
    assert read(path, allow_partial=True).rows.tolist() == [0, 1]
    assert run(path, shard=Shard(1, 2)).already_done
    result = run(path, shard=Shard(2, 2))
    assert (result.complete, result.encoded) == (True, 2)
    assert_same(path, current)


def test_unfinished_work_of_format_1_is_continued(run, old, current):
    parts = old("format1_unfinished.h5.parts")
    path = parts.with_suffix("")
    with pytest.raises(CacheError, match="unfinished work of another request") as error:
        run(path, latents=False)
    assert error.value.why == "latents: true there, false here"
    assert run(path).encoded == 3
    assert_same(path, current)
    assert not parts.exists()


def test_shards_of_both_formats_are_joined_to_the_current_one(run, old, current, tmp_path):
    run(tmp_path / "2.h5", shard=Shard(2, 2))
    merged = merge([tmp_path / "2.h5", old("format1_share.h5")], tmp_path / "all.h5")
    assert merged.shards
    assert_same(tmp_path / "all.h5", current)


def test_complete_caches_of_both_formats_are_joined(old, current, tmp_path):
    now = Path(shutil.copy(current, tmp_path / "now.h5"))
    with h5py.File(now, "r+") as file:
        for name, text in enumerate(file["paths"].asstr()[:]):
            file["paths"][name] = text.replace(".png", ".pmg").encode()
        del file["paths"].attrs["crc32"]
    merged = merge([old("format1.h5"), now], tmp_path / "both.h5")
    assert (merged.images, merged.shards) == (8, False)
    with h5py.File(tmp_path / "both.h5") as file:
        assert json.loads(file.attrs["avarc"])["format"] == 2


def test_a_cache_of_format_1_is_classified_and_explained(old, tmp_path, capsys):
    path = str(old("format1.h5"))
    assert main(["--json", "classify", path, "--model", "digits"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"] == 1.0
    assert main(["--quiet", "explain", path, "--model", "digits", "--out", str(tmp_path / "page.html")]) == 0
    capsys.readouterr()
    assert main(["--json", "cache", "info", path]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["scales"]) == (1, list(SCALES))
