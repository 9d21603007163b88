"""Caches of several views of each image."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from stub_tokenizer import StubTokenizer

from avarc_cli.data import Preprocess
from avarc_cli.data.views import Views
from avarc_cli.errors import CacheError, Interrupted, UsageError
from avarc_cli.tokens import Shard, encode, merge, read

TEN, FLIP = Preprocess("fit", 8, views=Views("ten-crop", 1.5)), Preprocess("none", 8, views=Views("flip"))
BOTH = pytest.mark.parametrize("pre", [TEN, FLIP], ids=["ten-crop", "flip"])


class Counting(StubTokenizer):
    """Notes how many pictures it reads at once, and has memory for no more than this many."""

    def __init__(self, capacity: int = 1000) -> None:
        super().__init__()
        self.capacity, self.read = capacity, []

    def encode(self, images):
        if len(images) > self.capacity:
            raise MemoryError
        self.read.append(len(images))
        return super().encode(images)


def stop():
    raise KeyboardInterrupt


@BOTH
def test_each_view_has_the_tokens_of_its_pixels_and_latents_are_of_view_0(images, tmp_path, pre):
    encode(images, StubTokenizer(), pre, tmp_path / "t.h5", sigma=0.5, seed=3, latents=True)
    cache = read(tmp_path / "t.h5")
    with h5py.File(cache.path) as file:
        kept = file["latents"][:]
    header, count = cache.header, pre.views.count
    assert (header.samples, header.views, header.sigma, header.seed) == (count, pre.views.kind, 0.0, 0)
    assert header.preprocess == str(pre)
    for row in range(len(images)):
        pixels = torch.from_numpy(images.load_views(row, pre)).permute(0, 3, 1, 2).float() / 255 * 2 - 1
        latents = StubTokenizer().encode(pixels)
        assert np.array_equal(cache.tokens([row])[0], StubTokenizer().quantize(latents).numpy())
        assert np.allclose(kept[row], latents[0], atol=1e-3)
    if pre is FLIP:  # fine tokens of 2 x 2 cells, mirrored
        tokens = cache.tokens(range(len(images)))
        assert np.abs(tokens[:, 1, 1:].astype(int) - tokens[:, 0, [2, 1, 4, 3]]).max() <= 1  # a rounding apart


@BOTH
def test_bytes_depend_neither_on_batches_nor_chunks_nor_workers_nor_shards_nor_memory(images, tmp_path, pre):
    images.paths[4].write_bytes(b"unreadable")
    made = []
    for number, options in enumerate(
        ({}, {"workers": 2, "batch_size": 3}, {"chunk_size": 2, "batch_size": 1}, {"chunk_size": 5, "batch_size": 25})
    ):
        out = tmp_path / f"{number}.h5"
        encode(images, StubTokenizer(), pre, out, latents=True, **options)
        made.append(out.read_bytes())
    encode(images, Counting(capacity=3), pre, tmp_path / "little memory.h5", latents=True)
    for i in (1, 2):
        encode(images, StubTokenizer(), pre, tmp_path / f"s{i}.h5", latents=True, chunk_size=2, shard=Shard(i, 2))
    merge([tmp_path / "s2.h5", tmp_path / "s1.h5"], tmp_path / "merged.h5")
    made += [(tmp_path / name).read_bytes() for name in ("little memory.h5", "merged.h5")]
    assert all(other == made[0] for other in made)


@pytest.mark.parametrize("size", [1, 4, 10, 25])
def test_batches_are_of_views(images, tmp_path, size):
    tokenizer = Counting()
    encode(images, tokenizer, TEN, tmp_path / "t.h5", batch_size=size)
    assert max(tokenizer.read) <= size and sum(tokenizer.read) == 10 * len(images)


def test_an_interrupted_encoding_is_continued_and_another_request_is_not(images, tmp_path):
    encode(images, StubTokenizer(), TEN, tmp_path / "whole.h5")
    calls = []

    def third():
        calls.append(1)
        if len(calls) == 3:
            stop()

    options = {"chunk_size": 2, "batch_size": 20}
    with pytest.raises(Interrupted, match="2 of 6 chunks"):
        encode(images, StubTokenizer(third), TEN, tmp_path / "t.h5", **options)
    other = Preprocess("fit", 8, views=Views("ten-crop", 1.25))
    with pytest.raises(CacheError) as refused:
        encode(images, StubTokenizer(), other, tmp_path / "t.h5", **options)
    assert "range 1.5 there" in refused.value.why and "range 1.25 here" in refused.value.why
    assert encode(images, StubTokenizer(), TEN, tmp_path / "t.h5", **options).encoded == 7
    assert (tmp_path / "t.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_an_image_that_changed_is_encoded_again(images, tmp_path):
    encode(images, StubTokenizer(), TEN, tmp_path / "t.h5")
    before = read(tmp_path / "t.h5").tokens(range(11))
    images.paths[3].write_bytes(images.paths[4].read_bytes())
    encode(images, StubTokenizer(), TEN, tmp_path / "t.h5")
    after = read(tmp_path / "t.h5").tokens(range(11))
    assert np.array_equal(after[3], before[4]) and np.array_equal(np.delete(after, 3, 0), np.delete(before, 3, 0))


def test_smoothing_samples_of_several_views_are_refused(images, tmp_path):
    with pytest.raises(UsageError, match="--flip and --samples exclude each other"):
        encode(images, StubTokenizer(), FLIP, tmp_path / "t.h5", samples=2)
    assert not (tmp_path / "t.h5").exists()


def test_caches_of_different_views_are_not_joined(images, tmp_path):
    plain = Preprocess("none", 8)
    encode(images.select(["even"], None, None), StubTokenizer(), FLIP, tmp_path / "flip.h5")
    encode(images.select(["odd"], None, None), StubTokenizer(), plain, tmp_path / "smooth.h5", samples=2)
    with pytest.raises(CacheError) as refused:
        merge([tmp_path / "flip.h5", tmp_path / "smooth.h5"], tmp_path / "t.h5")
    assert "views: flip there, smoothing here" in refused.value.why
