"""Exports of runs that saved no likelihoods: scored again as they were, and equal to those that were saved."""

import json
import shutil

import h5py
import numpy as np
import pytest

from avarc_cli.cli import main

DIGITS = "avarc_cli/assets/digits/test"


@pytest.fixture(scope="module")
def caches(tmp_path_factory, request):
    """A token cache of ten digits, two samples each, and one of a model of hidden tokens."""
    folder = tmp_path_factory.mktemp("caches")
    images = str(request.config.rootpath / DIGITS)
    assert main(["encode", images, "--per-class", "1", "--samples", "2", "--out", str(folder / "digits.h5")]) == 0
    words = ["--model", "digits-titok", "--per-class", "1", "--out", str(folder / "digits-titok.h5")]
    assert main(["encode", images, *words]) == 0
    (folder / "priors.txt").write_text("\n".join(f"{c}\t{c + 1}" for c in range(10)))
    return folder


def classify(caches, out, *options, model="digits"):
    words = [str(caches / f"{model}.h5"), "--model", model, *options, "--out", str(out)]
    assert main(["classify", *words]) == 0


def export(run, out, *options):
    return main(["export", str(run), "--out", str(out), *map(str, options)])


def assert_equal(ours, theirs):
    with np.load(ours) as one, np.load(theirs) as other:
        assert one.files == other.files
        assert all(np.array_equal(one[name], other[name]) for name in one.files if name != "protocol")
        kept, saved = (json.loads(str(file["protocol"])) for file in (one, other))
        assert kept == saved | {"save_likelihood": False, "options": kept["options"]}


@pytest.mark.parametrize("saving", [["--save-likelihood"], ["--save-likelihood", "--save-json"], ["--save-json"]])
def test_sums_are_means_over_samples_whatever_was_saved(caches, tmp_path, saving):
    classify(caches, tmp_path / "run", "--limit", "3", "--plan", "exhaustive:2", *saving)
    assert export(tmp_path / "run", tmp_path / "run.npz") == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    with np.load(tmp_path / "run.npz") as exported:
        best = exported["log_likelihood"].max(1)
    assert best == pytest.approx([record["score"] for record in records], rel=1e-9)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("digits", ["--sample", "4", "--seed", "7", "--classes", "1,3,5,8"]),
        ("digits", ["--limit", "3", "--score", "pmi", "--batch-size", "7", "--deterministic"]),
        ("digits-titok", ["--limit", "2", "--orders", "2", "--order-seed", "5", "--combine", "posterior"]),
        ("digits-titok", ["--limit", "2", "--bound", "3", "--unsmooth", "0.05"]),
    ],
)
def test_tokens_are_those_of_the_same_run_that_saved_them(caches, tmp_path, model, options):
    for name, saving in (("bare", []), ("saved", ["--save-likelihood"])):
        classify(caches, tmp_path / name, *options, *saving, model=model)
        assert export(tmp_path / name, tmp_path / f"{name}.npz", "--per-token") == 0
    assert_equal(tmp_path / "bare.npz", tmp_path / "saved.npz")
    assert not (tmp_path / "bare.npz.run").exists() and not (tmp_path / "bare" / "likelihood").exists()


