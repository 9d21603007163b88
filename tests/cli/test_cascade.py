"""classify --precision cascade, and plans whose stages name a precision, through the command line."""

import json
import pickle
import shutil

import numpy as np
import pytest
from small_datasets import noise

from avarc_cli import cascading
from avarc_cli.classifier import load_classifier
from avarc_cli.cli import main
from avarc_cli.loading import ModelSpec
from avarc_cli.options import Options
from avarc_cli.tokens.cache import read
from avarc_cli.zoo import paths
from avarc_cli.zoo.local_files import ASSETS

IMAGES = 30
PLAN = "2:6,4:3,4:1:2"


@pytest.fixture(scope="module")
def cache(models, tmp_path_factory):
    """Noise with one neighbour each, which the tiny model's random weights tell apart by little."""
    folder = tmp_path_factory.mktemp("images")
    noise(folder / "img", IMAGES)
    command = ["encode", str(folder / "img"), *models, "--preprocess", "none", "--samples", "2"]
    assert main([*command, "--out", str(folder / "t.h5")]) == 0
    return folder / "t.h5"


@pytest.fixture
def classify(cache, models, capsys):
    """Classifies the images into a folder; gives exit code and what is said."""

    def do(out, *options):
        capsys.readouterr()
        code = main(["classify", str(cache), *models, "--out", str(out), *map(str, options)])
        return code, " ".join(capsys.readouterr().err.split())

    return do


def lines(run):
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def content(run, name):
    return json.loads((run / name).read_text())


def predictions(run):
    return [line["prediction"] for line in lines(run)]


def forget_noise():
    shutil.rmtree(paths.noise_folder(), ignore_errors=True)


def test_a_cascade_predicts_as_fp32_and_says_what_it_took(classify, tmp_path):
    forget_noise()
    assert classify(tmp_path / "fp32", "--plan", PLAN)[0] == 0
    code, said = classify(tmp_path / "run", "--plan", PLAN, "--precision", "cascade", "--save-json")
    assert code == 0 and "measuring the rounding of" in said
    assert predictions(tmp_path / "run") == predictions(tmp_path / "fp32")
    protocol, metrics = content(tmp_path / "run", "run.json"), content(tmp_path / "run", "metrics.json")
    cheap, _, exact = protocol["precision"].partition("+")
    assert exact == "fp32" and protocol["plan"] == PLAN and cheap in ("bf16", "int16", "int8")
    recorded = protocol["cascade"]
    assert protocol["kernels"] == "torch" and protocol["other_kernels"] == {"fp32": "torch"}
    assert recorded["probability"] == 1e-6 and len(recorded["slack"]) == 3 and len(recorded["noise"]["segments"]) == 4
    each = lines(tmp_path / "run")
    in_exact = [line for line in each if line["decided_in"] == "fp32"]
    assert metrics["cascade"]["decided_in_exact"] == len(in_exact) > 0
    assert metrics["cascade"]["survivors_checked"] == sum(line["survivors_checked"] for line in each)
    assert sum(line["exact_tokens"] for line in each) == IMAGES * metrics["cascade"]["exact_tokens_per_image"]
    assert {line["best"][0]["precision"] for line in in_exact} == {"fp32"}
    stages = content(tmp_path / "run", "json/0.json")["stages"]
    assert [stage["precision"] for stage in stages[:2]] == [cheap, cheap]
    code, said = classify(tmp_path / "again", "--plan", PLAN, "--precision", f"{cheap}+fp32", "--save-json")
    assert code == 0 and "measuring" not in said, "the noise is known by now"
    assert lines(tmp_path / "again") == each
    assert main(["report", str(tmp_path / "run"), "--hardest", "0"]) == 0


