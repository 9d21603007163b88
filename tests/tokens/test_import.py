"""Tokens of other programs become a cache like any other, whatever the format."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interchange_files import imported, tokens_of, write, write_json_lines, write_llamagen, write_randar
from stub_tokenizer import StubTokenizer

from avarc_cli.errors import CacheError, UsageError
from avarc_cli.tokens import read
from avarc_cli.tokens.interchange.exporting import CROPS, FORMATS, export_codes
from avarc_cli.tokens.interchange.importing import import_codes
from avarc_cli.tokens.write import Content
from avarc_cli.tokens.write import write as write_cache


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("views", [1, 3])
def test_every_format_gives_the_same_tokens_and_labels(kind, views, labels, tmp_path):
    wanted = tokens_of(6, views)
    source = write(kind, tmp_path / "source", wanted, labels)
    lines = {"views": views} if kind == "jsonl" else {}
    cache, tokens, found = imported(source, tmp_path / "t.h5", **lines)
    assert np.array_equal(tokens, wanted)
    assert [cache.header.class_names[label] for label in found] == [str(label) for label in labels]
    header = cache.header
    assert (header.samples, header.views) == (views, "imported" if views > 1 else "smoothing")
    assert (header.preprocess, header.precision, header.source) == ("unknown", "unknown", str(source))
    assert (header.tokenizer_sha256, header.layout) == (StubTokenizer.sha256, StubTokenizer.layout)
    names = {
        "llamagen": "imagenet8_codes/2.npy",
        "randar": "stub-adm-8_codes/7/2.npy",
        "jsonl": f"codes.jsonl:{2 * views + 1}",
        "npy": "codes.npy:2",
        "npz": "codes.npz:2",
    }
    assert cache.paths[2] == names[kind]


@st.composite
def caches(draw):
    images, views = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    label = st.integers(-1, 40)
    labels = np.array(draw(st.lists(label, min_size=images, max_size=images)))
    return tokens_of(images, views, draw(st.integers(0, 99))), labels, draw(st.sampled_from(FORMATS))


@settings(max_examples=20)
@given(caches(), st.integers(1, 4))
def test_what_is_exported_is_imported_the_same(case, chunk_size):
    wanted, labels, kind = case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        views = wanted.shape[1]
        source = write_llamagen(folder / "first", wanted, labels)
        first = imported(source, folder / "first.h5", chunk_size=chunk_size)
        out = folder / ("second" if kind in ("llamagen", "randar") else f"second.{kind}")
        if kind == "randar" and (labels < 0).any():
            with pytest.raises(UsageError, match="cannot export"):
                export_codes(folder / "first.h5", out, kind)
            return
        export_codes(folder / "first.h5", out, kind)
        second = imported(out, folder / "second.h5", **({"views": views} if kind == "jsonl" else {}))
        assert np.array_equal(first[1], wanted) and np.array_equal(first[2], labels)
        assert np.array_equal(second[1], wanted) and np.array_equal(second[2], labels)
        assert second[0].header.class_names == first[0].header.class_names


def test_exported_files_are_those_of_the_other_programs(tmp_path, labels):
    wanted = tokens_of(6, 2)
    import_codes(write_llamagen(tmp_path / "a", wanted, labels), StubTokenizer(), tmp_path / "t.h5")
    export_codes(tmp_path / "t.h5", tmp_path / "b", "llamagen")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.npy"))
    assert len(files) == 12
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    export_codes(tmp_path / "t.h5", tmp_path / "b.jsonl", "jsonl")
    assert (tmp_path / "b.jsonl").read_text() == write_json_lines(tmp_path / "a.jsonl", wanted, labels).read_text()
    export_codes(tmp_path / "t.h5", tmp_path / "c", "randar")
    assert np.array_equal(np.load(tmp_path / "c/7/2.npy"), wanted[2])
    export_codes(tmp_path / "t.h5", tmp_path / "d.npz", "npz")
    with np.load(tmp_path / "d.npz") as arrays:
        assert np.array_equal(arrays["tokens"], wanted) and np.array_equal(arrays["labels"], labels)


def test_ten_crops_are_exported_in_the_order_of_torchvision(tmp_path, labels):
    """Ours begin with the center; its corners come first, then the center, then the mirror images of these five."""
    order = ["center", "top left", "top right", "bottom left", "bottom right"]
    ours = [*order, *(f"mirrored {crop}" for crop in order)]
    theirs = [ours[view] for view in CROPS]
    assert theirs[:5] == ["top left", "top right", "bottom left", "bottom right", "center"]
    assert theirs[5:] == [f"mirrored {crop}" for crop in theirs[:5]]
    cache, tokens, _ = imported(write("npz", tmp_path / "s", tokens_of(6, 10), labels), tmp_path / "t.h5")
    content = Content(
        header=replace(cache.header, views="ten-crop"), labels=cache.labels, names=cache.paths, unreadable=()
    )
    write_cache(tmp_path / "ten.h5", content, cache.blocks(), size=0)
    export_codes(tmp_path / "ten.h5", tmp_path / "out", "llamagen")
    assert np.array_equal(np.load(tmp_path / "out/imagenet8_codes/3.npy")[0], tokens[3, CROPS])
    export_codes(tmp_path / "ten.h5", tmp_path / "out.npy", "npy")
    assert np.array_equal(np.load(tmp_path / "out.npy"), tokens)


def test_what_changed_in_the_source_is_imported_again(tmp_path, labels):
    source = write_llamagen(tmp_path / "s", tokens_of(6), labels)
    import_codes(source, StubTokenizer(), tmp_path / "t.h5", chunk_size=2)
    np.save(source / "imagenet8_codes" / "4.npy", tokens_of(1, seed=1))
    said = []
    done = import_codes(source, StubTokenizer(), tmp_path / "t.h5", chunk_size=2, say=said.append)
    assert not done.already_done and "1 image changed" in said[0]
    tokens = read(tmp_path / "t.h5").tokens(range(6))
    assert np.array_equal(tokens[4], tokens_of(1, seed=1)[0]) and np.array_equal(tokens[3], tokens_of(6)[3])


def test_randars_classes_may_each_be_numbered_from_0(tmp_path):
    wanted = tokens_of(5, 2)
    for label, rows in ((2, [0, 1, 2]), (10, [3, 4])):
        write_randar(tmp_path / "codes", wanted[rows], np.full(len(rows), label))
    cache, tokens, _ = imported(tmp_path / "codes", tmp_path / "t.h5")
    assert np.array_equal(tokens, wanted)
    assert cache.paths[-1] == "codes/10/1.npy"


def test_labels_are_classes_of_a_dataset_or_of_a_list(tmp_path, labels):
    source = write("npy", tmp_path / "source", tokens_of(6), np.array([3, -1, 7, 3, 3, 0]))
    cache, _, found = imported(source, tmp_path / "a.h5", dataset="imagenet-val")
    assert (cache.header.dataset, len(cache.header.class_names)) == ("imagenet-val", 1000)
    assert cache.header.class_names[3] == "n01491361" and found.tolist() == [3, -1, 7, 3, 3, 0]
    cache, _, found = imported(source, tmp_path / "b.h5", class_names=list("abcdefgh"))
    assert cache.header.class_names == tuple("abcdefgh") and found.tolist() == [3, -1, 7, 3, 3, 0]
    with pytest.raises(CacheError, match=r"names class 7") as error:
        imported(source, tmp_path / "c.h5", class_names=list("abcd"))
    assert "codes_labels.npy:2" in error.value.what and "4 classes" in error.value.why
    with pytest.raises(UsageError, match="same name"):
        imported(source, tmp_path / "c.h5", class_names=list("abcdabcd"))
    with pytest.raises(UsageError, match="class numbers"):
        imported(source, tmp_path / "c.h5", dataset="objectnet")


def test_views_of_lines_must_be_complete_and_of_one_class(tmp_path):
    source = write_json_lines(tmp_path / "codes.jsonl", tokens_of(6), np.array([1, 1, 1, 2, 2, 2]))
    cache, _, found = imported(source, tmp_path / "t.h5", views=3)
    assert found.tolist() == [1, 2] and cache.paths == ("codes.jsonl:1", "codes.jsonl:4")
    same = write_json_lines(tmp_path / "same.jsonl", tokens_of(6), np.zeros(6))
    with pytest.raises(CacheError, match="is incomplete"):
        import_codes(same, StubTokenizer(), tmp_path / "u.h5", views=4)
    with pytest.raises(CacheError, match=r"codes\.jsonl:4") as error:
        import_codes(source, StubTokenizer(), tmp_path / "u.h5", views=2)
    assert "its class is 2" in error.value.why


def test_the_folder_of_codes_may_be_the_working_folder(tmp_path, labels, monkeypatch):
    monkeypatch.chdir(write_llamagen(tmp_path / "s", tokens_of(6), labels) / "imagenet8_codes")
    cache, _, _ = imported(Path("."), tmp_path / "t.h5")
    assert cache.paths[5] == "imagenet8_codes/5.npy"


def test_a_complete_import_is_not_done_again_and_another_one_is_refused(tmp_path, labels):
    source = write("npz", tmp_path / "s", tokens_of(6), labels)
    assert import_codes(source, StubTokenizer(), tmp_path / "t.h5").encoded == 6
    before = (tmp_path / "t.h5").read_bytes()
    assert import_codes(source, StubTokenizer(), tmp_path / "t.h5").already_done
    other = write("npz", tmp_path / "o", tokens_of(6), labels + 1)
    with pytest.raises(CacheError, match="another request"):
        import_codes(other, StubTokenizer(), tmp_path / "t.h5")
    assert (tmp_path / "t.h5").read_bytes() == before
    import_codes(other, StubTokenizer(), tmp_path / "t.h5", overwrite=True)
    assert (tmp_path / "t.h5").read_bytes() != before


def test_lines_without_order_of_keys_and_with_others_are_read(tmp_path):
    source = tmp_path / "codes.jsonl"
    source.write_text(json.dumps({"tokens": [1, 2, 3, 4, 5], "class_id": -1, "path": "x"}) + "\r\n\n")
    _, tokens, labels = imported(source, tmp_path / "t.h5")
    assert tokens.tolist() == [[[1, 2, 3, 4, 5]]] and labels.tolist() == [-1]
