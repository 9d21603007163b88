"""--weights chooses between weights and their average, which are never confused; folders of shards; --lora-alpha."""

import json

import pytest
import torch
from safetensors.torch import save_file

from avarc_cli.cli import main
from avarc_cli.loading import load_model
from avarc_cli.zoo import cards, registered, weights_index


@pytest.fixture(scope="module")
def both(tiny, tmp_path_factory):
    """Generator and tokenizer with the tiny model as the average, and other trained weights; a cache of the average."""
    folder = tmp_path_factory.mktemp("both")
    for part, name in (("var", "VAR.pth"), ("vae", "VAE.pth")):
        tensors = tiny.tensors(part)
        trained = {k: t * 1.1 if t.is_floating_point() and "attn_bias_for" not in k else t for k, t in tensors.items()}
        torch.save({"model": trained, "model_ema": tensors}, folder / name)
    (folder / "scales.json").write_text(json.dumps({"patch_nums": list(tiny.patch_nums)}))
    return folder


@pytest.fixture
def words(both, tiny_files):
    """Options that name the generator with two sets, and the tokenizer with one."""
    return ["--model", str(both / "VAR.pth"), "--tokenizer", str(tiny_files / "VAE.pth")]


@pytest.fixture(scope="module")
def cache(tiny_files, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache") / "t.h5"
    names = ["--model", str(tiny_files / "VAR.pth"), "--tokenizer", str(tiny_files / "VAE.pth")]
    assert main(["encode", str(tiny_files / "img"), *names, "--preprocess", "none", "--out", str(out)]) == 0
    return out


def classify(cache, out, *words):
    return main(["classify", str(cache), "--out", str(out), *map(str, words)])


def scores(run):
    return [json.loads(line)["score"] for line in (run / "predictions.jsonl").read_text().splitlines()]


def test_the_average_scores_as_it_does_alone_and_its_run_is_another(cache, words, tiny_files, tmp_path, capsys):
    alone, raw, ema = (tmp_path / name for name in ("alone", "raw", "ema"))
    tokenizer = str(tiny_files / "VAE.pth")
    assert classify(cache, alone, "--model", tiny_files / "VAR.pth", "--tokenizer", tokenizer) == 0
    assert classify(cache, raw, *words) == 0
    capsys.readouterr()
    assert classify(cache, ema, *words, "--weights", "ema") == 0
    assert "'model_ema'; the file also has 'model'" in capsys.readouterr().err
    assert scores(ema) == scores(alone) != scores(raw)
    runs = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in ("raw", "ema")}
    assert runs["raw"]["inferred"]["weights"] == "'model'; the file also has 'model_ema'"
    assert runs["ema"]["inferred"]["weights"] == "'model_ema'; the file also has 'model'"
    assert runs["raw"]["model"]["sha256"] != runs["ema"]["model"]["sha256"]
    assert classify(cache, raw, *words, "--weights", "ema") == 2, "a run is not continued with other weights"
    assert classify(cache, raw, *words, "--weights", "model") == 0, "but with the same ones, named"


def test_an_absent_set_is_refused(cache, words, tmp_path, capsys):
    assert classify(cache, tmp_path / "r", *words, "--weights", "best") == 2
    err = capsys.readouterr().err
    assert "has no weights 'best'" in err and "'model', 'model_ema'" in err
    assert not (tmp_path / "r").exists()


def test_a_bank_of_the_average_is_refused_for_the_trained_weights(setting, both, tiny_files, tmp_path, capsys):
    words = ["--model", str(both / "VAR.pth"), *setting.models[2:]]
    bank = ["--bank", str(tmp_path / "bank")]
    fit = ["--method", "embedding", "--steps", "2", "--batch-size", "4", "--no-offset"]
    assert main(["add-class", "amber", str(setting.cache), *words, "--weights", "ema", *fit, *bank]) == 0
    capsys.readouterr()
    assert classify(setting.cache, tmp_path / "raw", *words, *bank) == 2
    assert "sha256" in capsys.readouterr().err
    assert classify(setting.cache, tmp_path / "ema", *words, *bank, "--weights", "ema") == 0


