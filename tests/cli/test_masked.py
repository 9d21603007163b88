"""A TiTok and a MaskGIT through the commands: what their scores are is said everywhere."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from avarc_cli.cli import main
from avarc_cli.zoo.local_files import ASSETS

DIGITS = ASSETS / "digits" / "test"
TITOK = ["--image-size", "16", "--patch", "8", "--tokens", "6", "--vocab", "16", "--channels", "4", "--width", "64"]
BRIEF = ["--augment", "affine", "--batch-size", "8", "--steps", "3"]


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A tokenizer and a generator, hardly trained, and a cache of six images."""
    folder = tmp_path_factory.mktemp("masked")
    titok, maskgit, cache = folder / "titok.safetensors", folder / "maskgit.safetensors", folder / "t.h5"
    assert avarc("-q", "train", "titok", DIGITS, *TITOK, "--depth", "1", *BRIEF, "--out", titok) == 0
    shape = ["--depth", "2", "--width", "32", "--heads", "2"]
    assert avarc("-q", "train", "maskgit", DIGITS, "--tokenizer", titok, *shape, *BRIEF, "--out", maskgit) == 0
    assert avarc("-q", "encode", DIGITS, "--tokenizer", titok, "--sample", "6", "--samples", "2", "--out", cache) == 0
    return SimpleNamespace(titok=titok, cache=cache, models=["--model", maskgit, "--tokenizer", titok])


def likelihoods(run):
    """(images, classes) and the kind that the files name."""
    files = sorted((run / "likelihood").iterdir(), key=lambda path: int(path.stem))
    arrays = [np.load(path) for path in files]
    return np.stack([a["log_likelihood"].sum(1) for a in arrays]), {str(a["likelihood"]) for a in arrays}


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ([], "exact for the model of 6 passes"),
        (["--steps", "2"], "exact for the model of 2 passes"),
        (["--steps", "1", "--orders", "3"], "lower bound of the mixture of 3 orders of 1 pass: their mean"),
        (["--orders", "2", "--combine", "log-mean-exp"], "exact for the mixture of 2 orders of 6 passes"),
        (["--bound", "5"], "estimate of the order-agnostic lower bound from 5 stratified draws, 1 pass each"),
    ],
)
def test_every_output_says_what_the_scores_are(setting, tmp_path, capsys, options, kind):
    run = tmp_path / "run"
    assert avarc("classify", setting.cache, *setting.models, *options, "--save-likelihood", "--out", run) == 0
    said = capsys.readouterr()
    assert f"log p(x | class) is {kind}" in " ".join(said.err.split())
    assert kind in " ".join(said.out.split())
    assert json.loads((run / "run.json").read_text())["likelihood"] == kind
    assert json.loads((run / "metrics.json").read_text())["likelihood"] == kind
    assert likelihoods(run)[1] == {kind}
    assert avarc("report", run, "--out", tmp_path / "report.html") == 0
    assert kind in (tmp_path / "report.html").read_text()


def test_smoothing_that_is_undone_is_recorded(setting, tmp_path):
    words = [setting.cache, *setting.models, "--save-likelihood", "--out"]
    assert avarc("-q", "classify", *words, tmp_path / "as-trained") == 0
    assert avarc("-q", "classify", *words, tmp_path / "undone", "--unsmooth", "0.1") == 0
    assert json.loads((tmp_path / "undone" / "run.json").read_text())["unsmooth"] == 0.1
    first, second = (likelihoods(tmp_path / name)[0] for name in ("as-trained", "undone"))
    assert 0 < np.abs(first - second).max() < 10


@pytest.mark.parametrize("plan", ["2:3,6:1", "1:5,3:2:2,6:1:2", "6:4@1,6:1@2"])
def test_plans_prune_between_passes(setting, tmp_path, plan):
    orders = ["--orders", "2"] if "@2" in plan else []
    run = tmp_path / "run"
    assert avarc("-q", "classify", setting.cache, *setting.models, "--plan", plan, *orders, "--out", run) == 0
    found = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert len(found) == 6 and all(record["tokens_scored"] < 60 * 4 for record in found)


def test_draws_of_the_bound_prune_too(setting, tmp_path):
    run = tmp_path / "run"
    words = [setting.cache, *setting.models, "--bound", "4", "--plan", "1:3@2,1:1@4"]
    assert avarc("-q", "classify", *words, "--out", run) == 0
    found = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert {record["tokens_scored"] for record in found} == {6 * (10 * 2 + 3 * 2)}


def test_a_plan_is_tuned_for_its_passes(setting, tmp_path, capsys):
    cache, plan = tmp_path / "t.h5", tmp_path / "plan.json"
    assert avarc("-q", "encode", DIGITS, "--tokenizer", setting.titok, "--sample", "30", "--out", cache) == 0
    words = [cache, *setting.models, "--agreement", "0.9", "--steps", "3", "--out", plan]
    assert avarc("-q", "tune", *words) == 0
    assert json.loads(plan.read_text())["made_for"]["steps"] == 3
    assert avarc("-q", "classify", cache, *setting.models, "--plan", plan, "--steps", "3") == 0
    assert avarc("classify", cache, *setting.models, "--plan", plan, "--steps", "2") == 2
    assert "steps: 3" in " ".join(capsys.readouterr().err.split())


