"""avarc tune and classify --plan FILE through the command line, on the tiny golden model."""

import itertools
import json
import shutil

import numpy as np
import pytest
from small_datasets import noise

from avarc_cli.cli import main
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.results.folder import RunFolder

IMAGES = 24


@pytest.fixture(scope="module")
def cache(models, tmp_path_factory):
    """Noise in folders named by class number, with two neighbours each."""
    folder = tmp_path_factory.mktemp("images")
    noise(folder / "img", IMAGES)
    command = ["encode", str(folder / "img"), *models, "--preprocess", "none", "--samples", "3"]
    assert main([*command, "--out", str(folder / "t.h5")]) == 0
    return folder / "t.h5"


@pytest.fixture(scope="module")
def plan(cache, models, tmp_path_factory):
    out = tmp_path_factory.mktemp("plan") / "plan.json"
    assert main(["--quiet", "tune", str(cache), *models, "--agreement", "0.9", "--out", str(out)]) == 0
    return out


def classify(cache, models, run, *options):
    return main(["--quiet", "classify", str(cache), *models, "--out", str(run), *map(str, options)])


def lines(run):
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_a_tuned_plan_agrees_as_guaranteed_at_the_reported_cost(cache, models, plan, tmp_path):
    assert classify(cache, models, tmp_path / "all") == 0
    assert classify(cache, models, tmp_path / "tuned", "--plan", plan, "--save-json") == 0
    said = json.loads(plan.read_text())
    pairs = list(zip(lines(tmp_path / "all"), lines(tmp_path / "tuned"), strict=True))
    same = [a["prediction"] == b["prediction"] for a, b in pairs]
    assert np.mean(same) == said["calibration"]["agreement"] >= 0.9
    metrics = json.loads((tmp_path / "tuned" / "metrics.json").read_text())
    assert metrics["tokens_scored_per_image"] == said["calibration"]["tokens_per_image"] <= 300
    assert metrics["temperature"] == said["temperature"] and metrics["temperature"] != 1
    after = said["calibration"]["after"]["expected_calibration_error"]
    assert metrics["expected_calibration_error"] == pytest.approx(after, abs=1e-9)
    asked = json.loads((tmp_path / "tuned" / "run.json").read_text())
    assert asked["plan"] == said["plan"]
    assert asked["tuned_plan"] == {name: value for name, value in said.items() if name != "sha256"}
    detail = json.loads((tmp_path / "tuned" / "json" / "0.json").read_text())
    assert len(detail["stages"][-1]["survivors"]) == 1
    assert not [p for p in plan.parent.iterdir() if p != plan], "nothing else stays behind"


