"""Tokens of other programs become a cache like any other, whatever the format, or one error names what is wrong."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interchange_files import write, write_json_lines, write_llamagen, write_randar
from stub_tokenizer import StubTokenizer

from avarc_cli.errors import AvarcError, CacheError, UsageError
from avarc_cli.tokens import read, verify
from avarc_cli.tokens.interchange.exporting import CROPS, FORMATS, export_codes
from avarc_cli.tokens.interchange.importing import import_codes
from avarc_cli.tokens.write import Content
from avarc_cli.tokens.write import write as write_cache

L, V = StubTokenizer.layout.num_tokens, StubTokenizer.vocab_size


@pytest.fixture(autouse=True, scope="module")
def no_power_cut():
    """Files need not reach the disk to be read again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


def tokens_of(images, views=1, seed=0):
    return np.random.default_rng(seed).integers(0, V, (images, views, L))


@pytest.fixture
def labels():
    return np.array([3, 0, 7, 3, 3, 0])


def load(source, out, **options):
    """The cache that a source is imported to: tokens, labels."""
    import_codes(source, StubTokenizer(), out, **options)
    cache = read(out)
    assert not verify(cache).corrupt
    return cache, cache.tokens(range(len(cache))), cache.labels


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("views", [1, 3])
def test_every_format_gives_the_same_tokens_and_labels(kind, views, labels, tmp_path):
    wanted = tokens_of(6, views)
    source = write(kind, tmp_path / "source", wanted, labels)
    lines = {"views": views} if kind == "jsonl" else {}
    cache, tokens, found = load(source, tmp_path / "t.h5", **lines)
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
        first = load(source, folder / "first.h5", chunk_size=chunk_size)
        out = folder / ("second" if kind in ("llamagen", "randar") else f"second.{kind}")
        if kind == "randar" and (labels < 0).any():
            with pytest.raises(UsageError, match="cannot export"):
                export_codes(folder / "first.h5", out, kind)
            return
        export_codes(folder / "first.h5", out, kind)
        second = load(out, folder / "second.h5", **({"views": views} if kind == "jsonl" else {}))
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
    cache, tokens, _ = load(write("npz", tmp_path / "s", tokens_of(6, 10), labels), tmp_path / "t.h5")
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
    cache, tokens, _ = load(tmp_path / "codes", tmp_path / "t.h5")
    assert np.array_equal(tokens, wanted)
    assert cache.paths[-1] == "codes/10/1.npy"


def test_labels_are_classes_of_a_dataset_or_of_a_list(tmp_path, labels):
    source = write("npy", tmp_path / "source", tokens_of(6), np.array([3, -1, 7, 3, 3, 0]))
    cache, _, found = load(source, tmp_path / "a.h5", dataset="imagenet-val")
    assert (cache.header.dataset, len(cache.header.class_names)) == ("imagenet-val", 1000)
    assert cache.header.class_names[3] == "n01491361" and found.tolist() == [3, -1, 7, 3, 3, 0]
    cache, _, found = load(source, tmp_path / "b.h5", class_names=list("abcdefgh"))
    assert cache.header.class_names == tuple("abcdefgh") and found.tolist() == [3, -1, 7, 3, 3, 0]
    with pytest.raises(CacheError, match=r"names class 7") as error:
        load(source, tmp_path / "c.h5", class_names=list("abcd"))
    assert "codes_labels.npy:2" in error.value.what and "4 classes" in error.value.why
    with pytest.raises(UsageError, match="same name"):
        load(source, tmp_path / "c.h5", class_names=list("abcdabcd"))
    with pytest.raises(UsageError, match="class numbers"):
        load(source, tmp_path / "c.h5", dataset="objectnet")


# Wrong sources. Each spoils one made of 6 images, and returns what the message must say.


def out_of_range(codes, labels):
    array = np.load(codes / "4.npy")
    array[0, 0, 2] = V
    np.save(codes / "4.npy", array)
    return "4.npy", f"token {V}, at position 2, is outside of the vocabulary of {V}"


def negative(codes, labels):
    np.save(codes / "4.npy", np.load(codes / "4.npy") * 0 - 1)
    return "4.npy", "token -1"


def floats(codes, labels):
    np.save(codes / "4.npy", np.load(codes / "4.npy").astype(np.float32))
    return "4.npy", "float32, not whole numbers"


def shorter(codes, labels):
    np.save(codes / "4.npy", np.load(codes / "4.npy")[:, :, :3])
    return "4.npy", "1 x 3 tokens (views x length), the images before it 1 x 5"


def other_views(codes, labels):
    np.save(codes / "4.npy", np.repeat(np.load(codes / "4.npy"), 2, axis=1))
    return "4.npy", "2 x 5 tokens"


def cut_short(codes, labels):
    (codes / "4.npy").write_bytes((codes / "4.npy").read_bytes()[:-1])
    return "4.npy", "takes"


def no_array(codes, labels):
    (codes / "4.npy").write_bytes(b"hello")
    return "4.npy", "not an array file"


