"""LlamaGen through the commands that VAR has: files as published, with a config.json beside them."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from PIL import Image
from safetensors import safe_open

from avarc_cli.cli import main
from avarc_cli.layers.precision import missing
from avarc_cli.loading import ModelSpec, load_tokenizer
from avarc_cli.tokens import read


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


def write(folder, file, name):
    """The weights of a golden file as published, its configuration beside them; (meta, arrays)."""
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    folder.mkdir()
    torch.save({"model": {key: torch.from_numpy(value) for key, value in filled.items()}}, folder / file)
    (folder / "config.json").write_text(json.dumps(meta["config"]))
    return meta, arrays


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llamagen")
    _, arrays = write(folder / "vq", "vq_ds16_c2i.pt", "llamagen_vq_tiny")
    write(folder / "gpt", "c2i_B_256.pt", "llamagen_gpt_tiny")
    pixels = np.rint((arrays["image"] + 1) / 2 * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for i, (label, image) in enumerate((label, image) for label in "02" for image in pixels):
        (folder / "img" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(image, 3 * i, axis=0)).save(folder / "img" / label / f"{i}.png")
    vq, gpt = folder / "vq" / "vq_ds16_c2i.pt", folder / "gpt" / "c2i_B_256.pt"
    cache = folder / "t.h5"
    images = [folder / "img", "--tokenizer", vq, "--preprocess", "none"]
    assert avarc("--quiet", "encode", *images, "--samples", "3", "--out", cache) == 0
    return SimpleNamespace(
        folder=folder, vq=vq, gpt=gpt, cache=cache, tokens=arrays["tokens"], models=["--model", gpt, "--tokenizer", vq]
    )


def test_images_become_the_references_tokens(setting):
    cache = read(setting.cache)
    assert (str(cache.header.layout), cache.header.image_size) == ("4x4 grid", 64)
    assert np.array_equal(cache.tokens([0])[0, 0], setting.tokens[0])


@pytest.mark.parametrize("plan", ["exhaustive", "2:3,4:1", "1:5,2:2:2,4:1:3", "exhaustive:3"])
def test_plans_prune_row_by_row(setting, tmp_path, plan):
    assert avarc("-q", "classify", setting.cache, *setting.models, "--plan", plan, "--out", tmp_path / "run") == 0
    found = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(found) == 4 and {record["label_id"] for record in found} == {"0", "2"}
    assert (found[0]["tokens_scored"] < 160) == ("," in plan and plan[-2:] != ":3")


FEW = ["--batch-size", "2", "--steps", "1", "--augment", "none"]


def test_a_tokenizer_is_fine_tuned_from_a_published_file(setting, tmp_path, capsys):
    """As the one of LlamaGen's models of captions."""
    images, out = setting.folder / "img", tmp_path / "vq.safetensors"
    words = ["train", "vq", images, "--start-from", setting.vq, "--image-size", "64", *FEW, "--lr", "1e-5"]
    assert avarc(*words, "--out", out) == 0
    before, after = (load_tokenizer(str(path)).network.state_dict() for path in (setting.vq, out))
    assert before.keys() == after.keys()
    moved = [(after[key] - before[key]).abs().max().item() for key in before]
    assert max(moved) > 0 and max(moved) < 1e-3, "it began with these weights"
    capsys.readouterr()
    for wrong, code, says in (
        (["--vocab", "16"], 2, "no use for --vocab with --start-from"),
        (["--image-size", "40"], 1, "cannot read images of 40 pixels"),
        (["--start-from", setting.gpt], 1, "is not a tokenizer that avarc knows"),
        (["--start-from", "digits-vqvae"], 2, "it holds a"),
        (["--start-from", "nowhere.pt"], 2, "nowhere.pt"),
    ):
        ended = avarc(*words, *wrong, "--out", tmp_path / "no.st")
        said = " ".join(capsys.readouterr().err.split())
        assert (ended, "Traceback" in said, says in said) == (code, False, True), said
        assert not (tmp_path / "no.st").exists()


@pytest.mark.parametrize("precision", ["bf16", "int16", "int8"])
def test_other_precisions_score_nearly_alike(setting, tmp_path, precision):
    if why := missing(precision, torch.device("cpu")):
        pytest.skip(why)
    words = [setting.cache, *setting.models, "--save-likelihood", "--out"]
    assert avarc("-q", "classify", *words, tmp_path / "fp32") == 0
    assert avarc("-q", "classify", *words, tmp_path / "other", "--precision", precision) == 0
    sums = [np.load(tmp_path / run / "likelihood/0.npz")["log_likelihood"].sum(1) for run in ("fp32", "other")]
    assert np.abs(sums[0] - sums[1]).max() < 0.05 * np.abs(sums[0]).max()


