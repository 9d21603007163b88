from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from avarc_cli.data import ImageSet, Preprocess
from avarc_cli.errors import CacheError, UsageError
from avarc_cli.layout import TokenLayout
from avarc_cli.tokens import TokenCache, encode, read

PRE = Preprocess("none", 8)


@pytest.fixture
def cache(images: ImageSet, stub_tokenizer, tmp_path: Path) -> TokenCache:
    out = tmp_path / "t.h5"
    encode(images, stub_tokenizer(), PRE, out, samples=2, latents=True)
    return read(out)


def test_a_cache_gives_rows_in_any_order_with_repetitions(cache):
    every = cache.tokens(range(len(cache)))
    assert every.shape == (11, 2, 5)
    assert every.dtype == np.int64
    assert np.array_equal(cache.tokens([7, 0, 7, 3]), every[[7, 0, 7, 3]])
    assert cache.tokens([]).shape == (0, 2, 5)
    with pytest.raises(IndexError):
        cache.tokens([11])


def test_a_cache_holds_labels_names_and_latents(cache):
    assert cache.header.class_names == ("even", "odd")
    assert cache.paths[0] == "even/000.png"
    assert cache.labels.tolist() == [0] * 6 + [1] * 5
    assert cache.latents([1, 0]).shape == (2, 3, 2, 2)
    assert cache.latents([0]).dtype == np.float16


def test_the_layout_on_disk_is_the_documented_one(cache):
    with h5py.File(cache.path) as file:
        assert sorted(file) == ["digests", "labels", "latents", "paths", "stamps", "tokens"]
        assert file["tokens"].dtype == np.uint16
        assert file["labels"].dtype == np.int32
        assert file["paths"].asstr()[0] == "even/000.png"
        header = json.loads(file.attrs["avarc"])
    assert header["format"] == 2
    assert header["tokenizer_file"] == "stub.safetensors"  # no path of this machine
    assert header["layout"] == {"grids": [[1, 1], [2, 2]]}
    assert header["inferred"] == {}


def test_latents_that_were_not_kept_are_said_to_be_missing(images, stub_tokenizer, tmp_path):
    encode(images, stub_tokenizer(), PRE, tmp_path / "bare.h5")
    with pytest.raises(CacheError, match="no latents"):
        read(tmp_path / "bare.h5").latents([0])


def test_check_accepts_the_tokenizer_that_made_the_cache(cache, stub_tokenizer):
    cache.check(stub_tokenizer())


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("sha256", "b" * 64, "b" * 64),
        ("layout", TokenLayout.raster(1, 5), "layout: scales 1,2 in the cache, 1x5 grid for the model"),
        ("image_size", 512, "8 in the cache, 512 for the model"),
        ("vocab_size", 8192, "64 in the cache, 8192 for the model"),
    ],
)
def test_check_shows_both_values_where_another_tokenizer_differs(cache, stub_tokenizer, field, value, shown):
    other = stub_tokenizer()
    setattr(other, field, value)
    with pytest.raises(CacheError) as error:
        cache.check(other)
    assert shown in error.value.why


def test_a_missing_file_a_folder_and_a_foreign_file_are_told_apart(tmp_path):
    with pytest.raises(CacheError, match="does not exist"):
        read(tmp_path / "none.h5")
    with pytest.raises(CacheError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(CacheError, match="corrupt, or not a token cache"):
        read(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(CacheError, match="no attribute 'avarc'"):
        read(tmp_path / "other.h5")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_cache_is_refused(cache, kept):
    data = cache.path.read_bytes()
    cache.path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CacheError, match="corrupt"):
        read(cache.path)


def test_a_newer_format_asks_for_an_upgrade(cache):
    with h5py.File(cache.path, "r+") as file:
        file.attrs["avarc"] = json.dumps(json.loads(file.attrs["avarc"]) | {"format": 3})
    with pytest.raises(CacheError, match="version 3, this is 2") as error:
        read(cache.path)
    assert "upgrade" in error.value.fix


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1}', '{"format": 2}', '{"format": "x"}', '{"format": null}', "nonsense"]
)
def test_a_header_that_is_none_is_refused(cache, text):
    with h5py.File(cache.path, "r+") as file:
        file.attrs["avarc"] = text
    with pytest.raises(CacheError):
        read(cache.path)