def pickled(codes, labels):
    np.save(codes / "4.npy", np.array([{}], dtype=object), allow_pickle=True)
    return "4.npy", "object, not whole numbers"


def huge_claim(codes, labels):
    data = (codes / "4.npy").read_bytes()
    (codes / "4.npy").write_bytes(data.replace(b"(1, 1, 5), }", b"(1, 9**99, 5), }"[: len(b"(1, 1, 5), }")]))
    return "4.npy", "header"


def missing(codes, labels):
    (codes / "4.npy").unlink()
    return "4.npy' is missing", "up to 5.npy"


def missing_last(codes, labels):
    (codes / "5.npy").unlink()
    return "imagenet8_codes/5.npy' is missing", "6 of labels"


def missing_label(codes, labels):
    (labels / "0.npy").unlink()
    return "imagenet8_labels/0.npy' is missing", ""


def no_labels(codes, labels):
    labels.rename(labels.with_name("other"))
    return "has no labels", "imagenet8_labels"


def foreign(codes, labels):
    (codes / "a.npy").write_bytes(b"")
    return "not a folder of codes", "a.npy"


def wrong_label(codes, labels):
    np.save(labels / "4.npy", np.array([-2]))
    return "imagenet8_labels/4.npy' names class -2", "-1 is for an unknown one"


def two_labels(codes, labels):
    np.save(labels / "4.npy", np.array([1, 2]))
    return "imagenet8_labels/4.npy", "2 numbers"


def huge_label(codes, labels):
    np.save(labels / "4.npy", np.array([2**64 - 1], dtype=np.uint64))
    return "imagenet8_labels/4.npy", ""


SPOIL = [out_of_range, negative, floats, shorter, other_views, cut_short, no_array, pickled, huge_claim, missing]
SPOIL += [missing_last, missing_label, no_labels, foreign, wrong_label, two_labels, huge_label]


@pytest.mark.parametrize("spoil", SPOIL, ids=lambda spoil: spoil.__name__)
def test_a_wrong_folder_is_one_error_that_names_the_file_and_leaves_nothing(spoil, tmp_path, labels):
    source = write_llamagen(tmp_path / "source", tokens_of(6), labels)
    what, why = spoil(source / "imagenet8_codes", source / "imagenet8_labels")
    with pytest.raises(CacheError) as error:
        import_codes(source, StubTokenizer(), tmp_path / "t.h5", chunk_size=1)
    assert what in error.value.what and why in error.value.why, str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"class_id": 1, "tokens": [0, 1, 2, 3, 64]}', "token 64, at position 4, is outside of the vocabulary of 64"),
        ('{"class_id": 1, "tokens": [0, 1, 2, 3, -1]}', "token -1"),
        ('{"class_id": 1, "tokens": [0, 1, 2, 3]}', "4 tokens, the lines before it have 5"),
        ('{"class_id": 1, "tokens": [0, 1, 2, 3, 4.0]}', "token 4.0, at position 4, is not a whole number"),
        ('{"class_id": 1, "tokens": [0, 1, 2, 3, true]}', "token true"),
        ('{"class_id": 1, "tokens": [0, 1, 2, 3, 1' + "0" * 5000 + "]}", "not a JSON object"),
        ('{"class_id": 1, "tokens": [0, 1, 2, 3, 1' + "0" * 20 + "]}", "more than 18 digits"),
        ('{"class_id": 1, "tokens": []}', "not a list of numbers"),
        ('{"class_id": "1", "tokens": [0, 1, 2, 3, 4]}', 'class_id is "1"'),
        ('{"class_id": -2, "tokens": [0, 1, 2, 3, 4]}', "class_id is -2"),
        ('{"tokens": [0, 1, 2, 3, 4]}', "not a JSON object like"),
        ("[" * 100_000, "not a JSON object"),
        ('{"class_id": 1, "tok', "not a JSON object"),
        ("\udcff", "not a JSON object"),
    ],
)
def test_the_first_bad_line_is_named(line, why, tmp_path, labels):
    source = write_json_lines(tmp_path / "codes.jsonl", tokens_of(6), labels)
    lines = source.read_text().splitlines()
    lines[3:3] = ["", line]
    lines[5] = "also bad"
    source.write_text("\n".join(lines), errors="surrogateescape")
    with pytest.raises(CacheError) as error:
        import_codes(source, StubTokenizer(), tmp_path / "t.h5")
    assert "codes.jsonl:5'" in error.value.what and why in error.value.why, str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["codes.jsonl"]


def test_views_of_lines_must_be_complete_and_of_one_class(tmp_path):
    source = write_json_lines(tmp_path / "codes.jsonl", tokens_of(6), np.array([1, 1, 1, 2, 2, 2]))
    cache, _, found = load(source, tmp_path / "t.h5", views=3)
    assert found.tolist() == [1, 2] and cache.paths == ("codes.jsonl:1", "codes.jsonl:4")
    same = write_json_lines(tmp_path / "same.jsonl", tokens_of(6), np.zeros(6))
    with pytest.raises(CacheError, match="is incomplete"):
        import_codes(same, StubTokenizer(), tmp_path / "u.h5", views=4)
    with pytest.raises(CacheError, match=r"codes\.jsonl:4") as error:
        import_codes(source, StubTokenizer(), tmp_path / "u.h5", views=2)
    assert "its class is 2" in error.value.why