def test_ten_crops_are_encoded_averaged_and_explained(setting, tmp_path):
    images = tmp_path / "img"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (71, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "a.png")
    words = [images, *setting.models, "--preprocess", "adm", "--ten-crop"]
    assert avarc("-q", "classify", *words, "--save-json", "--out", tmp_path / "run") == 0
    cache, square = read(tmp_path / "run/tokens.h5"), Image.fromarray(pixels)  # int(64 * 1.1) is 70
    square = square.resize((round(90 * 70 / 71), 70), Image.Resampling.BICUBIC).crop((9, 0, 79, 70))
    corners = [(3, 3), (0, 0), (6, 0), (0, 6), (6, 6)]
    mirrored = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    crops = [each.crop((x, y, x + 64, y + 64)) for each in (square, mirrored) for x, y in corners]
    reader = load_tokenizer(ModelSpec(str(setting.gpt), str(setting.vq)))
    shown = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    assert np.array_equal(cache.tokens([0])[0], reader.quantize(reader.encode(shown)).numpy())
    (tmp_path / "crops").mkdir()
    for i, crop in enumerate(crops):
        crop.save(tmp_path / "crops" / f"{i}.png")
    words = [tmp_path / "crops", *setting.models, "--preprocess", "none", "--save-json", "--out", tmp_path / "each"]
    assert avarc("-q", "classify", *words) == 0
    scores = [log_likelihoods(tmp_path / "each", row) for row in range(10)]
    assert np.allclose(log_likelihoods(tmp_path / "run", 0), np.mean(scores, 0), atol=1e-3)
    words = [cache.path, *setting.models, "--plan", "2:3:10,4:1:10", "--out", tmp_path / "x.html"]
    assert avarc("-q", "explain", *words) == 0


def log_likelihoods(run, row):
    """Of one image under each class."""
    return json.loads((run / f"json/{row}.json").read_text())["stages"][0]["log_likelihood"]


def test_everything_made_of_scores_works_on_one_grid(setting, tmp_path):
    run = tmp_path / "run"
    assert avarc("-q", "classify", setting.cache, *setting.models, "--save-likelihood", "--out", run) == 0
    assert avarc("-q", "report", run, "--hardest", "2") == 0
    assert avarc("-q", "export", run, "--per-token", "--out", tmp_path / "e.npz") == 0
    assert np.load(tmp_path / "e.npz")["log_likelihood"].shape == (4, 10, 16)
    for name in ("x.png", "x.svg", "x.html"):
        assert avarc("-q", "explain", setting.cache, *setting.models, "--limit", "2", "--out", tmp_path / name) == 0
    assert avarc("-q", "sample", "1", "2", *setting.models, "--count", "2", "--out", tmp_path / "s.png") == 0
    assert Image.open(tmp_path / "s.png").width > 256


def test_classes_are_added_by_embedding_and_lora_and_old_scores_stay(setting, tmp_path):
    add = ["-q", "add-class", setting.folder / "img" / "0", *setting.models, "--bank", tmp_path / "bank"]
    add += ["--preprocess", "none", "--steps", "2", "--variants", "1"]
    for name, method, offset in (("one", "embedding", "--no-offset"), ("two", "lora", "--offset")):
        assert avarc(*add[:2], name, *add[2:], "--method", method, offset) == 0
    scores = []
    for words in ([], ["--bank", tmp_path / "bank"]):
        run = tmp_path / f"run{len(words)}"
        assert avarc("-q", "classify", setting.cache, *setting.models, *words, "--save-likelihood", "--out", run) == 0
        scores.append(np.load(run / "likelihood" / "0.npz")["log_likelihood"])
    assert len(scores[1]) == 12 and np.array_equal(scores[1][:10], scores[0])


def test_a_method_that_the_family_does_not_have_is_refused(setting, tmp_path, capsys):
    words = ["new", setting.folder / "img/0", *setting.models, "--preprocess", "none", "--bank", tmp_path / "bank"]
    assert avarc("add-class", *words, "--method", "adaln", "--steps", "1", "--variants", "1") == 2
    assert "method 'adaln' does not apply to the family 'llamagen'" in capsys.readouterr().err


def test_contrastive_fine_tuning_gives_an_adapter_that_is_merged(setting, tmp_path):
    data = [setting.folder / "img", *setting.models, "--augment", "none"]
    steps = ["--rank", "2", "--steps", "2", "--batch-size", "2"]
    assert avarc("-q", "train", "cca", *data, *steps, "--out", tmp_path / "lora") == 0
    assert avarc("-q", "classify", setting.cache, *setting.models, "--lora", tmp_path / "lora") == 0


