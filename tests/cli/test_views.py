"""Ten crops and mirror images through the commands, on the included digits."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from avarc_cli.cli import main
from avarc_cli.tokens import read
from avarc_cli.zoo.local_files import ASSETS

CLASSES = [1, 4, 7]  # candidates: the fewer, the faster


def avarc(*words: object) -> int:
    few = ["--classes", ",".join(map(str, CLASSES))] if words[0] in {"classify", "explain", "tune"} else []
    return main(["--quiet", *(str(word) for word in words), *few])


def lines(run):
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def log_likelihoods(run, stage=0):
    """(N, K) of one stage, from the files of --save-json."""
    files = sorted((run / "json").iterdir(), key=lambda file: int(file.stem))
    return np.array([json.loads(file.read_text())["stages"][stage]["log_likelihood"] for file in files])


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Two images of each of two digits."""
    folder = tmp_path_factory.mktemp("digits") / "img"
    for digit in "17":
        (folder / digit).mkdir(parents=True)
        for file in sorted((ASSETS / "digits/test" / digit).iterdir())[:2]:
            shutil.copy(file, folder / digit)
    return folder


@pytest.fixture(scope="module")
def ten(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("ten") / "t.h5"
    assert avarc("encode", digits, "--ten-crop", "--crop-range", "1.25", "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def single(ten, tmp_path_factory):
    """log p of each view of each image under each class, (N, 10, K): its views as caches of their own."""
    from torch import from_numpy

    from avarc_cli.loading import load_model
    from avarc_cli.scoring.exhaustive import token_log_probs

    tokens = read(ten).tokens(range(4)).reshape(40, -1)
    model = load_model("digits").likelihood
    return token_log_probs(model, from_numpy(tokens), CLASSES, 10**5).sum(-1, dtype=np.float64).reshape(4, 10, 3)


def test_scores_are_averages_over_the_crops(ten, single, tmp_path):
    for plan, views in (("exhaustive", 1), ("exhaustive:10", 10), ("exhaustive:5", 5)):
        assert avarc("classify", ten, "--plan", plan, "--save-json", "--out", tmp_path / plan) == 0
        assert np.allclose(log_likelihoods(tmp_path / plan), single[:, :views].mean(1), atol=1e-3)


def test_a_staged_plan_gives_survivors_the_same_averages(ten, single, tmp_path):
    assert avarc("classify", ten, "--plan", "3:2,5:2:5,5:1:10", "--save-json", "--out", tmp_path / "run") == 0
    for image in range(4):
        stages = json.loads((tmp_path / f"run/json/{image}.json").read_text())["stages"]
        assert [len(stage["candidates"]) for stage in stages] == [3, 2, 2]
        for stage, views in ((stages[1], 5), (stages[2], 10)):
            columns = [CLASSES.index(candidate) for candidate in stage["candidates"]]
            assert np.allclose(stage["log_likelihood"], single[image, :views].mean(0)[columns], atol=1e-3)


def test_images_are_averaged_over_all_views_unless_the_plan_says_otherwise(digits, ten, tmp_path):
    crops = ["--ten-crop", "--crop-range", "1.25"]
    assert avarc("classify", digits, *crops, "--out", tmp_path / "direct") == 0
    assert avarc("classify", ten, "--plan", "exhaustive:10", "--out", tmp_path / "cached") == 0
    assert [r["score"] for r in lines(tmp_path / "direct")] == [r["score"] for r in lines(tmp_path / "cached")]
    asked = json.loads((tmp_path / "direct/run.json").read_text())
    assert (asked["plan"], asked["tokens"]["samples"], asked["tokens"]["views"]) == ("5:1:10", 10, "ten-crop")
    assert asked["tokens"]["preprocess"].endswith("ten-crop 16, range 1.25")
    assert avarc("classify", digits, *crops, "--plan", "3:2,5:1:5", "--out", tmp_path / "staged") == 0
    assert read(tmp_path / "staged/tokens.h5").header.samples == 10
    assert avarc("classify", digits, "--flip", "--out", tmp_path / "flip") == 0
    asked = json.loads((tmp_path / "flip/run.json").read_text())
    assert (asked["plan"], asked["tokens"]["views"]) == ("5:1:2", "flip")


def test_caches_without_views_and_their_runs_record_none(digits, tmp_path):
    assert avarc("classify", digits, "--plan", "exhaustive:2", "--out", tmp_path / "run") == 0
    assert "views" not in json.loads((tmp_path / "run/run.json").read_text())["tokens"]
    assert "views" not in read(tmp_path / "run/tokens.h5").header.to_dict()


def test_a_run_of_other_views_is_not_continued(digits, tmp_path, capsys):
    words = ["classify", digits, "--plan", "exhaustive:2", "--out", tmp_path / "run"]
    assert avarc(*words) == 0
    assert avarc(*words, "--flip") == 1
    assert "views: smoothing there, flip here" in capsys.readouterr().err
    assert avarc(*words, "--flip", "--overwrite") == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--plan", "exhaustive", "--ten-crop"], "name a plan like exhaustive:10"),
        (["--plan", "exhaustive:3", "--flip"], "average at most 2"),
    ],
)
def test_plans_that_do_not_fit_the_views_are_refused_before_anything_is_written(
    digits, tmp_path, capsys, options, says
):
    for command in ("classify", "explain"):
        out = tmp_path / ("run" if command == "classify" else "x.png")
        assert avarc(command, digits, *options, "--out", out) == 2
        assert says in capsys.readouterr().err and not out.exists()