def test_shards_and_a_run_that_is_continued_use_the_recorded_noise(classify, tmp_path):
    options = ("--plan", PLAN, "--precision", "cascade", "--batch-size", "4", "--limit", "10")
    assert classify(tmp_path / "whole", *options)[0] == 0
    assert classify(tmp_path / "run", *options, "--shard", "1/2")[0] == 0
    forget_noise()
    code, said = classify(tmp_path / "run", *options, "--shard", "2/2")
    assert code == 0 and "measuring" not in said
    for name in ("run.json", "predictions.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    changed = content(tmp_path / "run", "run.json")
    noise = changed["cascade"]["noise"]
    changed["cascade"]["noise"] = noise | {"segments": noise["segments"][:3]}
    (tmp_path / "run" / "run.json").write_text(json.dumps(changed))
    code, said = classify(tmp_path / "run", *options, "--score", "pmi")
    assert code == 2 and "holds another run" in said, "which may be of other segments"
    changed["cascade"]["noise"] = {"segments": "many"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(changed))
    code, said = classify(tmp_path / "run", *options)
    assert code == 1 and "cascade: " in said


def test_another_process_loads_both_models(cache, models):
    spec = ModelSpec(models[1], models[3], precision="cascade")
    classifier, tokens = load_classifier(spec, Options(plan="exhaustive")), read(cache)
    run = classifier.run(tokens, classifier.request(tokens.header))
    from avarc_cli.results.scorer import Scorer

    there = pickle.loads(pickle.dumps(Scorer(run, 8).loader()))("cpu")
    (here,) = [each for _, each in Scorer(run, 8).run({0: range(8)}, lambda n: None)]
    (found,) = [each for _, each in there.run({0: range(8)}, lambda n: None)]
    assert found.records == here.records


def test_an_int8_cascade_on_a_cpu_is_warned_of(classify, tmp_path, monkeypatch):
    words = ("--limit", "2", "--precision", "int8+fp32", "--device", "cpu")
    monkeypatch.setattr("avarc_cli.layers.precision.cpu_has_bf16", lambda: True)
    code, said = classify(tmp_path / "run", *words)
    assert code == 0 and "a cascade may take longer than fp32: use bf16+fp32" in said
    monkeypatch.setattr("avarc_cli.layers.precision.cpu_has_bf16", lambda: False)
    monkeypatch.setattr("avarc_cli.layers.precision.int16_missing", lambda: "there is no C compiler")
    code, said = classify(tmp_path / "without", *words)
    assert code == 0 and "int16 would suit, but there is no C compiler" in said


def test_noise_measured_on_little_is_measured_again_where_there_is_more(classify, tmp_path):
    forget_noise()
    code, said = classify(tmp_path / "little", "--limit", "1", "--classes", "0,1", "--precision", "cascade")
    assert code == 0 and "on 1 image" in said
    code, said = classify(tmp_path / "more", "--precision", "cascade")
    assert code == 0 and "measuring" in said
    assert max(content(tmp_path / "more", "run.json")["cascade"]["slack"]) < 10  # with one degree of freedom, 1e9
    code, said = classify(tmp_path / "again", "--limit", "1", "--classes", "0,1", "--precision", "cascade")
    assert code == 0 and "measuring" not in said, "that is better than it could be here"


def test_a_damaged_file_of_noise_is_ignored_and_replaced(cache, models, tmp_path, monkeypatch):
    forget_noise()
    measure, measured = cascading.measure, []

    def measure_once(*args):
        measured[:] = measured or [measure(*args)]
        return measured[0]

    monkeypatch.setattr(cascading, "measure", measure_once)
    spec = ModelSpec(models[1], models[3], precision="cascade")
    classifier, tokens = load_classifier(spec, Options(plan="exhaustive")), read(cache)
    request, said = classifier.request(tokens.header), []

    def noise_now():
        said.clear()
        return classifier.run(tokens, request, say=said.append).protocol["cascade"]["noise"]

    first = noise_now()
    assert len(said) == 1 and noise_now() == first and not said
    (file,) = paths.noise_folder().iterdir()
    good = file.read_bytes()
    for content in (b"", b"{", b"[]", b'{"format": 9}', good.replace(b'"images": ', b'"images": -'), b"\xff\xfe"):
        file.write_bytes(content)
        assert noise_now() == first
        assert "is damaged" in said[0] and "measuring" in said[1] and file.read_bytes() == good


def test_digits_are_predicted_alike(tmp_path):
    cache = tmp_path / "t.h5"
    assert main(["--quiet", "encode", str(ASSETS / "digits" / "test"), "--sample", "60", "--out", str(cache)]) == 0
    for precision in ("fp32", "cascade"):
        options = ["--plan", "auto", "--precision", precision, "--out", str(tmp_path / precision)]
        assert main(["--quiet", "classify", str(cache), *options]) == 0
    assert predictions(tmp_path / "cascade") == predictions(tmp_path / "fp32")
    assert content(tmp_path / "cascade", "run.json")["tuned_plan"]["made_for"]["precision"] == "fp32"


def test_a_plan_names_the_precision_of_its_stages(classify, tmp_path):
    assert classify(tmp_path / "fp32", "--plan", PLAN)[0] == 0
    code, _ = classify(tmp_path / "run", "--plan", "2:6/bf16,4:3/bf16,4:1:2/fp32", "--save-json", "--save-likelihood")
    assert code == 0
    assert content(tmp_path / "run", "run.json")["plan"] == "2:6/bf16,4:3/bf16,4:1:2", "fp32 is the run's own"
    stages = content(tmp_path / "run", "json/0.json")["stages"]
    assert [stage.get("precision") for stage in stages] == ["bf16", "bf16", None]
    best, expected = lines(tmp_path / "run")[0]["best"], lines(tmp_path / "fp32")[0]["best"]
    scores = {entry["class"]: entry["score"] for entry in expected}
    assert "precision" not in best[0] and best[0]["score"] == pytest.approx(scores[best[0]["class"]], abs=1e-4)
    assert best[4]["precision"] == "bf16"
    saved = np.load(tmp_path / "run" / "likelihood" / "0.npz")
    assert saved["log_likelihood"].shape[0] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--precision", "cascade", "--save-likelihood"], "is not for --save-likelihood"),
        (["--precision", "cascade", "--plan", "2:6/bf16,4:1"], "names precisions"),
        (["--precision", "bf16+int8"], "its second precision is fp32"),
        (["--precision", "fp32+fp32"], "its second precision is fp32"),
        (["--precision", "bf17+fp32"], "no precision 'bf17'"),
        (["--precision", "fast"], "int8, fp8, bf16+fp32, cascade, auto"),
        (["--precision", "+fp32"], "no precision ''"),
        (["--precision", "tf32+fp32", "--device", "cpu"], "tf32 is not available on cpu"),
        (["--plan", "2:6/bf17,4:1"], "no precision 'bf17'"),
        (["--plan", "2:6/fp8,4:1", "--device", "cpu"], "fp8 is not available on cpu"),
        (["--plan", "2:6/,4:1"], "is not a stage"),
    ],
)
def test_what_does_not_go_together_is_refused(classify, tmp_path, options, says):
    code, said = classify(tmp_path / "run", *options)
    assert code == 2 and says in said and not (tmp_path / "run" / "predictions.jsonl").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["tune", "{cache}", "--agreement", "0.9", "--out", "{out}.json"],
        ["export", "{cache}", "--out", "{out}.npz"],
        ["explain", "{cache}", "--out", "{out}.png"],
        ["sample", "0", "--out", "{out}.png"],
    ],
)
def test_commands_that_need_one_precision_say_which(cache, models, tmp_path, capsys, command):
    words = [word.format(cache=cache, out=tmp_path / "out") for word in command]
    assert main([*words, *models, "--precision", "cascade"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "is not for this command" in said and "use --precision fp32" in said


def test_a_run_of_a_cascade_is_explained_and_exported_in_fp32(classify, cache, tmp_path, capsys):
    assert classify(tmp_path / "run", "--precision", "cascade")[0] == 0
    assert main(["export", str(tmp_path / "run"), "--tokens", str(cache), "--out", str(tmp_path / "out.npz")]) == 0
    assert len(np.load(tmp_path / "out.npz")["log_likelihood"]) == IMAGES


def test_doctor_measures_and_shows_the_rounding(cache, models, capsys):
    forget_noise()
    assert main(["doctor", *models, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rounding"]["noise"] is None
    assert main(["doctor", *models, "--tokens", str(cache), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["rounding"]
    assert len(measured["noise"]["segments"]) == 4 and measured["noise"]["images"] >= 4
    assert main(["doctor", *models]) == 0
    assert "by segments scored" in " ".join(capsys.readouterr().out.split())
    assert main(["doctor", "--tokens", str(cache)]) == 2
    assert "add --model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("has_bf16", "has_vnni", "options", "becomes"),
    [
        (True, True, [], "bf16+fp32"),
        (False, True, [], "fp32"),
        (True, True, ["--save-likelihood"], "fp32"),
        (True, True, ["--combine", "posterior"], "fp32"),
    ],
)
def test_auto_is_a_cascade_where_that_pays(classify, tmp_path, monkeypatch, has_bf16, has_vnni, options, becomes):
    monkeypatch.setattr("avarc_cli.layers.precision.cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr("avarc_cli.layers.precision.cpu_has_vnni", lambda: has_vnni)
    monkeypatch.setattr("avarc_cli.layers.precision.int16_missing", lambda: "there is no C compiler")
    code, said = classify(tmp_path / "run", "--precision", "auto", "--device", "cpu", *options)
    assert code == 0, said
    assert content(tmp_path / "run", "run.json")["precision"] == becomes