def test_the_incremental_protocol_trains_a_base_model_of_the_tokenizers_family(setting, tmp_path):
    base = ["--base", "0", "--tasks", "2", "--tokenizer", setting.vq, "--base-steps", "2", "--base-depth", "1"]
    learning = ["--method", "embedding", "--steps", "2", "--variants", "1", "--baseline", "finetune"]
    assert avarc("-q", "incremental", setting.folder / "img", *base, *learning, "--out", tmp_path / "run") == 0
    with safe_open(tmp_path / "run" / "base.safetensors", "np") as file:
        assert file.metadata()["family"] == "llamagen" and file.metadata()["block_size"] == "16"
    assert json.loads((tmp_path / "run" / "incremental.json").read_text())


def test_a_caches_pictures_need_its_tokenizer_alone(setting, tmp_path):
    words = ["-q", "cache", "head", setting.cache, "--rows", "2", "--picture", tmp_path / "rows.png"]
    assert avarc(*words, "--tokenizer", setting.vq) == 0
    assert Image.open(tmp_path / "rows.png").width > 3 * 64, "the image and two samples"


def test_an_image_size_gives_another_grid_where_the_tokenizer_allows_it(setting, tmp_path, capsys):
    small = tmp_path / "img"
    small.mkdir()
    Image.new("RGB", (40, 48), "teal").save(small / "a.png")
    words = ["encode", small, "--tokenizer", setting.vq, "--preprocess", "adm", "--image-size"]
    assert avarc(*words, "32", "--out", tmp_path / "t.h5") == 0
    header = read(tmp_path / "t.h5").header
    assert (str(header.layout), header.preprocess.split(";")[0]) == ("2x2 grid", "adm 32 box, bicubic")
    assert avarc("classify", tmp_path / "t.h5", *setting.models, "--image-size", "32") == 1
    message = capsys.readouterr().err
    assert "trained with layout 4x4 grid" in message and "has 2x2 grid" in message
    (tmp_path / "gpt").mkdir()  # without config.json, which states the grid
    shutil.copy(setting.gpt, tmp_path / "gpt")
    heads = tmp_path / "heads.json"
    heads.write_text('{"n_head": 4}')
    alone = ["--model", tmp_path / "gpt" / setting.gpt.name, *setting.models[2:], "--model-config", heads]
    assert avarc("-q", "classify", tmp_path / "t.h5", *alone, "--image-size", "32") == 0
    assert avarc(*words, "33", "--out", tmp_path / "u.h5") == 1
    assert "name a multiple of 16 with --image-size" in capsys.readouterr().err
    assert avarc("encode", small, "--image-size", "32", "--out", tmp_path / "u.h5") == 2
    assert "digits-vqvae does not read images of 32 pixels" in capsys.readouterr().err


def test_files_in_each_others_place_are_refused_in_words(setting, tmp_path, capsys):
    assert avarc("classify", setting.cache, "--model", setting.vq, "--tokenizer", setting.vq) == 1
    assert "is not a generator that avarc knows" in capsys.readouterr().err
    assert avarc("encode", setting.folder / "img", "--tokenizer", setting.gpt, "--out", tmp_path / "t.h5") == 2
    assert "is a generator, not a tokenizer" in capsys.readouterr().err
    assert avarc("classify", setting.cache, "--model", "digits", "--tokenizer", setting.vq) == 1
    assert "reads the tokens of another tokenizer" in capsys.readouterr().err


def test_a_caption_model_is_listed_and_says_what_it_needs(setting, capsys):
    assert avarc("--json", "models") == 0
    listed = {card["name"]: card for card in json.loads(capsys.readouterr().out)["models"]}
    assert listed["llamagen-t2i-xl-256"]["condition"] == "caption" and listed["llamagen-b-256"]["condition"] == "class"
    assert avarc("classify", setting.cache, "--model", "llamagen-t2i-xl-256", "--yes") == 2
    assert "name captions: --captions FILE or --template" in capsys.readouterr().err


def test_bench_times_it_beside_plain_pytorch(capsys):
    shape = ["--shape", "llamagen-2:64:4", "--scales", "4", "--pairs", "2", "--rounds", "1", "--precision", "fp32"]
    assert avarc("--json", "bench", *shape) == 0
    results = json.loads(capsys.readouterr().out)["report"]["results"]
    assert [each["name"] for each in results] == ["plain PyTorch", "avarc"]
    assert results[1]["error_max"] < 1e-4
    assert avarc("bench", "--shape", "llamagen-huge") == 2
    assert "llamagen-xl" in capsys.readouterr().err
