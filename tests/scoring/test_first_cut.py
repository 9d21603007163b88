"""A first cut over all classes: its fit, its file format, and plans that begin with it."""

import json
import math

import numpy as np
import pytest
import torch

from avarc_cli.added_classes import AddedClassesModel
from avarc_cli.cli import main
from avarc_cli.data.datasets import open_images
from avarc_cli.data.preprocess import Preprocess
from avarc_cli.errors import UsageError
from avarc_cli.loading import ModelSpec, load_model, load_tokenizer
from avarc_cli.scoring import drawn
from avarc_cli.scoring.first_cut import DIRECTIONS, FirstCut, discriminants
from avarc_cli.scoring.plan import Plan, Stage, parse_plan
from avarc_cli.tokens import encode
from avarc_cli.zoo.local_files import ASSETS


def images(classes, count, seed):
    """Images with 100 numbers each, that differ by class in the first ten only, where all images differ less."""
    mean = np.random.default_rng(0).normal(0, 1, (classes, 1, 100)) * (np.arange(100) < 10)
    spread = np.where(np.arange(100) < 10, 0.3, 10.0)
    return mean + np.random.default_rng(seed).normal(0, 1, (classes, count, 100)) * spread


def test_the_closest_mean_is_that_of_the_images_class():
    cut = discriminants(images(30, 8, 1))
    assert cut.direction_DR.shape == (100, 30) and cut.mean_NR.shape == (30, 30), "no more directions than classes"
    new = images(30, 4, 2).reshape(120, 100)
    scores = cut.scores(new)
    assert (scores.argmax(1) == np.repeat(np.arange(30), 4)).mean() > 0.95
    assert np.array_equal(scores[7:8], cut.scores(new[7:8])), "a score does not depend on the other images"
    assert discriminants(images(100, 2, 1)).direction_DR.shape == (100, DIRECTIONS)


def test_what_is_stored_is_read_again_to_the_bit():
    cut = discriminants(images(12, 3, 1))
    again = FirstCut.from_dict(json.loads(json.dumps(cut.to_dict())))
    assert np.array_equal(again.direction_DR, cut.direction_DR) and np.array_equal(again.mean_NR, cut.mean_NR)
    broken = cut.to_dict() | {"mean_NR": {"shape": [12, 13], "float16": "AAAAAA=="}}
    with pytest.raises(ValueError, match="reshape"):
        FirstCut.from_dict(broken)


def test_only_a_tuned_plan_begins_with_a_first_cut():
    numbers = {"segments": 5, "candidates": 10, "samples": 1}
    with pytest.raises(UsageError, match="there is no first cut"):
        parse_plan("0~:3,5:1", **numbers)
    with pytest.raises(UsageError, match="there is no first cut"):
        parse_plan("1:5,0~:3,5:1", can_cut=True, **numbers)
    with pytest.raises(UsageError, match="there is no segment 0"):
        parse_plan("0:3,5:1", can_cut=True, **numbers)
    with pytest.raises(UsageError, match="there is no first cut"):
        parse_plan("3+0.2:5,5:1", can_cut=True, **numbers)
    with pytest.raises(UsageError, match="ends with an estimate"):
        parse_plan("0~:<2.5,5+0.2:1", can_cut=True, **numbers)
    text = "0~:<2.5,3+0.2:<7.5,5:1"
    plan = parse_plan(text, can_cut=True, **numbers)
    assert str(plan) == text and plan.first_cut == plan.stages[0] and plan.stages[1].cut_weight == 0.2
    assert plan.new_tokens((1, 5, 14, 39, 103)) == [0, 14, 89]
    assert Plan((Stage(5, 1),)).first_cut is None


def test_two_candidates_are_left_at_least():
    cut = Stage(0, 4, margin=1.0, estimated=True)
    alive, scores = np.ones((2, 4), dtype=bool), np.array([[-9.0, 0.0, -5.0, -0.5], [-9.0, 0.0, -5.0, -7.0]])
    assert cut.survivors(alive, scores).tolist() == [[False, True, False, True], [False, True, True, False]]


def test_few_classes_and_models_without_a_summary_have_no_first_cut(monkeypatch):
    var, llamagen = (load_model(ModelSpec(name, device="cpu")).likelihood for name in ("digits", "digits-llamagen"))
    few, device = np.arange(10), torch.device("cpu")
    assert drawn.fit_first_cut(var, few, seed=0, device=device) is None
    monkeypatch.setattr(drawn, "LEAST_CLASSES", 10)
    assert drawn.fit_first_cut(llamagen, few, seed=0, device=device) is None


def test_added_classes_share_the_summary_of_the_base():
    base = load_model(ModelSpec("digits-0-4", device="cpu")).likelihood
    tokens = np.random.default_rng(0).integers(128, size=(3, base.segment_ends[-1]))
    summary = drawn.summaries(base, tokens)
    assert summary.shape == (3, 8 * 8 * 8) and np.array_equal(summary[1:2], drawn.summaries(base, tokens[1:2]))
    assert np.array_equal(drawn.summaries(AddedClassesModel(base, []), tokens), summary)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Every fourth of the test digits, encoded."""
    tokenizer = load_tokenizer("digits")
    files = sorted((ASSETS / "digits" / "test").rglob("*.png"))[::4]
    pixels = Preprocess(tokenizer.preprocess, tokenizer.image_size)
    return encode(open_images(files), tokenizer, pixels, tmp_path_factory.mktemp("cut") / "t.h5").path


def test_a_plan_with_a_first_cut_agrees_as_it_says(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(drawn, "LEAST_CLASSES", 10)
    monkeypatch.setattr(drawn, "LEAST_DRAWN", 320)
    plan, everything = tmp_path / "plan.json", tmp_path / "all"
    assert main(["tune", str(digits), "--agreement", "0.95", "--out", str(plan)]) == 0
    said = json.loads(plan.read_text())
    assert said["plan"].startswith("0~:<") and said["calibration"]["share_of_exhaustive"] < 0.2
    assert main(["--quiet", "classify", str(digits), "--out", str(everything)]) == 0
    exhaustive = lines(everything)
    for score in ("log-likelihood", "pmi"):
        run = tmp_path / score
        command = ["--quiet", "classify", str(digits), "--plan", str(plan), "--score", score, "--out", str(run)]
        assert main([*command, "--save-json"]) == 0
        same = [a["prediction"] == b["prediction"] for a, b in zip(exhaustive, lines(run), strict=True)]
        assert np.mean(same) == said["calibration"]["agreement"] >= 0.95
        first = json.loads((run / "json" / "0.json").read_text())["stages"][0]
        assert first["estimated"] and len(first["candidates"]) == 10 and 2 <= len(first["survivors"]) < 10
        for line in lines(run)[:20]:
            last = json.loads((run / "json" / f"{line['index']}.json").read_text())["stages"][-1]
            log_p = last["log_likelihood"][last["candidates"].index(line["prediction"])]
            tokens = line["best"][0]["tokens"]
            assert line["bits_per_token"] == pytest.approx(-log_p / tokens / math.log(2)), "without points of the cut"
        assert main(["--quiet", "report", str(run), "--out", str(run / "r.html")]) == 0
    metrics = json.loads((tmp_path / "log-likelihood" / "metrics.json").read_text())
    assert metrics["tokens_scored_per_image"] == said["calibration"]["tokens_per_image"]


def lines(run):
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
