"""recorded.py, which decides whether a refactoring changed a number, sees the smallest change and excuses no more."""

import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

_spec = importlib.util.spec_from_file_location("recorded", Path(__file__).with_name("recorded.py"))
recorded = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recorded)

VALUES = np.linspace(-3, 5, 12, dtype=np.float32).reshape(3, 4)
NEXT = VALUES.copy()
NEXT[1, 2] = np.nextafter(NEXT[1, 2], np.float32(9))


@pytest.fixture
def recordings(tmp_path):
    """Two empty recordings of the same machine."""
    for name in ("a", "b"):
        (tmp_path / name / "files" / "item").mkdir(parents=True)
        about = {"checkout": f"/src/{name}", "commit": name, "machine": {"cpu": "X"}, "commands": ["item"]}
        (tmp_path / name / "about.json").write_text(json.dumps(about))
    return tmp_path / "a", tmp_path / "b"


def compare(recordings, expected=()):
    return recorded.compare(*recordings, list(expected))


def put(recordings, name, *texts):
    for folder, text in zip(recordings, texts, strict=True):
        (folder / "files" / "item" / name).write_text(text if isinstance(text, str) else json.dumps(text))


def write_hdf5(path, array):
    with h5py.File(path, "w") as file:
        file["tokens"] = array


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".npz", lambda path, array: np.savez(path, log_likelihood=array)),
        (".h5", write_hdf5),
        (".safetensors", lambda path, array: save_file({"weight": array}, path)),
        (".json", lambda path, array: path.write_text(json.dumps({"stages": [array.tolist()]}))),
        (".jsonl", lambda path, array: path.write_text(json.dumps({"score": float(array[1, 2])}))),
    ],
)
def test_a_change_in_the_last_bit_is_found_in_every_format(recordings, suffix, write, capsys):
    a, b = (folder / "files" / "item" / f"x{suffix}" for folder in recordings)
    write(a, VALUES)
    write(b, VALUES)
    assert compare(recordings) == 0
    write(b, NEXT)
    assert compare(recordings) >= 1
    assert f"became {NEXT[1, 2]}"[:14] in capsys.readouterr().out


def test_equal_numbers_of_other_types_signs_or_shapes_differ():
    zero = np.zeros(1, np.float32)
    assert recorded.difference(zero, zero.copy()) is None
    for other in (-zero, zero.astype(np.float64), zero.reshape(1, 1)):
        assert recorded.difference(zero, other)
    assert recorded.difference(zero[:0], zero[1:]) is None and recorded.difference(zero[0], zero[0]) is None
    assert recorded.difference(1, 1.0) and recorded.difference(1, True)
    nan = np.array([np.nan])
    assert recorded.difference(nan, nan.copy()) is None and recorded.difference(nan, np.array([0.0]))


def test_times_versions_and_folders_are_no_differences(recordings):
    a = {"stages": [{"seconds": 1.0, "score": [0.5]}], "versions": {"torch": "1"}, "path": "/src/a/x"}
    b = {"stages": [{"seconds": 2.0, "score": [0.5]}], "versions": {"torch": "2"}, "path": "/src/b/x"}
    put(recordings, "run.json", a, b)
    assert compare(recordings) == 0


@pytest.mark.parametrize(
    "new", [{"grids": [[1, 1], [2, 2], [3, 3]]}, [[1, 1], [2, 2], [3, 3]], [1, 2, 3], "1x1,2x2,3x3"]
)
def test_cache_formats_1_and_2_are_the_same_layout(recordings, new):
    put(recordings, "x.json", {"format": 1, "patch_nums": [1, 2, 3]}, {"format": 2, "layout": new, "inferred": []})
    assert compare(recordings) == 0
    put(recordings, "x.json", {"format": 1, "patch_nums": [1, 2, 4]}, {"format": 2, "layout": new})
    assert compare(recordings) == 1
    put(recordings, "x.json", {"format": 1}, {"format": 2})
    assert compare(recordings) == 1, "only beside a layout"


def test_json_inside_of_text_is_compared_as_json(recordings):
    put(recordings, "x.json", {"protocol": '{"a": 1, "b": 2}'}, {"protocol": '{"b": 2,  "a": 1}'})
    assert compare(recordings) == 0


def test_words_of_a_page_are_reported_and_its_numbers_must_be_the_same(recordings, capsys):
    put(recordings, "x.html", "<b>7.1</b><span>images a second</span><p>sum +4.8 nats</p>", "<p>total +4.8 nats</p>")
    assert compare(recordings) == 0
    assert "[wording]" in capsys.readouterr().out
    put(recordings, "x.html", "<p>sum +4.8 nats</p>", "<p>sum +4.9 nats</p>")
    assert compare(recordings) == 1


def test_missing_files_and_values_are_differences_unless_expected(recordings, capsys):
    put(recordings, "x.json", {"a": 1}, {"a": 1, "new": 2})
    (recordings[0] / "files" / "item" / "y.json").write_text("1")
    assert compare(recordings) == 2
    assert "only in B" in capsys.readouterr().out
    assert compare(recordings, ["item/x.json new", "*/y.json *"]) == 0


def test_a_command_that_fails_on_both_sides_is_not_taken_for_a_success(recordings, capsys):
    put(recordings, "exit.json", 2, 2)
    assert compare(recordings) == 0
    assert "FAILED" in capsys.readouterr().out
