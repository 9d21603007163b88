"""encode and classify through the command line, on the golden case whose right answers are known."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from killing import killed_when
from small_datasets import noise

from avarc_cli.cli import main
from avarc_cli.tokens import read
from avarc_cli.zoo.local_files import ASSETS

EXHAUSTIVE = "exhaustive"


@pytest.fixture(scope="module")
def cache(tiny_files, models, tmp_path_factory):
    """The two golden images with two neighbours each."""
    out = tmp_path_factory.mktemp("cache") / "t.h5"
    assert (
        main(["encode", str(tiny_files / "img"), *models, "--preprocess", "none", "--samples", "3", "--out", str(out)])
        == 0
    )
    return out


@pytest.fixture(scope="module")
def labelled(tiny_files, models, tmp_path_factory):
    """Twelve images in folders named by class number, encoded with two neighbours each."""
    folder = tmp_path_factory.mktemp("labelled")
    noise(folder / "img", 12)
    out = folder / "t.h5"
    assert (
        main(["encode", str(folder / "img"), *models, "--preprocess", "none", "--samples", "3", "--out", str(out)]) == 0
    )
    return out


def classify(cache, models, *options):
    return main(["--quiet", "classify", str(cache), *models, *map(str, options)])


def lines(run):
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_saved_likelihoods_match_the_reference(tiny, cache, models, tmp_path):
    with h5py.File(cache) as file:
        assert np.array_equal(file["tokens"][:, 0], tiny.arrays["tokens"])
    run = tmp_path / "run"
    assert classify(cache, models, "--save-likelihood", "--out", run) == 0
    for i, expected in enumerate(tiny.arrays["token_log_prob"]):
        with np.load(run / "likelihood" / f"{i}.npz") as npz:
            assert npz["candidates"].tolist() == list(range(10)) and npz["candidates"].dtype == np.int64
            assert npz["log_likelihood"].dtype == np.float32
            assert int(npz["gt_label"]) == -1 and int(npz["sequence_length"]) == 30
            assert np.abs(npz["log_likelihood"] - expected[:10]).max() < tiny.tolerances["token_log_prob"]
    winners = tiny.arrays["log_likelihood"][:, :10].argmax(1)
    assert [line["prediction"] for line in lines(run)] == winners.tolist()


def test_a_run_records_what_it_did(labelled, models, tmp_path):
    run = tmp_path / "run"
    assert classify(labelled, models, "--plan", "2:5,4:2,4:1:3", "--save-json", "--out", run) == 0
    asked = json.loads((run / "run.json").read_text())
    assert asked["plan"] == "2:5,4:2,4:1:3" and asked["precision"] == "fp32"
    assert len(asked["model"]["sha256"]) == len(asked["tokenizer"]["sha256"]) == 64
    assert asked["tokens"]["samples"] == 3 and "torch" in asked["versions"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["images"] == metrics["labelled"] == 12
    assert metrics["accuracy"] == metrics["correct"] / 12 == metrics["top_k"]["1"]
    assert metrics["accuracy_95"][0] <= metrics["accuracy"] <= metrics["accuracy_95"][1]
    assert set(metrics["per_class"]) == {"0", "1", "2", "3"}
    # Two candidates are scored on both smoothing samples as well, but not the scales that begin as the image's do.
    tokens = read(labelled).tokens(range(12))
    shared = [
        max((end for end in (1, 5, 14, 30) if (image[sample, :end] == image[0, :end]).all()), default=0)
        for image in tokens
        for sample in (1, 2)
    ]
    assert sum(shared) > 0
    assert metrics["tokens_scored_per_image"] == pytest.approx(10 * 5 + 5 * 25 + 2 * (2 * 30 - sum(shared) / 12))
    detail = json.loads((run / "json" / "7.json").read_text())
    assert [len(stage["candidates"]) for stage in detail["stages"]] == [10, 5, 2]
    assert [len(stage["survivors"]) for stage in detail["stages"]] == [5, 2, 1]
    assert detail["stages"][-1]["survivors"] == [detail["prediction"]] == [lines(run)[7]["prediction"]]
    assert detail["label"] == lines(run)[7]["label"] and detail["configuration"]["plan"] == asked["plan"]


def test_folder_names_are_matched_by_name_not_by_order(labelled, models, tmp_path):
    assert classify(labelled, models, "--out", tmp_path / "run") == 0
    assert all(line["label_id"] == line["path"].split("/")[0] for line in lines(tmp_path / "run"))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {c}" for c in "9876543210"))
    assert classify(labelled, models, "--class-names", names, "--out", tmp_path / "other") == 0
    metrics = json.loads((tmp_path / "other" / "metrics.json").read_text())
    assert metrics["labelled"] == 0 and "accuracy" not in metrics


def test_candidates_priors_and_scores_are_applied(labelled, models, tmp_path):
    assert classify(labelled, models, "--classes", "1,3", "--out", tmp_path / "two") == 0
    two = lines(tmp_path / "two")
    assert {line["prediction"] for line in two} <= {1, 3}
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["label_not_a_candidate"] == 6
    priors = tmp_path / "priors.tsv"
    priors.write_text("".join(f"{c}\t{1e300 if c == 8 else 1e-300}\n" for c in range(10)))
    assert classify(labelled, models, "--priors", priors, "--out", tmp_path / "prior") == 0
    assert {line["prediction"] for line in lines(tmp_path / "prior")} == {8}
    assert classify(labelled, models, "--out", tmp_path / "log") == 0
    assert classify(labelled, models, "--score", "pmi", "--out", tmp_path / "pmi") == 0
    for a, b in zip(lines(tmp_path / "log"), lines(tmp_path / "pmi"), strict=True):
        assert a["prediction"] == b["prediction"] and a["score"] < b["score"]
        assert a["bits_per_token"] == pytest.approx(b["bits_per_token"], rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_close_and_counts_its_near_ties(labelled, models, tmp_path, precision):
    assert classify(labelled, models, "--out", tmp_path / "full") == 0
    assert classify(labelled, models, "--precision", precision, "--out", tmp_path / "low") == 0
    for a, b in zip(lines(tmp_path / "full"), lines(tmp_path / "low"), strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=3.0)
        assert a["prediction"] == b["prediction"] or b["near_tie"]


def test_batch_size_does_not_change_predictions(labelled, models, tmp_path):
    for size in ("1", "7", "auto"):
        assert classify(labelled, models, "--plan", "2:5,4:1", "--batch-size", size, "--out", tmp_path / size) == 0
    assert len({tuple(line["prediction"] for line in lines(tmp_path / s)) for s in ("1", "7", "auto")}) == 1


def test_deterministic_runs_agree_bit_for_bit_whatever_the_number_of_images(labelled, models, tmp_path, threads):
    options = ["--plan", "2:5,4:1", "--deterministic", "--batch-size", "16"]
    for name in ("a", "b"):
        assert classify(labelled, models, *options, "--out", tmp_path / name) == 0
    assert (tmp_path / "a/predictions.jsonl").read_bytes() == (tmp_path / "b/predictions.jsonl").read_bytes()
    short = tmp_path / "short.h5"
    images = labelled.parent / "img"
    assert main(["encode", str(images), *models, "--preprocess", "none", "--limit", "5", "--out", str(short)]) == 0
    assert classify(short, models, *options, "--out", tmp_path / "c") == 0
    first = (tmp_path / "a/predictions.jsonl").read_bytes().splitlines()[:5]
    assert (tmp_path / "c/predictions.jsonl").read_bytes().splitlines() == first


def test_images_are_encoded_and_classified_in_one_command(tiny_files, cache, models, tmp_path, capsys):
    image = str(tiny_files / "img" / "000.png")
    assert main(["classify", image, *models, "--preprocess", "none", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["predictions"]
    assert shown["path"] == "000.png"
    assert len(shown["best"]) == 5 and 0 < shown["best"][0]["posterior"] <= 1
    run = tmp_path / "run"
    assert main(["classify", str(tiny_files / "img"), *models, "--preprocess", "none", "--out", str(run)]) == 0
    assert classify(cache, models, "--out", tmp_path / "cached") == 0
    assert [r["score"] for r in lines(run)] == [r["score"] for r in lines(tmp_path / "cached")]


def test_unreadable_images_are_listed_and_the_exit_code_is_3(tiny_files, models, tmp_path, capsys):
    folder = tmp_path / "img"
    shutil.copytree(tiny_files / "img", folder)
    (folder / "broken.png").write_text("not an image")
    out = tmp_path / "t.h5"
    assert main(["encode", str(folder), *models, "--preprocess", "none", "--out", str(out)]) == 3
    assert "broken.png" in capsys.readouterr().err
    assert main(["classify", str(folder), *models, "--preprocess", "none", "--out", str(tmp_path / "run")]) == 3
    assert "broken.png" in capsys.readouterr().err
    assert len(lines(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--plan", "4:2"], "ends with 2"),
        (["--plan", "4:11,4:1"], "keeps 11"),
        (["--plan", "5:1"], "no segment 5"),
        (["--plan", "paper"], "no segment 6"),
        (["--plan", "4:1:4"], "has 3 per image"),
        (["--classes", "0,77"], "77"),
        (["--classes", "nonsense"], "nonsense"),
        (["--classes", ""], "empty"),
        (["--score", "nonsense"], "nonsense"),
        (["--precision", "int4"], "int4"),
        (["--precision", "tf32"], "CUDA"),
        (["--device", "nonsense"], "nonsense"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--batch-size", "0"], "batch size '0'"),
        (["--batch-size", "lots"], "batch size 'lots'"),
        (["--batch-size", "9" * 5000], "batch size '999"),
        (["--memory", "9" * 400 + "GiB"], "as an amount of memory"),
        (["--save-likelihood"], "--out"),
        (["--priors", "/nowhere"], "/nowhere"),
        (["--class-names", "/nowhere"], "/nowhere"),
        (["--subset", "imagenet100"], "encoded already"),
        (["--sigma", "0.1", "--workers", "0"], "no use for --sigma, --workers"),
        (["--seed", "1"], "no use for --seed"),
    ],
)
def test_a_wrong_request_is_one_message_and_exit_code_2(cache, models, capsys, options, says):
    assert main(["classify", str(cache), *models, *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("error:") == 1 and "Traceback" not in err


def test_staged_runs_save_the_tokens_of_the_candidates_of_the_last_stage(cache, models, tmp_path, capsys):
    whole, staged = tmp_path / "whole", tmp_path / "staged"
    assert classify(cache, models, "--save-likelihood", "--out", whole) == 0
    options = ["--plan", "2:5,4:3,4:1:3", "--save-likelihood", "--save-json"]
    assert classify(cache, models, *options, "--out", staged) == 0
    for i in range(2):
        stages = json.loads((staged / "json" / f"{i}.json").read_text())["stages"]
        with np.load(staged / "likelihood" / f"{i}.npz") as some, np.load(whole / "likelihood" / f"{i}.npz") as all_of:
            kept = some["candidates"].tolist()
            assert kept == stages[-1]["candidates"] and len(kept) == 3
            expected = all_of["log_likelihood"][[all_of["candidates"].tolist().index(c) for c in kept]]
            assert np.allclose(some["log_likelihood"], expected, atol=1e-5)
            assert int(some["sequence_length"]) == 30
    assert classify(cache, models, "--plan", "2:1", "--save-likelihood", "--out", tmp_path / "run") == 2
    assert "score all 4 segments" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_image_that_is_decided_early_saves_no_candidate(cache, models, tmp_path):
    run = tmp_path / "run"
    assert classify(cache, models, "--plan", "2:<1e-9,4:1", "--save-likelihood", "--out", run) == 0
    for i in range(2):
        with np.load(run / "likelihood" / f"{i}.npz") as npz:
            assert npz["log_likelihood"].shape == (0, 30) and npz["candidates"].shape == (0,)
    assert main(["export", str(run), "--out", str(tmp_path / "folder")]) == 0
    assert np.load(tmp_path / "folder" / "1.npz")["log_likelihood"].shape == (0,)


def test_a_cache_of_another_tokenizer_is_refused_with_both_values(cache, capsys):
    assert main(["classify", str(cache), "--model", "digits"]) == 1
    err = capsys.readouterr().err
    assert "another tokenizer" in err and "layout: scales 1,2,3,4 in the cache" in err


def test_a_finished_run_is_not_scored_again_and_another_request_is_refused(labelled, models, tmp_path, capsys):
    run = tmp_path / "run"
    assert classify(labelled, models, "--out", run) == 0
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    assert classify(labelled, models, "--out", run) == 0
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    assert classify(labelled, models, "--plan", "2:5,4:1", "--out", run) == 2
    assert "plan" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before


def test_images_with_another_plan_need_another_folder(tiny_files, models, tmp_path, capsys):
    command = ["classify", str(tiny_files / "img"), *models, "--preprocess", "none", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0, "the same again is done already"
    assert main([*command, "--plan", "2:5,4:1:3"]) == 2
    assert "plan: 4:1 there, 2:5,4:1:3 here" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--sigma", "0.2"), ("--seed", "1"), ("--preprocess", "fit")])
def test_images_with_other_tokens_need_another_folder(tiny_files, models, tmp_path, capsys, option, value):
    command = ["classify", str(tiny_files / "img"), *models, "--plan", "4:1:2", "--out", str(tmp_path / "run")]
    assert main([*command, "--preprocess", "none"]) == 0
    capsys.readouterr()
    assert main([*command, "--preprocess", "none", option, value]) == 1
    err = capsys.readouterr().err
    assert f"{option[2:]}: " in err and "name another --out, or replace the run with --overwrite" in err


@pytest.mark.parametrize(("option", "value"), [("--batch-size", "0"), ("--memory", "lots")])
def test_a_wrong_limit_is_refused_before_anything_is_encoded(tiny_files, models, tmp_path, capsys, option, value):
    command = ["classify", str(tiny_files / "img"), *models, "--out", str(tmp_path / "run")]
    assert main([*command, option, value]) == 2
    assert f"'{value}'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_cache_that_differs_from_its_checksums_is_refused(labelled, models, tmp_path, capsys):
    damaged = shutil.copy(labelled, tmp_path / "t.h5")
    with h5py.File(damaged, "r+") as file:
        file["tokens"][0, 0, 0] ^= 1  # another code of the vocabulary
    assert classify(damaged, models) == 1
    assert "/tokens of rows 0 to 11 differs from its checksum" in capsys.readouterr().err


def test_an_out_folder_with_other_things_in_it_is_left_alone(labelled, models, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert classify(labelled, models, "--out", tmp_path) == 2
    assert "not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_journal_of_an_earlier_version_is_continued_but_for_a_cut_line(labelled, models, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ["--batch-size", "2", "--plan", "2:5,4:1"]
    assert classify(labelled, models, *options, "--out", whole) == 0
    cut.mkdir()
    shutil.copy(whole / "run.json", cut)
    journal = (whole / "predictions.jsonl").read_bytes()
    (cut / "predictions.jsonl.part").write_bytes(journal[: len(journal) // 2])
    assert classify(labelled, models, *options, "--out", cut) == 0
    assert (cut / "predictions.jsonl").read_bytes() == journal
    assert not (cut / "predictions.jsonl.part").exists()


@pytest.mark.slow
def test_a_run_that_is_killed_between_chunks_finishes_with_the_same_bytes(labelled, models, tmp_path):
    options = ["classify", str(labelled), *models, "--batch-size", "10", "--save-likelihood", "--out"]
    assert main(["--quiet", *options, str(tmp_path / "whole")]) == 0
    killed = tmp_path / "killed"
    for finished in (1, 5, 9):  # chunks when the process dies
        work = lambda: main(["--quiet", *options, str(killed)])  # noqa: E731
        assert killed_when(lambda count=finished: _chunks(killed) >= count, work)
    assert main(["--quiet", *options, str(killed)]) == 0
    for name in ("predictions.jsonl", "run.json", *(f"likelihood/{i}.npz" for i in range(12))):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(p.name for p in killed.rglob("*")) == sorted(p.name for p in (tmp_path / "whole").rglob("*"))


def _chunks(run: Path) -> int:
    return len(list((run / "parts").glob("*.npz")))


def test_an_int8_run_records_kernels_and_attention(tmp_path):
    image = ASSETS / "digits" / "test" / "7"
    words = [str(image), "--limit", "1", "--precision", "int8", "--memory", "2GiB", "--out", str(tmp_path / "run")]
    assert main(["classify", *words]) == 0
    asked = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (asked["precision"], asked["kernels"]) == ("int8", "torch")
    assert "scaled_dot_product_attention" in asked["attention"]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 nonsense", b"\x80\x02."])
def test_a_damaged_file_is_one_message_through_the_command_line(tiny_files, tmp_path, capsys, content):
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(content)
    image = str(tiny_files / "img" / "000.png")
    assert main(["classify", image, "--model", str(damaged), "--tokenizer", str(tiny_files / "VAE.pth")]) == 1
    err = capsys.readouterr().err
    assert "damaged.pth" in err and "Traceback" not in err and "bug" not in err