def test_orders_from_a_file_are_found_again_by_export_and_explain(caches, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    length, rng = 16, np.random.default_rng(0)
    np.save("orders.npy", np.stack([rng.permutation(length) for _ in range(2)]))
    for name, saving in (("bare", []), ("saved", ["--save-likelihood"])):
        classify(caches, name, "--limit", "2", "--orders", "orders.npy", *saving, model="digits-titok")
        assert export(name, f"{name}.npz", "--per-token") == 0
    assert_equal("bare.npz", "saved.npz")
    assert main(["explain", "bare", "--rows", "1", "--out", "e.png"]) == 0
    np.save("others.npy", np.stack([rng.permutation(length) for _ in range(2)]))
    shutil.move("orders.npy", "moved.npy")
    capsys.readouterr()
    for command in (["export", "bare", "--out", "x.npz"], ["explain", "bare", "--out", "f.png"]):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "the file of orders of 'bare' is not where it was" in message and str(tmp_path / "orders.npy") in message
    shutil.move("others.npy", "orders.npy")
    assert export("bare", "x.npz") == 2
    assert "holds other orders than the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--plan", "2:4,5:2,5:1:2", "--priors", "priors.txt"], ["--plan", "auto"], ["--plan", "3:<2.5,5:1"]],
    ids=["priors", "tuned", "margins"],
)
def test_a_plan_leaves_the_same_candidates_again(caches, tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(caches)
    for name, saving in (("bare", []), ("saved", ["--save-likelihood"])):
        classify(caches, tmp_path / name, "--limit", "5", *options, *saving)
        assert export(tmp_path / name, tmp_path / f"{name}.out") == 2, "there is no such format"
        assert export(tmp_path / name, tmp_path / f"{name}-files") == 0
    for index in range(5):
        assert_equal(tmp_path / "bare-files" / f"{index}.npz", tmp_path / "saved-files" / f"{index}.npz")
    capsys.readouterr()
    assert export(tmp_path / "bare", tmp_path / "x.npz") == 2
    assert "export to a folder" in capsys.readouterr().err and not list(tmp_path.glob("x.npz*"))


def test_sums_of_chosen_classes_are_the_same_by_any_number_of_processes(caches, tmp_path):
    classify(caches, tmp_path / "bare", "--batch-size", "10")
    classify(caches, tmp_path / "saved", "--batch-size", "10", "--save-json")
    for name, run, options in (("one", "bare", []), ("two", "bare", ["--devices", "cpu:2"]), ("saved", "saved", [])):
        assert export(tmp_path / run, tmp_path / f"{name}.h5", "--classes", "2,7", *options) == 0
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    with h5py.File(tmp_path / "one.h5") as ours, h5py.File(tmp_path / "saved.h5") as theirs:
        assert np.array_equal(ours["log_likelihood"], theirs["log_likelihood"]) and len(ours["class_ids"]) == 2


def test_what_cannot_be_scored_again_is_said_and_nothing_is_written(caches, tmp_path, capsys):
    cache, run = shutil.copy(caches / "digits.h5", tmp_path / "t.h5"), tmp_path / "run"
    out = tmp_path / "x.npz"
    assert main(["classify", str(cache), "--limit", "2", "--plan", "2:3,4:1", "--out", str(run)]) == 0
    assert main(["classify", str(cache), "--limit", "2", "--out", str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    assert export(run, tmp_path / "files") == 2
    assert "scores a part of the tokens only" in capsys.readouterr().err
    for options, message in [
        (["--limit", "2"], "no use for --limit"),
        (["--classes", "12"], "not classes of"),
        (["--tokens", caches / "digits-titok.h5"], "the tokens of another tokenizer"),
        (["--model", "digits-titok"], "is not the model of the run"),
    ]:
        assert export(tmp_path / "whole", out, *options) in (1, 2)
        assert message in capsys.readouterr().err, message
    (tmp_path / "t.h5").rename(tmp_path / "moved.h5")
    assert export(tmp_path / "whole", out) == 2
    message = capsys.readouterr().err
    assert "the token cache of" in message and str(tmp_path / "t.h5") in message and "--tokens FILE" in message
    assert {path.name for path in tmp_path.iterdir()} == {"moved.h5", "run", "whole"}
    assert export(tmp_path / "whole", out, "--tokens", tmp_path / "moved.h5") == 0


def test_an_interrupted_export_of_a_run_is_continued(caches, tmp_path, monkeypatch, capsys):
    from avarc_cli.models.var.likelihood import VARLikelihood

    run, extend, calls = tmp_path / "run", VARLikelihood.extend, []
    classify(caches, run, "--batch-size", "10")
    assert export(run, tmp_path / "whole.npz") == 0

    def stop_half_way(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return extend(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(VARLikelihood, "extend", stop_half_way)
        assert export(run, tmp_path / "x.npz") == 130
    assert "images are kept" in capsys.readouterr().err and not (tmp_path / "x.npz").exists()
    assert export(run, tmp_path / "x.npz") == 0
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_forecast_of_a_run_scores_nothing(caches, tmp_path, capsys):
    classify(caches, tmp_path / "run", "--limit", "2")
    capsys.readouterr()
    assert export(tmp_path / "run", tmp_path / "x.npz", "--dry-run", "--json") == 0
    forecast = json.loads(capsys.readouterr().out)
    assert forecast["scoring"]["pairs"] == 20 and forecast["scoring"]["tokens"] == 2 * 10 * 103
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