def test_a_run_with_margins_resumes_with_the_same_bytes(cache, models, plan, tmp_path):
    options = ["--plan", plan, "--batch-size", "1"]
    assert classify(cache, models, tmp_path / "whole", *options) == 0
    cut = tmp_path / "cut"
    cut.mkdir()
    shutil.copy(tmp_path / "whole" / "run.json", cut)
    journal = (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    (cut / "predictions.jsonl.part").write_bytes(journal[: len(journal) // 2])
    assert classify(cache, models, cut, *options) == 0
    assert (cut / "predictions.jsonl").read_bytes() == journal


def test_smoothed_scores_get_margins_too_and_held_out_images_are_measured(cache, models, tmp_path, capsys):
    command = ["tune", str(cache), *models, "--samples", "3", "--agreement", "0.8", "--hold-out", "8"]
    assert main(["--json", *command, "--out", str(tmp_path / "plan.json")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["held_out"]["images"] == 8 and shown["calibration"]["images"] == IMAGES - 8
    assert shown["plan"].endswith(":1:3") and "at least 0.8" in shown["guarantee"]["statement"]
    assert len(shown["calibration"]["rows"]) == IMAGES - 8
    assert classify(cache, models, tmp_path / "run", "--plan", tmp_path / "plan.json") == 0
    assert main(["classify", str(cache), *models, "--plan", str(tmp_path / "plan.json"), "--score", "pmi"]) == 0


def test_agreement_can_be_measured_on_other_images(cache, models, tmp_path, capsys):
    command = ["--json", "tune", str(cache), *models, "--agreement", "0.8", "--evaluate", str(cache)]
    assert main([*command, "--out", str(tmp_path / "plan.json")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["held_out"]["agreement"] == shown["calibration"]["agreement"]


def test_processes_on_devices_tune_the_same_plan(cache, models, tmp_path, capsys):
    command = ["tune", str(cache), *models, "--agreement", "0.8", "--batch-size", "20", "--out"]
    assert main(["--quiet", *command, str(tmp_path / "one.json")]) == 0
    assert main(["--quiet", *command, str(tmp_path / "two.json"), "--devices", "cpu:2"]) == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert main([*command, str(tmp_path / "three.json"), "--devices", "cpu:2", "--device", "cpu"]) == 2
    assert "--device" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_tuning_resumes_from_undamaged_files(cache, models, plan, tmp_path, monkeypatch, capsys):
    extend, calls = VARLikelihood.extend, itertools.count()

    def stop_half_way(*args, **options):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return extend(*args, **options)

    words = ["--agreement", "0.9", "--batch-size", "20", "--out", str(tmp_path / "p.json")]
    command = ["tune", str(cache), *models, *words]
    with monkeypatch.context() as patched:
        patched.setattr(VARLikelihood, "extend", stop_half_way)
        assert main(command) == 130
    assert "12 of 24 images are kept" in capsys.readouterr().err and not (tmp_path / "p.json").exists()
    (saved,) = tmp_path.glob("*/segments/3.npz")
    whole = saved.read_bytes()
    for damaged in (b"", b"nonsense", whole[:-8]):
        saved.write_bytes(damaged)
        assert main(["--quiet", *command]) == 1
        assert "3.npz' is corrupt" in capsys.readouterr().err
    saved.write_bytes(whole)
    assert main(["--quiet", *command]) == 0
    assert json.loads((tmp_path / "p.json").read_text())["plan"] == json.loads(plan.read_text())["plan"]
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize("removed", [0, 1])
def test_a_tuning_that_was_stopped_while_it_tidied_up_is_repeated(cache, models, tmp_path, monkeypatch, removed):
    remove, calls = RunFolder.remove, itertools.count()

    def stop(folder):
        if next(calls) == removed:
            raise KeyboardInterrupt
        remove(folder)

    words = ["--agreement", "0.8", "--evaluate", str(cache), "--out", str(tmp_path / "p.json")]
    command = ["--quiet", "tune", str(cache), *models, *words]
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "remove", stop)
        assert main(command) == 130
    whole = (tmp_path / "p.json").read_bytes()
    assert main(command) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"] and (tmp_path / "p.json").read_bytes() == whole
    assert main(command) == 2, "a plan that is complete is not replaced"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--agreement", "0.995"], "at least 199"),
        (["--agreement", "0.9", "--hold-out", "20"], "at least 9"),
        (["--agreement", "1"], "number between 0 and 1"),
        (["--agreement", "nan"], "number between 0 and 1"),
        (["--agreement", "0.9", "--classes", "3"], "one class"),
        (["--agreement", "0.9", "--samples", "4"], "has 3 per image"),
        (["--agreement", "0.9", "--hold-out", "2", "--evaluate", "x.h5"], "exclude each other"),
    ],
)
def test_an_impossible_guarantee_is_refused(cache, models, tmp_path, capsys, options, says):
    assert main(["tune", str(cache), *models, *options, "--out", str(tmp_path / "plan.json")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and "Traceback" not in err and not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("name", ["plan", "plan.txt", "none/plan.json", "folder.json"])
def test_an_output_path_that_classify_could_not_read_is_refused_first(models, tmp_path, capsys, name):
    (tmp_path / "folder.json").mkdir()
    assert main(["tune", "none.h5", *models, "--out", str(tmp_path / name)]) == 2
    assert f"cannot write '{tmp_path / name}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--classes", "0,1,2"], "candidates: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] there, [0, 1, 2] here"),
        (["--precision", "bf16"], "precision: fp32 there, bf16 here"),
    ],
)
def test_a_plan_is_refused_where_its_guarantee_would_not_hold(cache, models, plan, tmp_path, capsys, options, says):
    assert classify(cache, models, tmp_path / "run", "--plan", plan, *options) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_plan_of_another_model_or_other_pixels_is_refused(cache, models, plan, tiny_files, tmp_path, capsys):
    assert main(["classify", str(cache), "--model", "digits", "--plan", str(plan)]) == 2
    assert "model: " in capsys.readouterr().err
    images = str(tiny_files / "img")
    assert main(["classify", images, *models, "--plan", str(plan), "--preprocess", "fit"]) == 2
    assert "preprocess: none" in capsys.readouterr().err


def test_auto_says_what_to_do_for_a_model_without_a_plan(cache, models, capsys):
    assert main(["classify", str(cache), *models, "--plan", "auto"]) == 2
    assert "avarc tune" in capsys.readouterr().err