def test_the_missing_file_of_randars_folders_is_named(tmp_path, labels):
    source = write_randar(tmp_path / "a_codes", tokens_of(6), labels)
    (source / "7" / "2.npy").unlink()
    with pytest.raises(CacheError, match=r"'2\.npy' is missing"):
        import_codes(source, StubTokenizer(), tmp_path / "t.h5")


def fortran(tokens, labels):
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(tokens[:, 0]))
    return buffer.getvalue(), ".npy", "Fortran"


def four_axes(tokens, labels):
    buffer = io.BytesIO()
    np.save(buffer, tokens[..., None])
    return buffer.getvalue(), ".npy", "its shape is (6, 1, 5, 1)"


def compressed(tokens, labels):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, tokens=tokens * 0, labels=labels)
    return buffer.getvalue(), ".npz", ""


def bomb(tokens, labels):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tokens.npy", bytes(10**7))
    return buffer.getvalue(), ".npz", "claim"


def other_names(tokens, labels):
    buffer = io.BytesIO()
    np.savez(buffer, tokens)
    return buffer.getvalue(), ".npz", "it has arr_0.npy"


def other_count(tokens, labels):
    buffer = io.BytesIO()
    np.savez(buffer, tokens=tokens, labels=labels[1:])
    return buffer.getvalue(), ".npz", "its shape is (5,)"


def no_zip(tokens, labels):
    return b"PK hello", ".npz", ""


@pytest.mark.parametrize("make", [fortran, four_axes, compressed, bomb, other_names, other_count, no_zip])
def test_wrong_arrays_are_one_error(make, tmp_path, labels):
    data, suffix, why = make(tokens_of(6), labels)
    source = tmp_path / f"codes{suffix}"
    source.write_bytes(data)
    with pytest.raises(CacheError) as error:
        import_codes(source, StubTokenizer(), tmp_path / "t.h5")
    assert why in error.value.why, str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@settings(max_examples=60)
@given(st.sampled_from(FORMATS), st.integers(0, 2**30), st.binary(max_size=3), st.booleans())
def test_any_change_of_bytes_is_an_error_or_other_tokens(kind, place, junk, cut):
    with tempfile.TemporaryDirectory() as name:
        source = write(kind, Path(name) / "s", tokens_of(3), np.array([1, 0, 1]))
        file = sorted(source.rglob("*.npy"))[place % 3] if source.is_dir() else source
        data = file.read_bytes()
        place %= len(data)
        file.write_bytes(data[:place] + junk + (b"" if cut else data[place + len(junk) :]))
        try:
            tokens = load(source, Path(name) / "t.h5")[1]
        except CacheError as problem:
            error = problem
        else:
            assert tokens.shape[2] == L
            return
        assert error.what and "\n" not in error.why
        assert not (Path(name) / "t.h5").exists()


def test_another_number_of_tokens_than_the_tokenizer_gives_is_refused_with_both(tmp_path):
    source = write("npz", tmp_path / "s", np.zeros((2, 1, 9), dtype=int), np.zeros(2, dtype=int))
    with pytest.raises(CacheError, match="has 9 tokens an image") as error:
        import_codes(source, StubTokenizer(), tmp_path / "t.h5")
    assert "stub gives 5 (scales 1,2)" in error.value.why and "--image-size" in error.value.fix


@pytest.mark.parametrize("name", ["nothing", "text.txt", "empty_codes", "images", "pipe.jsonl"])
def test_what_is_no_source_is_refused(name, tmp_path):
    path = tmp_path / name
    if name.startswith("pipe"):
        os.mkfifo(path)
    elif "." in name:
        path.write_text("hello")
    elif name != "nothing":
        path.mkdir()
    with pytest.raises(AvarcError) as error:
        import_codes(path, StubTokenizer(), tmp_path / "t.h5")
    assert not name.startswith("pipe") or error.value.why == "it is not a regular file"
    with pytest.raises(UsageError, match="no use for --views"):
        import_codes(write("npz", tmp_path / "s", tokens_of(1), np.zeros(1)), StubTokenizer(), tmp_path / "t", views=2)


def test_the_folder_of_codes_may_be_the_working_folder(tmp_path, labels, monkeypatch):
    monkeypatch.chdir(write_llamagen(tmp_path / "s", tokens_of(6), labels) / "imagenet8_codes")
    cache, _, _ = load(Path("."), tmp_path / "t.h5")
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
    _, tokens, labels = load(source, tmp_path / "t.h5")
    assert tokens.tolist() == [[[1, 2, 3, 4, 5]]] and labels.tolist() == [-1]
