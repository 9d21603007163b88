"""Caches of continuous tokens: what is in them, and that everything that handles caches handles these."""

from __future__ import annotations

import dataclasses
import json

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from stub_tokenizer import StubTokenizer, StubVAE

from avarc_cli.data import Preprocess
from avarc_cli.data.views import Views
from avarc_cli.errors import CacheError, Interrupted, UsageError
from avarc_cli.results.resume import token_digests
from avarc_cli.tokens import Shard, encode, merge, read, sample_noise, verify
from avarc_cli.tokens.interchange.exporting import export_codes
from avarc_cli.tokens.interchange.importing import import_codes
from avarc_cli.tokens.reconstruct import reconstruct

PRE = Preprocess("none", 8)


@pytest.fixture
def cache(images, tmp_path):
    encode(images, StubVAE(), PRE, tmp_path / "t.h5", samples=3, sigma=0.7, seed=9)
    return read(tmp_path / "t.h5")


def quarters(path):
    """Mean colors of the quarters of an image, row by row, in [-1, 1], (4, 3)."""
    x = np.asarray(Image.open(path), dtype=np.float64) / 255 * 2 - 1
    return x.reshape(2, 4, 2, 4, 3).mean((1, 3)).reshape(4, 3)


def test_sample_0_is_the_mean_and_the_others_are_drawn_with_the_encoders_deviation(images, cache):
    tokens = cache.tokens(range(11))
    assert (tokens.shape, tokens.dtype) == ((11, 3, 4, 3), np.float32)
    for row, path in enumerate(images.paths):
        mean = quarters(path)
        assert np.abs(tokens[row, 0] - mean).max() < 1e-6
        for sample in (1, 2):
            noise = sample_noise(9, row, sample, (4, 3))
            assert np.abs(tokens[row, sample] - (mean + np.abs(mean) / 10 * noise)).max() < 1e-6
    assert np.array_equal(cache.tokens([4, 2]), tokens[[4, 2]])


def test_the_header_states_what_the_tokens_are_and_that_of_codes_is_as_before(images, cache, tmp_path):
    header = cache.header
    assert (header.vocab_size, header.channels, header.latents) == (0, 3, False)
    assert (header.views, header.sigma, header.seed) == ("posterior", 0.0, 9)
    with h5py.File(cache.path) as file:
        assert "tokens" not in file
        assert (file["latents"].shape, file["latents"].dtype) == ((11, 3, 4, 3), np.float32)
        assert json.loads(file.attrs["avarc"])["channels"] == 3
    encode(images, StubTokenizer(), PRE, tmp_path / "codes.h5", samples=2, latents=True)
    with h5py.File(tmp_path / "codes.h5") as file:
        assert not {"channels", "views"} & json.loads(file.attrs["avarc"]).keys()
    with pytest.raises(CacheError, match="no latents but its tokens"):
        cache.latents([0])


def test_bytes_depend_neither_on_workers_nor_on_chunks_nor_on_batches_nor_on_sigma(images, cache, tmp_path):
    for number, options in enumerate(
        ({"workers": 2, "chunk_size": 4}, {"chunk_size": 1}, {"chunk_size": 5, "batch_size": 2, "sigma": 0.1})
    ):
        out = tmp_path / f"{number}.h5"
        encode(images, StubVAE(), PRE, out, samples=3, seed=9, **options)
        assert out.read_bytes() == cache.path.read_bytes()


def test_interrupted_it_continues_to_the_same_bytes(images, cache, tmp_path):
    calls = iter(range(100))

    def stop():
        if next(calls) == 2:
            raise KeyboardInterrupt

    out, options = tmp_path / "again.h5", {"samples": 3, "seed": 9, "chunk_size": 3}
    with pytest.raises(Interrupted, match="2 of 4 chunks are kept"):
        encode(images, StubVAE(stop), PRE, out, **options)
    assert encode(images, StubVAE(), PRE, out, **options).encoded == 5
    assert out.read_bytes() == cache.path.read_bytes()


def test_an_image_that_changed_is_encoded_again_and_no_other(images, cache, tmp_path):
    Image.new("RGB", (8, 8), (200, 100, 50)).save(images.paths[5])
    before = cache.tokens(range(11))
    assert encode(images, StubVAE(), PRE, cache.path, samples=3, seed=9, chunk_size=2).encoded == 2
    after = read(cache.path).tokens(range(11))
    assert np.flatnonzero((before != after).any((1, 2, 3))).tolist() == [5]


def test_shards_are_joined_to_the_bytes_of_one_run(images, cache, tmp_path):
    names = [tmp_path / f"{i}.h5" for i in (1, 2)]
    for i, name in enumerate(names, start=1):
        encode(images, StubVAE(), PRE, name, samples=3, seed=9, chunk_size=2, shard=Shard(i, 2))
    merge(names, tmp_path / "all.h5")
    assert (tmp_path / "all.h5").read_bytes() == cache.path.read_bytes()
    encode(images, StubVAE(), PRE, names[0], samples=3, seed=9, shard=Shard(2, 2))  # taken apart, and put together
    assert names[0].read_bytes() == cache.path.read_bytes()


def test_caches_of_codes_and_of_continuous_tokens_are_not_joined(images, cache, tmp_path):
    encode(images, StubTokenizer(), PRE, tmp_path / "codes.h5", samples=3, seed=9)
    with pytest.raises(CacheError, match="channels: 3 there, 0 here"):
        merge([cache.path, tmp_path / "codes.h5"], tmp_path / "all.h5")


