"""RAR through the commands that VAR has: files as published, whose tensors tell everything but the size of images."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from PIL import Image
from safetensors import safe_open

from avarc_cli.cli import main
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.tokens import read

CODES = ["--image-size", "16", "--vocab", "16", "--channels", "4", "--width", "32", "--multipliers", "1,1,1"]


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


def write(file, name):
    """The weights of a golden file as published; its arrays."""
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    torch.save({key: torch.from_numpy(value) for key, value in filled.items()}, file)
    return arrays


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rar")
    vq, rar, cache = folder / "maskgit-vqgan.bin", folder / "rar_b.bin", folder / "t.h5"
    arrays = write(vq, "maskgit_vqgan_tiny")
    write(rar, "rar_tiny")
    pixels = np.rint(arrays["image"] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for i, (label, image) in enumerate((label, image) for label in "02" for image in pixels):
        (folder / "img" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(image, 3 * i, axis=0)).save(folder / "img" / label / f"{i}.png")
    words = ["--tokenizer", vq, "--image-size", "64", "--preprocess", "none", "--samples", "3", "--out", cache]
    assert avarc("--quiet", "encode", folder / "img", *words) == 0
    models = ["--model", rar, "--tokenizer", vq]
    return SimpleNamespace(folder=folder, vq=vq, rar=rar, cache=cache, tokens=arrays["indices"], models=models)


def test_images_become_the_references_tokens(setting):
    cache = read(setting.cache)
    assert (str(cache.header.layout), cache.header.image_size) == ("4x4 grid", 64)
    assert np.array_equal(cache.tokens([0])[0, 0], setting.tokens[0])


def test_the_generator_tells_the_size_of_the_images(setting, tmp_path, capsys):
    words = ["encode", setting.folder / "img", "--preprocess", "none"]
    assert avarc(*words, *setting.models, "--out", tmp_path / "t.h5") == 0
    assert np.array_equal(read(tmp_path / "t.h5").tokens([0])[0, 0], setting.tokens[0])
    assert avarc(*words, "--tokenizer", setting.vq, "--out", tmp_path / "u.h5") == 1
    assert "--image-size 256" in capsys.readouterr().err
    assert avarc("classify", setting.cache, *setting.models, "--image-size", "32") == 1
    assert "has 2x2 grid" in capsys.readouterr().err


@pytest.mark.parametrize("plan", ["exhaustive", "2:3,4:1", "1:5,2:2:2,4:1:3", "exhaustive:3"])
def test_plans_prune_row_by_row(setting, tmp_path, plan):
    assert avarc("-q", "classify", setting.cache, *setting.models, "--plan", plan, "--out", tmp_path / "run") == 0
    found = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(found) == 4 and {record["label_id"] for record in found} == {"0", "2"}
    assert (found[0]["tokens_scored"] < 160) == ("," in plan)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_other_precisions_score_nearly_alike(setting, tmp_path, precision):
    words = [setting.cache, *setting.models, "--save-likelihood", "--out"]
    assert avarc("-q", "classify", *words, tmp_path / "fp32") == 0
    assert avarc("-q", "classify", *words, tmp_path / "other", "--precision", precision) == 0
    sums = [np.load(tmp_path / run / "likelihood/0.npz")["log_likelihood"].sum(1) for run in ("fp32", "other")]
    assert np.abs(sums[0] - sums[1]).max() < 0.05 * np.abs(sums[0]).max()


def test_everything_made_of_scores_works(setting, tmp_path):
    run = tmp_path / "run"
    assert avarc("-q", "classify", setting.cache, *setting.models, "--save-likelihood", "--out", run) == 0
    assert avarc("-q", "report", run, "--hardest", "2") == 0
    assert avarc("-q", "export", run, "--per-token", "--out", tmp_path / "e.npz") == 0
    assert np.load(tmp_path / "e.npz")["log_likelihood"].shape == (4, 10, 16)
    for name in ("x.png", "x.html"):
        assert avarc("-q", "explain", setting.cache, *setting.models, "--limit", "2", "--out", tmp_path / name) == 0
    assert avarc("-q", "sample", "1", "2", *setting.models, "--count", "2", "--out", tmp_path / "s.png") == 0
    assert Image.open(tmp_path / "s.png").width > 2 * 64
    tuned = tmp_path / "plan.json"
    assert avarc("-q", "tune", setting.cache, *setting.models, "--agreement", "0.6", "--out", tuned) == 0
    assert avarc("-q", "classify", setting.cache, *setting.models, "--plan", tuned) == 0


def test_classes_are_added_by_every_method_and_old_scores_stay(setting, tmp_path):
    add = ["-q", "add-class", setting.folder / "img" / "0", *setting.models, "--bank", tmp_path / "bank"]
    add += ["--preprocess", "none", "--steps", "2", "--variants", "1"]
    for method, offset in (("embedding", "--no-offset"), ("adaln", "--no-offset"), ("lora", "--offset")):
        assert avarc(*add[:2], method, *add[2:], "--method", method, offset) == 0
    scores = []
    for words in ([], ["--bank", tmp_path / "bank"]):
        run = tmp_path / f"run{len(words)}"
        assert avarc("-q", "classify", setting.cache, *setting.models, *words, "--save-likelihood", "--out", run) == 0
        scores.append(np.load(run / "likelihood" / "0.npz")["log_likelihood"])
    assert len(scores[1]) == 13 and np.array_equal(scores[1][:10], scores[0])


def test_contrastive_fine_tuning_gives_an_adapter_that_is_merged(setting, tmp_path):
    data = [setting.folder / "img", *setting.models, "--augment", "none"]
    steps = ["--rank", "2", "--steps", "2", "--batch-size", "2"]
    assert avarc("-q", "train", "cca", *data, *steps, "--out", tmp_path / "lora") == 0
    assert avarc("-q", "classify", setting.cache, *setting.models, "--lora", tmp_path / "lora") == 0


def test_a_pair_is_trained_and_its_files_tell_what_they_are(setting, tmp_path):
    images, vq, rar = setting.folder / "img", tmp_path / "vq.safetensors", tmp_path / "rar.safetensors"
    few = ["--batch-size", "4", "--augment", "none"]
    assert avarc("-q", "train", "maskgit-vq", images, *CODES, "--blocks", "1", *few, "--steps", "3", "--out", vq) == 0
    shape = ["--depth", "1", "--width", "32", "--heads", "4", "--steps", "4"]
    assert avarc("-q", "train", "rar", images, "--tokenizer", vq, *shape, *few, "--out", rar) == 0
    model = load_model(ModelSpec(str(rar), str(vq)))
    assert (model.likelihood.config.heads, model.likelihood.segment_ends) == (4, (4, 8, 12, 16))
    assert model.classes.ids == ("0", "2") and not model.inferred
    assert avarc("-q", "classify", images, "--model", rar, "--tokenizer", vq) == 0
    base = ["--base", "0", "--tasks", "2", "--tokenizer", vq, "--base-steps", "2", "--base-depth", "1"]
    learning = ["--method", "embedding", "--steps", "2", "--variants", "1", "--baseline", "finetune"]
    assert avarc("-q", "incremental", images, *base, *learning, "--out", tmp_path / "run") == 0
    with safe_open(tmp_path / "run" / "base.safetensors", "np") as file:
        assert file.metadata()["family"] == "rar"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--tokenizer", "digits-vqvae"], "models one square grid"),
        (["--width", "66", "--heads", "4"], "of width 66 cannot have 4 heads"),
    ],
)
def test_a_rar_that_cannot_be_trained_is_refused(setting, tmp_path, capsys, words, says):
    config = tmp_path / "size.json"
    config.write_text('{"resolution": 64}')  # the name in the reference's configuration
    reader = ["--tokenizer", setting.vq, "--tokenizer-config", config]
    words = words if "--tokenizer" in words else [*reader, *words]
    assert avarc("train", "rar", setting.folder / "img", *words, "--out", tmp_path / "x") in {1, 2}
    assert says in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_published_models_are_listed(capsys):
    assert avarc("--json", "models") == 0
    listed = {card["name"]: card for card in json.loads(capsys.readouterr().out)["models"]}
    assert all(f"rar-{size}" in listed for size in ("b", "l", "xl", "xxl"))
    assert avarc("models", "show", "rar-b") == 0
    shown = capsys.readouterr().out
    assert "maskgit-vqgan-256" in shown and "Apache-2.0" in shown


def test_bench_times_it_beside_plain_pytorch(capsys):
    shape = ["--shape", "rar-2:64:4", "--scales", "4", "--pairs", "2", "--rounds", "1", "--precision", "fp32"]
    assert avarc("--json", "bench", *shape) == 0
    results = json.loads(capsys.readouterr().out)["report"]["results"]
    assert [each["name"] for each in results] == ["plain PyTorch", "avarc"]
    assert results[1]["error_max"] < 1e-4
    assert avarc("bench", "--shape", "rar-huge") == 2
    assert "rar-xl" in capsys.readouterr().err
