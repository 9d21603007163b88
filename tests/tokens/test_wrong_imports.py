"""Tokens of other programs that are wrong: one error names the file and what is wrong with it, and nothing is left."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interchange_files import imported, tokens_of, write, write_json_lines, write_llamagen, write_randar
from stub_tokenizer import StubTokenizer

from avarc_cli.errors import AvarcError, CacheError, UsageError
from avarc_cli.tokens.interchange.exporting import FORMATS
from avarc_cli.tokens.interchange.importing import import_codes

L, V = StubTokenizer.layout.num_tokens, StubTokenizer.vocab_size


# Each of these spoils a source of 6 images, and returns what the message must say.


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
            tokens = imported(source, Path(name) / "t.h5")[1]
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