def test_a_cache_of_crops_does_not_ask_for_smoothing_samples(ten, capsys):
    assert avarc("classify", ten, "--plan", "exhaustive:11") == 2
    message = capsys.readouterr().err
    assert "there are 10 views of each image" in message and "--samples" not in message


def test_commands_say_what_a_cache_of_crops_holds(ten, tmp_path, capsys):
    assert main(["--json", "cache", "info", str(ten)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["samples"], facts["views"], facts["sigma"]) == (10, "ten-crop", 0)
    assert avarc("cache", "head", ten, "--rows", "2", "--picture", tmp_path / "p.png") == 0
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 3 * picture.height  # ten pictures in a row, two rows


def test_maps_and_inputs_are_of_the_center(digits, ten, tmp_path):
    crops = ["--ten-crop", "--crop-range", "1.25"]
    assert avarc("explain", digits, *crops, "--npz", tmp_path / "a.npz", "--out", tmp_path / "a.html") == 0
    words = ["--plan", "exhaustive:10", "--npz", tmp_path / "b.npz", "--out", tmp_path / "b.html"]
    assert avarc("explain", ten, *words) == 0
    with np.load(tmp_path / "a.npz") as direct, np.load(tmp_path / "b.npz") as cached:
        assert set(direct) == set(cached)
        assert all(np.array_equal(direct[name], cached[name]) for name in direct)
    pages = [(tmp_path / name).read_text().split("<main>")[1] for name in ("a.html", "b.html")]
    assert pages[0] == pages[1] and "decoded" not in pages[0]  # the cache finds the files, and crops them alike


def test_a_report_explains_runs_over_crops(ten, tmp_path):
    for option in ("--save-json", "--save-likelihood"):
        run = tmp_path / option[2:]
        assert avarc("classify", ten, "--plan", "exhaustive:10", option, "--out", run) == 0
        assert avarc("report", run, "--hardest", "2", "--tokens", ten) == 0
        page = (run / "report.html").read_text()
        assert page.count('<article class="card"') == 2 and "map of" in page


def test_a_plan_is_tuned_on_crops_and_only_used_for_such(digits, ten, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    assert avarc("tune", ten, "--samples", "10", "--agreement", "0.5", "--out", plan) == 0
    assert avarc("classify", ten, "--plan", plan) == 0
    assert avarc("classify", digits, "--ten-crop", "--crop-range", "1.25", "--plan", plan) == 0
    assert avarc("classify", digits, "--ten-crop", "--plan", plan) == 2
    assert "range 1.25 there" in capsys.readouterr().err
    assert avarc("classify", digits, "--plan", plan, "--sigma", "0") == 2


def test_the_crops_of_a_cache_are_variants_to_learn_a_class_from(digits, tmp_path):
    assert avarc("encode", digits / "7", "--ten-crop", "--out", tmp_path / "t.h5") == 0
    learn = ["--method", "embedding", "--steps", "2", "--no-offset", "--bank", tmp_path / "bank"]
    assert avarc("add-class", "barred seven", tmp_path / "t.h5", *learn) == 0
    assert avarc("classify", tmp_path / "t.h5", "--plan", "exhaustive:10", "--bank", tmp_path / "bank") == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--flip", "--ten-crop"], "exclude each other"),
        (["--flip", "--samples", "3"], "--flip and --samples exclude each other"),
        (["--ten-crop", "--samples", "10"], "--ten-crop and --samples exclude each other"),
        (["--crop-range", "1.05"], "no use for --crop-range"),
        (["--ten-crop", "--crop-range", "3"], "name a number from 1 to 2"),
        (["--ten-crop", "--preprocess", "none"], "--ten-crop does not go with --preprocess none"),
    ],
)
def test_a_wrong_request_is_one_message(digits, tmp_path, capsys, options, says):
    assert avarc("encode", digits, *options, "--out", tmp_path / "t.h5") == 2
    message = capsys.readouterr().err
    assert says in message and message.count("error:") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--flip"], ["--ten-crop"], ["--ten-crop", "--crop-range", "1.05"]])
def test_a_cache_is_not_cropped(ten, tmp_path, capsys, options):
    for command in ("classify", "explain"):
        assert avarc(command, ten, *options, "--out", tmp_path / "x.png") == 2
        assert "is encoded already" in capsys.readouterr().err
