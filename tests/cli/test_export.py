"""Exported likelihoods: the same numbers in every format, readable without avarc."""

import json
import shutil
import zipfile
from functools import partial

import h5py
import numpy as np
import pytest
from killing import DieAt, in_child

from avarc_cli.cli import main
from avarc_cli.results.folder import RunFolder

DIGITS = "avarc_cli/assets/digits/test"
IMAGES, CLASSES, TOKENS = 6, 10, 103


@pytest.fixture(scope="module")
def run(tmp_path_factory, request):
    """A token cache and a finished run with everything saved."""
    folder = tmp_path_factory.mktemp("run")
    images = str(request.config.rootpath / DIGITS)
    assert main(["encode", images, "--limit", str(IMAGES), "--out", str(folder / "t.h5")]) == 0
    saved = ["--save-json", "--save-likelihood", "--out", str(folder / "run")]
    assert main(["classify", str(folder / "t.h5"), *saved]) == 0
    return folder


def test_the_example_in_the_docs_gives_the_accuracy(run, tmp_path):
    assert main(["export", str(run / "run"), "--out", str(tmp_path / "all.npz")]) == 0
    file = np.load(tmp_path / "all.npz")
    predicted = file["counts_as"][file["log_likelihood"].argmax(axis=1)]
    metrics = json.loads((run / "run" / "metrics.json").read_text())
    assert np.mean(predicted == file["gt_label"]) == metrics["accuracy"]
    assert predicted.tolist() == file["prediction"].tolist()
    assert file["log_likelihood"].shape == (IMAGES, CLASSES) and file["log_likelihood"].dtype == np.float64
    assert file["class_names"].tolist() == [str(i) for i in range(10)] and len(file["path"]) == IMAGES


def test_all_formats_hold_the_same_tokens(run, tmp_path):
    for name in ("all.npz", "all.h5", "folder"):
        assert main(["export", str(run / "run"), "--per-token", "--out", str(tmp_path / name)]) == 0
    npz = np.load(tmp_path / "all.npz")["log_likelihood"]
    assert npz.shape == (IMAGES, CLASSES, TOKENS) and npz.dtype == np.float32
    with h5py.File(tmp_path / "all.h5") as file:
        assert np.array_equal(file["log_likelihood"], npz)
        assert file["class_ids"].asstr()[3] == "3"
    for i in range(IMAGES):
        one, saved = np.load(tmp_path / "folder" / f"{i}.npz"), np.load(run / "run" / "likelihood" / f"{i}.npz")
        assert np.array_equal(one["log_likelihood"], npz[i])
        assert all(np.array_equal(one[key], saved[key]) for key in saved if key != "gt_labels")


def test_parquet_holds_lists_with_their_candidates(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs avarc[data]")
    for name in ("some.npz", "some.parquet"):
        assert main(["export", str(run / "run"), "--classes", "7,2", "--out", str(tmp_path / name)]) == 0
    table, npz = parquet.read_table(tmp_path / "some.parquet"), np.load(tmp_path / "some.npz")
    assert json.loads(table.schema.metadata[b"candidates"]) == npz["candidates"].tolist() == [2, 7]
    assert np.array_equal(table["log_likelihood"].to_pylist(), npz["log_likelihood"])
    assert table["gt_label"].to_pylist() == npz["gt_label"].tolist()


def test_a_cache_is_scored_for_the_requested_classes(run, tmp_path):
    assert main(["export", str(run / "t.h5"), "--classes", "2,7", "--out", str(tmp_path / "cache.npz")]) == 0
    assert main(["export", str(run / "run"), "--classes", "2,7", "--out", str(tmp_path / "run.npz")]) == 0
    ours, theirs = np.load(tmp_path / "cache.npz"), np.load(tmp_path / "run.npz")
    assert ours["log_likelihood"] == pytest.approx(theirs["log_likelihood"], abs=1e-3)
    assert [p.name for p in tmp_path.iterdir() if "cache" in p.name] == ["cache.npz"], "its working folder is gone"


def test_processes_on_devices_export_the_same(run, tmp_path, capsys):
    command = ["export", str(run / "t.h5"), "--limit", "3", "--batch-size", "1", "--per-token", "--out"]
    assert main([*command, str(tmp_path / "one.npz")]) == 0
    assert main([*command, str(tmp_path / "two.npz"), "--devices", "cpu:2"]) == 0
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    capsys.readouterr()
    assert main([*command, str(tmp_path / "three.npz"), "--engine", "grid"]) == 2
    assert "no engine 'grid'" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"one.npz", "two.npz"}


def test_classes_can_be_given_names(run, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(f"digit {c}" for c in range(10)))
    named = ["--class-names", str(tmp_path / "names.txt"), "--classes", "digit 3,digit 5"]
    assert main(["export", str(run / "t.h5"), *named, "--out", str(tmp_path / "x.npz")]) == 0
    assert np.load(tmp_path / "x.npz")["class_names"].tolist() == ["digit 3", "digit 5"]