@pytest.mark.parametrize("field", ["samples", "image_size", "layout", "class_names", "vocab_size", "inferred"])
@pytest.mark.parametrize("value", [None, -1, "x", [], [0], 3.5])
def test_a_header_with_odd_values_is_refused(cache, field, value):
    with h5py.File(cache.path, "r+") as file:
        file.attrs["avarc"] = json.dumps(json.loads(file.attrs["avarc"]) | {field: value})
    with pytest.raises(CacheError):
        read(cache.path)


@pytest.mark.parametrize("field", ["source", "dataset", "preprocess", "tokenizer", "precision", "images_sha256"])
@pytest.mark.parametrize("value", [None, 5, ["x"]])
def test_a_header_whose_names_are_no_texts_is_refused(cache, field, value):
    with h5py.File(cache.path, "r+") as file:
        file.attrs["avarc"] = json.dumps(json.loads(file.attrs["avarc"]) | {field: value})
    with pytest.raises(CacheError):
        read(cache.path)


@pytest.mark.parametrize("dataset", ["tokens", "labels", "paths", "latents"])
def test_missing_and_misshapen_datasets_are_refused(cache, dataset):
    with h5py.File(cache.path, "r+") as file:
        del file[dataset]
    with pytest.raises(CacheError, match=dataset):
        read(cache.path)
    with h5py.File(cache.path, "r+") as file:
        file[dataset] = np.zeros((11, 3), dtype=np.float64)
    with pytest.raises(CacheError, match=dataset):
        read(cache.path)


def test_labels_beyond_the_classes_and_tokens_beyond_the_vocabulary_are_refused(cache):
    with h5py.File(cache.path, "r+") as file:
        file["tokens"][3, 1, 4] = 64
    with pytest.raises(CacheError, match="token 64 in a vocabulary of 64"):
        read(cache.path).tokens([3])
    with h5py.File(cache.path, "r+") as file:
        file["labels"][2] = 2
    with pytest.raises(CacheError, match="labels up to 2"):
        read(cache.path)


def test_a_cache_that_vanishes_after_opening_is_an_error_not_a_crash(cache):
    cache.path.unlink()
    with pytest.raises(CacheError):
        cache.tokens([0])


def test_layouts_of_any_kind_and_what_was_inferred_are_recorded(images, stub_tokenizer, tmp_path):
    for number, layout in enumerate((TokenLayout.raster(1, 5), TokenLayout.sequence(5))):
        tokenizer = stub_tokenizer()
        tokenizer.layout, tokenizer.inferred = layout, {"image_size": "from the shape of its positions"}
        encode(images, tokenizer, PRE, tmp_path / f"{number}.h5")
        header = read(tmp_path / f"{number}.h5").header
        assert (header.layout, header.inferred) == (layout, tokenizer.inferred)
        tokenizer.inferred = {}  # a note, not a part of the request
        assert encode(images, tokenizer, PRE, tmp_path / f"{number}.h5").already_done


def test_a_view_shows_rows_of_the_cache_in_its_own_order(cache):
    view = cache.take([9, 2, 2])
    assert len(view) == 3 and view.paths == tuple(cache.paths[row] for row in (9, 2, 2))
    assert view.labels.tolist() == cache.labels[[9, 2, 2]].tolist()
    assert np.array_equal(view.tokens([0, 2]), cache.tokens([9, 2]))
    assert np.array_equal(view.latents([1]), cache.latents([2]))
    again = view.take([2, 0]).first(1)
    assert again.paths == (cache.paths[2],) and np.array_equal(again.tokens([0]), cache.tokens([2]))
    for rows in ([3], [-1]):
        with pytest.raises(IndexError):
            view.take(rows)
    with pytest.raises(ValueError, match="view"):
        next(view.blocks())


def test_a_cache_can_be_cut_to_its_first_images(cache):
    assert cache.first(None) is cache and len(cache.first(99)) == len(cache)
    assert cache.first(3).paths == cache.paths[:3] and len(cache.first(3).labels) == 3
    with pytest.raises(UsageError, match="at least 1"):
        cache.first(0)