def test_tokens_of_a_tokenizers_average_are_told_from_those_of_its_trained_weights(both, tiny_files, tmp_path, capsys):
    encode = ["encode", str(tiny_files / "img"), "--tokenizer", str(both / "VAE.pth"), "--preprocess", "none"]
    encode += ["--tokenizer-config", str(both / "scales.json"), "--out"]
    assert main([*encode, str(tmp_path / "raw.h5")]) == 0
    assert main([*encode, str(tmp_path / "ema.h5"), "--tokenizer-weights", "ema"]) == 0
    model = ["--model", tiny_files / "VAR.pth", "--tokenizer", both / "VAE.pth", "--tokenizer-weights", "ema"]
    assert classify(tmp_path / "ema.h5", tmp_path / "r", *model) == 0
    capsys.readouterr()
    assert classify(tmp_path / "raw.h5", tmp_path / "s", *model) == 1
    assert "tokenizer sha256" in capsys.readouterr().err


@pytest.mark.usefixtures("home")
def test_a_name_may_stand_for_the_average(both, tiny, tiny_files, capsys):
    scales = ",".join(map(str, tiny.patch_nums))
    assert main(["models", "add", "vq", str(both / "VAE.pth"), "--weights", "ema", "--patch-nums", scales]) == 0
    assert cards.tokenizer_card("vq").weights.weight_set == "ema"
    one = tiny_files / "VAE.pth"
    for name, chosen in (("raw", []), ("avg", ["--weights", "ema"])):
        assert main(["models", "add", name, str(both / "VAR.pth"), "--tokenizer", str(one), *chosen]) == 0
    raw, average = load_model("raw"), load_model("avg")
    assert torch.equal(average.likelihood.var.head.weight, tiny.tensors("var")["head.weight"])
    assert not torch.equal(raw.likelihood.var.head.weight, average.likelihood.var.head.weight)
    assert raw.sha256 != average.sha256
    for weight_set in (None, "ema"):
        assert weights_index.is_indexed(both / "VAR.pth", weight_set)
    assert registered.load().names == ["raw", "avg", "vq"]
    assert main(["models", "remove", "raw"]) == 0
    assert weights_index.is_indexed(both / "VAR.pth", "ema"), "another name needs it"


@pytest.mark.usefixtures("home")
def test_a_folder_of_shards_is_used_and_registered_like_a_file(cache, tiny, tiny_files, tmp_path, capsys):
    folder, tensors = tmp_path / "shards", tiny.tensors("var")
    folder.mkdir()
    places = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(sorted(tensors))}
    for shard in set(places.values()):
        save_file({key: tensors[key] for key in tensors if places[key] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    tokenizer = ["--tokenizer", str(tiny_files / "VAE.pth")]
    assert classify(cache, tmp_path / "r", "--model", folder, *tokenizer) == 0
    assert main(["models", "add", "mine", str(folder), *tokenizer]) == 0
    assert classify(cache, tmp_path / "s", "--model", "mine") == 0
    assert scores(tmp_path / "r") == scores(tmp_path / "s")
    digests = [json.loads((tmp_path / name / "run.json").read_text())["model"]["sha256"] for name in "rs"]
    assert digests[0] == digests[1]
    assert main(["models", "verify", "mine"]) == 0
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    capsys.readouterr()
    assert main(["models", "verify", "mine"]) == 1
    assert shard.name in capsys.readouterr().err.replace("\n", "")
    shard.unlink()
    assert classify(cache, tmp_path / "t", "--model", "mine") == 1
    assert f"{shard.name} is missing" in capsys.readouterr().err


def test_the_scale_of_lora_tensors_is_recorded(cache, tiny, tiny_files, tmp_path, capsys):
    tensors = {key: tensor for key, tensor in tiny.tensors("var").items() if key != "head.weight"}
    weight = tiny.tensors("var")["head.weight"]
    a, b = torch.ones(1, weight.shape[1]), torch.full((weight.shape[0], 1), 0.01)
    adapted = {"head.base_layer.weight": weight, "head.lora_A.default.weight": a, "head.lora_B.default.weight": b}
    torch.save(tensors | adapted, tmp_path / "lora.pth")
    words = ["--model", tmp_path / "lora.pth", "--tokenizer", tiny_files / "VAE.pth"]
    assert classify(cache, tmp_path / "r", *words) == 1
    assert "--lora-alpha" in capsys.readouterr().err
    assert classify(cache, tmp_path / "r", *words, "--lora-alpha", "2") == 0
    recorded = json.loads((tmp_path / "r" / "run.json").read_text())["lora"]
    assert recorded == "1 matrices of rank 1 merged with alpha 2 (from --lora-alpha)"