def test_explanations_show_tokens_in_a_row_and_a_map_through_the_decoder(setting, tmp_path):
    npz = tmp_path / "e.npz"
    words = ["explain", setting.cache, *setting.models, "--limit", "2"]
    for out in ("e.png", "e.html"):
        assert avarc("-q", *words, "--out", tmp_path / out, "--npz", npz, "--overwrite") == 0
    page = (tmp_path / "e.html").read_text()
    assert "token by token" in page and "attributions through the decoder" in page
    with np.load(npz) as arrays:
        footprint, maps = arrays["footprint"], arrays["map_contrast"]
        ratio = arrays["log_prob_subject"].astype(np.float64).sum(1) - arrays["log_prob_rival"].sum(1, dtype=np.float64)
    assert footprint.shape == (2, 6, 2, 2) and maps.shape == (2, 2, 2)
    assert np.allclose(footprint.sum((2, 3)), 1, atol=1e-5)
    assert np.allclose(maps.sum((1, 2)), ratio, atol=1e-4)


@pytest.mark.parametrize("option", [["--scales", "1-2"], ["--weighting", "uniform"]])
def test_options_about_grids_are_refused(setting, tmp_path, capsys, option):
    words = ["explain", setting.cache, *setting.models, *option, "--out", tmp_path / "e.png"]
    assert avarc(*words) == 2
    assert f"{option[0]} is about tokens on grids" in capsys.readouterr().err


def test_classes_are_added_sampled_and_exported(setting, tmp_path):
    bank, out = tmp_path / "bank", tmp_path / "values.npz"
    words = ["-q", "add-class", "another three", DIGITS / "3", *setting.models, "--steps", "2", "--variants", "1"]
    assert avarc(*words, "--method", "lora", "--bank", bank) == 0
    assert avarc("-q", "export", setting.cache, *setting.models, "--bank", bank, "--out", out) == 0
    assert np.load(out)["log_likelihood"].shape == (6, 11)
    assert avarc("-q", "sample", "3", *setting.models, "--out", tmp_path / "s.png") == 0
    assert avarc(*words, "--method", "adaln", "--bank", tmp_path / "other") == 2


def test_a_run_elsewhere_scores_the_same(setting, tmp_path):
    words = ["-q", "classify", setting.cache, *setting.models, "--steps", "2", "--orders", "2", "--batch-size", "2"]
    assert avarc(*words, "--out", tmp_path / "here") == 0
    assert avarc(*words, "--out", tmp_path / "there", "--devices", "cpu") == 0
    first, second = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("here", "there"))
    assert first == second


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "7"], "6 tokens cannot be scored in 7 steps"),
        (["--steps", "0"], "an order is cut into one or more passes"),
        (["--bound", "0"], "it is a number of draws from 1 to 4096"),
        (["--bound", "4", "--steps", "2"], "--bound and --steps exclude each other"),
        (["--bound", "4", "--orders", "2"], "--bound and --orders exclude each other"),
        (["--bound", "4", "--combine", "log-mean-exp"], "--combine log-mean-exp does not go with --bound"),
        (["--unsmooth", "1"], "label smoothing is from 0 up to, not including, 1"),
    ],
)
def test_values_that_make_no_sense_are_refused(setting, capsys, options, says):
    assert avarc("classify", setting.cache, *setting.models, *options) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("option", ["--steps", "--bound", "--unsmooth"])
def test_other_models_have_no_passes(capsys, option):
    value = "0.1" if option == "--unsmooth" else "2"
    assert avarc("classify", DIGITS / "3", "--limit", "1", option, value) == 2
    assert f"{option} is for models of hidden tokens, and digits is none" in capsys.readouterr().err


def test_the_included_maskgit_knows_most_digits(tmp_path, capsys):
    assert avarc("-q", "encode", DIGITS, "--model", "digits-titok", "--out", tmp_path / "t.h5") == 0
    capsys.readouterr()
    assert avarc("--json", "classify", tmp_path / "t.h5", "--model", "digits-titok", "--plan", "auto") == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["images"] == 360 and metrics["accuracy"] >= 0.96
    assert metrics["tokens_scored_per_image"] < 100


@pytest.mark.parametrize("rank", [0, 2])
def test_cca_fine_tunes_a_model_of_hidden_tokens(setting, tmp_path, rank):
    out, before, after = (tmp_path / name for name in ("tuned", "before", "after"))
    words = [*setting.models, *BRIEF, "--lr", "1e-3", "--rank", rank]
    assert avarc("-q", "train", "cca", DIGITS, *words, "--out", out) == 0
    tokenizer = setting.models[2:]
    tuned = [*setting.models, "--lora", out] if rank else ["--model", out, *tokenizer]
    for models, run in ((setting.models, before), (tuned, after)):
        assert avarc("-q", "classify", setting.cache, *models, "--save-likelihood", "--out", run) == 0
    assert not np.array_equal(likelihoods(before)[0], likelihoods(after)[0])