def test_views_are_the_mean_of_each_view(images, tmp_path):
    pixels = Preprocess("none", 8, views=Views.choose(flip=True, ten_crop=False, crop_range=None))
    encode(images, StubVAE(), pixels, tmp_path / "flip.h5", batch_size=3)
    cache = read(tmp_path / "flip.h5")
    tokens = cache.tokens(range(11))
    assert (cache.header.views, cache.header.samples) == ("flip", 2)
    assert np.allclose(tokens[:, 1], tokens[:, 0][:, [1, 0, 3, 2]], atol=1e-6)


def test_latents_beside_continuous_tokens_are_refused(images, tmp_path):
    with pytest.raises(UsageError, match="the tokens of stub-vae are its latents"):
        encode(images, StubVAE(), PRE, tmp_path / "t.h5", latents=True)
    assert not (tmp_path / "t.h5").exists()


def test_digests_and_checksums_cover_the_tokens(cache):
    before = token_digests(cache, 2, np.arange(11))
    verify(cache).check(cache.path)
    with h5py.File(cache.path, "r+") as file:
        file["latents"][3, 1, 0, 0] += 0.5
        file["latents"][7, 2, 0, 0] += 0.5  # of a sample that is not scored
    after = token_digests(cache, 2, np.arange(11))
    assert [row for row in range(11) if before[row] != after[row]] == [3]
    with pytest.raises(CacheError, match="/latents of rows 0 to 10 differs"):
        verify(cache).check(cache.path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file["latents"].__setitem__((2, 0, 0, 0), np.nan), "a token is not a finite number"),
        (lambda file: file.__delitem__("latents"), "latents"),
    ],
)
def test_a_corrupt_cache_is_an_error(cache, change, says):
    with h5py.File(cache.path, "r+") as file:
        change(file)
    with pytest.raises(CacheError, match=says):
        read(cache.path).tokens(range(11))


@pytest.mark.parametrize(("field", "value"), [("channels", 2), ("vocab_size", 64), ("channels", 0)])
def test_a_header_that_contradicts_the_tokens_is_an_error(cache, field, value):
    with h5py.File(cache.path, "r+") as file:
        header = json.loads(file.attrs["avarc"])
        file.attrs["avarc"] = json.dumps(header | {field: value})
    with pytest.raises(CacheError, match="corrupt"):
        read(cache.path)


def test_codes_for_a_model_of_continuous_tokens_and_the_reverse_are_errors_that_name_both(images, cache, tmp_path):
    encode(images, StubTokenizer(), PRE, tmp_path / "codes.h5")
    cache.check(StubVAE())
    with pytest.raises(UsageError) as refused:
        cache.check(StubTokenizer())
    assert "holds continuous tokens of 3 channels, the model reads tokens of a codebook" in str(refused.value)
    assert "made by stub-vae" in str(refused.value) and "the model reads stub (" in str(refused.value)
    with pytest.raises(UsageError, match="holds tokens of a codebook, the model reads continuous tokens of 3"):
        read(tmp_path / "codes.h5").check(StubVAE())
    other = StubVAE()
    other.channels = 5
    with pytest.raises(CacheError, match="channels: 3 in the cache, 5 for the model"):
        cache.check(other)


def test_exported_arrays_hold_the_tokens(cache, tmp_path):
    export_codes(cache.path, tmp_path / "t.npy", "npy")
    export_codes(cache.path, tmp_path / "t.npz", "npz")
    assert np.array_equal(np.load(tmp_path / "t.npy"), cache.tokens(range(11)))
    assert np.load(tmp_path / "t.npy").dtype == np.float32
    with np.load(tmp_path / "t.npz") as arrays:
        assert np.array_equal(arrays["tokens"], cache.tokens(range(11)))
        assert np.array_equal(arrays["labels"], cache.labels)


@pytest.mark.parametrize(("format", "name"), [("jsonl", "out.jsonl"), ("llamagen", "out"), ("randar", "out")])
def test_formats_of_codes_are_refused(cache, tmp_path, format, name):
    with pytest.raises(UsageError, match=f"cannot export '.*' as {format}") as refused:
        export_codes(cache.path, tmp_path / name, format)
    assert "made by stub-vae" in str(refused.value)
    assert not (tmp_path / name).exists()


def test_nothing_is_imported_for_a_tokenizer_of_continuous_tokens(cache, tmp_path):
    np.save(tmp_path / "t.npy", np.zeros((2, 4), dtype=np.int32))
    with pytest.raises(UsageError, match="those of stub-vae are continuous"):
        import_codes(tmp_path / "t.npy", StubVAE(), tmp_path / "out.h5")


def test_codes_as_float16_are_refused_with_the_reason(tmp_path):
    np.save(tmp_path / "t.npy", np.full((2, 5), 2049, dtype=np.float16))
    with pytest.raises(CacheError, match="float16, which cannot hold all codes above 2048; save int32"):
        import_codes(tmp_path / "t.npy", StubTokenizer(), tmp_path / "out.h5")


def test_pictures_are_decoded_from_the_tokens_as_they_are(cache):
    class Drawing(StubVAE):
        def decode(self, tokens):
            assert tokens.dtype == torch.float32 and tokens.shape == (3, 4, 3)
            return tokens.mean(1)[:, :, None, None].expand(-1, 3, 8, 8)

    pictures = reconstruct(Drawing(), cache.tokens([1, 2]))
    assert pictures.shape == (2, 3, 8, 8, 3)
    expected = (cache.tokens([1])[0, 0].mean(0) + 1) * 127.5
    assert np.abs(pictures[0, 0, 0, 0] - expected).max() <= 0.51


def test_a_view_and_a_header_say_whether_there_could_be_more_samples(cache):
    assert cache.header.has_more_samples
    assert not dataclasses.replace(cache.header, views="flip").has_more_samples
    assert cache.take([3]).tokens([0]).shape == (1, 3, 4, 3)