def test_the_same_run_gives_the_same_bytes_whenever_it_is_exported(run, tmp_path):
    for name in ("a.npz", "a.h5", "a.parquet", "a"):
        outs = [tmp_path / "first" / name, tmp_path / "later" / name]
        for out in outs:
            out.parent.mkdir(exist_ok=True)
            assert main(["export", str(run / "run"), "--out", str(out)]) == 0
        first, later = ([out] if out.is_file() else sorted(out.iterdir()) for out in outs)
        assert [f.read_bytes() for f in first] == [f.read_bytes() for f in later], name
    # A zip file may hold the time of each member; seconds later, the bytes would differ.
    with zipfile.ZipFile(tmp_path / "first" / "a.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_run_of_another_version_names_the_missing_field(run, tmp_path, capsys):
    assert main(["classify", str(run / "t.h5"), "--save-json", "--out", str(tmp_path / "run")]) == 0
    protocol = json.loads((tmp_path / "run" / "run.json").read_text())
    del protocol["candidate_ids"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(protocol))
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "x.npz")]) == 1
    assert "has no candidate_ids" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name != "run"], "and nothing is left behind"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.csv"], "there is no format '.csv'"),
        (["--out", "x.npz", "--classes", "12"], "not classes of"),
        (["--out", "x.npz", "--classes", "0-9"], "not classes of"),
    ],
)
def test_wrong_requests_export_nothing(run, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run / "run"), *options]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_options_of_scoring_are_refused_for_a_run(run, tmp_path, capsys):
    options = ["--model", "digits", "--limit", "3", "--precision", "fp32", "--devices", "cpu:2"]
    assert main(["export", str(run / "run"), "--out", str(tmp_path / "x.npz"), *options]) == 2
    assert "no use for --limit, --devices, --model, --precision" in capsys.readouterr().err


def test_a_source_is_never_replaced_by_its_export(run, capsys):
    before = (run / "t.h5").read_bytes()
    assert main(["export", str(run / "t.h5"), "--out", str(run / "t.h5")]) == 2
    assert "exists" in capsys.readouterr().err and (run / "t.h5").read_bytes() == before


def test_one_file_of_a_run_whose_plan_drops_candidates_is_refused(run, tmp_path, capsys):
    cache = str(run / "t.h5")
    assert main(["classify", cache, "--plan", "3:3,5:1", "--save-json", "--out", str(tmp_path / "staged")]) == 0
    assert main(["export", str(tmp_path / "staged"), "--out", str(tmp_path / "x.npz")]) == 2
    assert "classify with --plan exhaustive" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "staged"), "--per-token", "--out", str(tmp_path / "x.npz")]) == 2
    assert "export to a folder" in capsys.readouterr().err


def test_a_damaged_file_of_a_run_is_named(run, tmp_path, capsys):
    assert main(["classify", str(run / "t.h5"), "--save-likelihood", "--out", str(tmp_path / "run")]) == 0
    victim = tmp_path / "run" / "likelihood" / "3.npz"
    victim.write_bytes(victim.read_bytes()[:200])
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "x.npz")]) == 1
    assert f"'{victim}' is corrupt" in capsys.readouterr().err and not (tmp_path / "x.npz").exists()


def test_a_run_whose_deletion_was_killed_at_any_step_is_complete_or_begins_anew(run, tmp_path):
    whole, step, died = contents(run / "run"), 0, True
    while died:
        folder = RunFolder(tmp_path / f"killed{step}")
        shutil.copytree(run / "run", folder.path)
        died = in_child(partial(remove, folder, step)) < 0
        assert not folder.finished or contents(folder.path) == whole, step
        folder.remove()
        assert not contents(folder.path), step
        step += 1
    assert step > len(whole), f"only {step} steps were seen"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def remove(folder, die_at):
    DieAt(die_at).watch_files()
    folder.remove()


def test_an_interrupted_run_must_be_finished_first(run, tmp_path, capsys):
    assert main(["classify", str(run / "t.h5"), "--save-json", "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "predictions.jsonl").rename(tmp_path / "run" / "predictions.jsonl.part")
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "x.npz")]) == 2
    assert "is not finished" in capsys.readouterr().err


def test_a_run_whose_plan_drops_candidates_is_exported_image_by_image(run, tmp_path, capsys):
    staged, whole = tmp_path / "staged", run / "run"
    words = ["classify", str(run / "t.h5"), "--plan", "2:4,5:1", "--save-likelihood", "--out", str(staged)]
    assert main(words) == 0
    assert main(["export", str(staged), "--out", str(tmp_path / "all.npz")]) == 2
    assert "export to a folder" in capsys.readouterr().err
    for options in ([], ["--per-token"], ["--classes", "0,1,2,3,4"]):
        out = tmp_path / f"folder{len(options)}{options[:1] == ['--classes']}"
        assert main(["export", str(staged), *options, "--out", str(out)]) == 0
        for i in range(IMAGES):
            some, full = np.load(out / f"{i}.npz"), np.load(whole / "likelihood" / f"{i}.npz")
            saved = np.load(staged / "likelihood" / f"{i}.npz")["candidates"].tolist()
            kept = some["candidates"].tolist()
            assert kept == [c for c in saved if c < 5 or "--classes" not in options]
            assert some["class_names"].tolist() == [str(c) for c in kept] and len(saved) == 4
            expected = full["log_likelihood"][kept]
            expected = expected if "--per-token" in options else expected.sum(1, dtype=np.float64)
            assert np.allclose(some["log_likelihood"], expected, atol=1e-4)
