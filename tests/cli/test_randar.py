"""RandAR through the commands that LlamaGen has: files as published, and as other programs train them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from PIL import Image
from safetensors.torch import save_file

from avarc_cli.cli import main
from avarc_cli.models.randar import reference
from avarc_cli.models.randar.likelihood import RandARLikelihood
from avarc_cli.tokens import read


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


def tensors_of(name):
    """(meta, arrays, tensors) of a golden file."""
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    return meta, arrays, {key: torch.from_numpy(value) for key, value in filled.items()}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("randar")
    (folder / "vq").mkdir()
    meta, arrays, tensors = tensors_of("llamagen_vq_tiny")
    vq = folder / "vq" / "vq_ds16_c2i.pt"
    torch.save({"model": tensors}, vq)
    (folder / "vq" / "config.json").write_text(json.dumps(meta["config"]))
    meta, _, tensors = tensors_of("randar_tiny")
    gpt, bare = folder / "randar_0.3b_llamagen.safetensors", folder / "model_iters_00360000.pt"
    save_file(tensors, gpt)
    torch.save({f"module.{key}": tensor for key, tensor in tensors.items()}, bare)
    (folder / "config.json").write_text(json.dumps(meta["config"]))
    pixels = np.rint((arrays["image"] + 1) / 2 * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for i, (label, image) in enumerate((label, image) for label in "02" for image in pixels):
        (folder / "img" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(image, 3 * i, axis=0)).save(folder / "img" / label / f"{i}.png")
    cache = folder / "t.h5"
    images = [folder / "img", "--tokenizer", vq, "--preprocess", "none"]
    assert avarc("--quiet", "encode", *images, "--samples", "3", "--out", cache) == 0
    models = ["--model", gpt, "--tokenizer", vq]
    return SimpleNamespace(
        folder=folder, vq=vq, gpt=gpt, bare=bare, cache=cache, tensors=tensors, meta=meta, models=models
    )


def likelihoods(folder, index=0):
    return np.load(folder / "likelihood" / f"{index}.npz")["log_likelihood"]


@pytest.mark.parametrize("file", ["gpt", "bare"])
def test_a_file_by_its_path_scores_as_a_plain_implementation(setting, tmp_path, file):
    models = ["--model", getattr(setting, file), "--tokenizer", setting.vq]
    words = [setting.cache, *models, "--orders", "raster", "--save-likelihood"]
    assert avarc("-q", "classify", *words, "--out", tmp_path / "run") == 0
    tokens = torch.from_numpy(read(setting.cache).tokens([0])[0, 0].astype(np.int64))
    expected = reference.token_log_probs(setting.tensors, tokens, torch.arange(10), heads=4)
    assert np.abs(likelihoods(tmp_path / "run") - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize("plan", ["exhaustive", "2:3,4:1", "1:5,2:2:2,4:1:3", "exhaustive:3"])
def test_plans_prune_run_by_run(setting, tmp_path, plan):
    words = [setting.cache, *setting.models, "--orders", "raster", "--plan", plan]
    assert avarc("-q", "classify", *words, "--out", tmp_path / "run") == 0
    found = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(found) == 4 and {record["label_id"] for record in found} == {"0", "2"}
    assert (found[0]["tokens_scored"] < 160) == ("," in plan and plan[-2:] != ":3")


def test_everything_made_of_scores_works(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(RandARLikelihood, "default_orders", 4)
    run = tmp_path / "run"
    assert avarc("-q", "classify", setting.cache, *setting.models, "--save-likelihood", "--out", run) == 0
    assert avarc("-q", "report", run, "--hardest", "2") == 0
    assert avarc("-q", "export", run, "--per-token", "--out", tmp_path / "e.npz") == 0
    assert np.load(tmp_path / "e.npz")["log_likelihood"].shape == (4, 10, 16)
    words = [setting.cache, *setting.models]
    assert avarc("-q", "explain", *words, "--limit", "2", "--out", tmp_path / "x.png") == 0
    assert avarc("-q", "tune", *words, "--agreement", "0.5", "--out", tmp_path / "plan.json") == 0


def test_pictures_are_drawn_several_tokens_at_a_time_and_do_not_depend_on_each_other(setting, tmp_path):
    for name, count in (("two", 2), ("one", 1)):
        words = ["1", *setting.models, "--count", count, "--guidance", "3", "--top-k", "20", "--top-p", "0.9"]
        assert avarc("-q", "sample", *words, "--out", tmp_path / f"{name}.png") == 0
    one, two = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("one", "two"))
    assert two.shape[1] > one.shape[1] and one.std() > 0


def test_classes_are_added_by_embedding_and_lora_and_old_scores_stay(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(RandARLikelihood, "default_orders", 2)
    add = ["-q", "add-class", setting.folder / "img" / "0", *setting.models, "--bank", tmp_path / "bank"]
    add += ["--preprocess", "none", "--steps", "2", "--variants", "1"]
    for name, method, offset in (("one", "embedding", "--no-offset"), ("two", "lora", "--offset")):
        assert avarc(*add[:2], name, *add[2:], "--method", method, offset) == 0
    scores = []
    for words in ([], ["--bank", tmp_path / "bank"]):
        run = tmp_path / f"run{len(words)}"
        words += ["--save-likelihood", "--out", run]
        assert avarc("-q", "classify", setting.cache, *setting.models, *words) == 0
        scores.append(likelihoods(run))
    assert len(scores[1]) == 12 and np.array_equal(scores[1][:10], scores[0])


def test_contrastive_fine_tuning_gives_an_adapter_that_is_merged(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(RandARLikelihood, "default_orders", 4)
    data = [setting.folder / "img", *setting.models, "--augment", "none"]
    steps = ["--rank", "2", "--steps", "2", "--batch-size", "2"]
    assert avarc("-q", "train", "cca", *data, *steps, "--out", tmp_path / "lora") == 0
    assert avarc("-q", "classify", setting.cache, *setting.models, "--lora", tmp_path / "lora") == 0


def test_a_file_of_the_other_family_is_refused_with_the_tensor_that_tells_them_apart(setting, tmp_path, capsys):
    (tmp_path / "as.json").write_text('{"family": "llamagen", "n_head": 4}')
    words = ["classify", setting.cache, *setting.models]
    assert avarc(*words, "--model-config", tmp_path / "as.json") == 1
    assert "1 unknown: pos_instruct_embeddings" in capsys.readouterr().err
    less = {key: tensor for key, tensor in setting.tensors.items() if key != "pos_instruct_embeddings"}
    save_file(less, tmp_path / "c2i.safetensors")
    (tmp_path / "as.json").write_text('{"family": "randar", "n_head": 4}')
    words = ["classify", setting.cache, "--model", tmp_path / "c2i.safetensors", "--tokenizer", setting.vq]
    assert avarc(*words, "--model-config", tmp_path / "as.json") == 1
    assert "1 missing: pos_instruct_embeddings" in capsys.readouterr().err


def test_published_sizes_are_listed_with_their_tokenizer(capsys):
    assert avarc("--json", "models") == 0
    listed = {card["name"]: card for card in json.loads(capsys.readouterr().out)["models"]}
    assert {listed[name]["tokenizer"] for name in ("randar-l-256", "randar-xl-256")} == {"llamagen-vq16-256"}


def test_bench_times_it_beside_plain_pytorch(capsys):
    shape = ["--shape", "randar-2:64:4", "--scales", "4", "--pairs", "2", "--rounds", "1", "--precision", "fp32"]
    assert avarc("--json", "bench", *shape) == 0
    results = json.loads(capsys.readouterr().out)["report"]["results"]
    assert [each["name"] for each in results] == ["plain PyTorch", "avarc"]
    assert results[1]["error_max"] < 1e-4
    assert avarc("bench", "--shape", "randar-3b") == 2
    message = capsys.readouterr().err
    assert "randar-xl" in message and "randar-xxl" not in message


def run_of(setting, folder, *words):
    assert avarc("-q", "classify", setting.cache, *setting.models, *words, "--out", folder) == 0
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_twenty_random_orders_are_averaged_by_default_and_each_is_saved(setting, tmp_path, capsys):
    run = tmp_path / "run"
    assert avarc("classify", setting.cache, *setting.models, "--save-likelihood", "--out", run) == 0
    printed = capsys.readouterr()
    assert "20 orders at random, seed 0, combined by mean" in printed.err and "20, combined by mean" in printed.out
    protocol, metrics = (json.loads((run / name).read_text()) for name in ("run.json", "metrics.json"))
    assert (protocol["orders"], protocol["order_seed"], protocol["combine"]) == ("random", 0, "mean")
    assert protocol["plan"] == "4:1@20" and (metrics["orders"], metrics["combine"]) == (20, "mean")
    with np.load(run / "likelihood" / "1.npz") as file:
        mean, each = file["log_likelihood"], file["log_likelihood_orders"]
    assert each.shape == (20, 10, 16) and np.allclose(each.mean(0), mean, atol=1e-5)
    record = json.loads((run / "predictions.jsonl").read_text().splitlines()[1])
    assert record["score"] == pytest.approx(mean[record["prediction"]].sum(), abs=1e-3)


def test_orders_of_a_file_are_those_of_a_plain_implementation(setting, tmp_path):
    orders = np.stack([np.random.default_rng(i).permutation(16) for i in range(3)])
    np.save(tmp_path / "o.npy", orders)
    words = ["--orders", tmp_path / "o.npy", "--save-likelihood"]
    run_of(setting, tmp_path / "run", *words)
    tokens = torch.from_numpy(read(setting.cache).tokens([2])[0, 0].astype(np.int64))
    with np.load(tmp_path / "run" / "likelihood" / "2.npz") as file:
        each = file["log_likelihood_orders"]
    for order, found in zip(orders, each, strict=True):
        permuted = reference.token_log_probs(
            setting.tensors, tokens, torch.arange(10), heads=4, order_L=torch.from_numpy(order)
        )
        assert np.abs(found[:, order] - permuted.numpy()).max() < 1e-4


def test_what_is_scored_does_not_depend_on_batches_or_on_other_candidates(setting, tmp_path):
    words = ["--orders", "4", "--plan", "1:6,2:4@2,4:1@4", "--save-json"]
    whole = run_of(setting, tmp_path / "a", *words)
    small = run_of(setting, tmp_path / "b", *words, "--batch-size", "1")
    assert [r["prediction"] for r in whole] == [r["prediction"] for r in small]
    assert [r["score"] for r in whole] == pytest.approx([r["score"] for r in small], abs=1e-3)
    full = run_of(setting, tmp_path / "c", "--orders", "4")
    few = run_of(setting, tmp_path / "d", "--orders", "4", "--classes", "0,1,2,3,4")
    scores = [{b["class"]: b["score"] for b in r["best"]} for r in (*full, *few, *whole)]
    for a, b, staged in zip(scores[:4], scores[4:8], scores[8:], strict=True):
        assert all(a[c] == pytest.approx(b[c], abs=1e-3) for c in a.keys() & b.keys())
        winner = next(iter(staged))  # the staged sums of the winner are the exhaustive ones
        assert winner not in a or staged[winner] == pytest.approx(a[winner], abs=1e-3)


@pytest.mark.parametrize("rule", ["posterior", "log-mean-exp"])
def test_other_rules_score_exhaustively_and_are_recorded(setting, tmp_path, capsys, rule):
    found = run_of(setting, tmp_path / "run", "--orders", "5", "--combine", rule)
    assert len(found) == 4 and json.loads((tmp_path / "run" / "run.json").read_text())["combine"] == rule
    words = [setting.cache, *setting.models, "--combine", rule, "--plan", "2:3,4:1@5", "--orders", "5"]
    assert avarc("classify", *words) == 2
    assert "scores of parts do not add up" in capsys.readouterr().err


def test_maps_are_means_over_orders_with_their_standard_error(setting, tmp_path):
    words = [setting.cache, *setting.models, "--orders", "6", "--rows", "1", "--npz", tmp_path / "x.npz"]
    assert avarc("-q", "explain", *words, "--out", tmp_path / "x.png") == 0
    with np.load(tmp_path / "x.npz") as file:
        contrast, error = file["log_prob_subject"] - file["log_prob_rival"], file["standard_error_contrast"]
        assert file["map_contrast"].sum() == pytest.approx(contrast.sum(), abs=1e-3)
    assert error.shape == (1, 16) and (error > 0).all()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--orders", "0"], "a number of random orders from 1"),
        (["--orders", "4", "--plan", "2:3,4:1"], "uses 1 of 4 orders"),
        (["--orders", "2", "--plan", "2:3,4:1@4"], "it needs 4 orders"),
        (["--combine", "median"], "no rule 'median'"),
        (["--plan", "4~:3,4:1"], "nothing is left to estimate"),
    ],
)
def test_orders_that_cannot_be_are_refused(setting, capsys, words, says):
    assert avarc("classify", setting.cache, *setting.models, *words) == 2
    assert says in capsys.readouterr().err


def test_a_model_with_a_fixed_order_refuses_orders(setting, capsys):
    assert avarc("classify", setting.folder / "img", "--orders", "4") == 2
    assert "scores its tokens in a fixed order" in capsys.readouterr().err


def test_a_cheap_first_stage_drops_candidates(setting, tmp_path):
    found = run_of(setting, tmp_path / "run", "--plan", "1~:5,4:1@3", "--save-json")
    stages = json.loads((tmp_path / "run" / "json" / "0.json").read_text())["stages"]
    assert stages[0]["estimated"] and len(stages[0]["survivors"]) == 5 and "estimated" not in stages[1]
    assert found[0]["tokens_scored"] == 10 * 10 + 5 * 3 * 16
