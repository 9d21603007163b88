"""`avarc train cca`: a whole model, and an adapter that PEFT and `avarc classify --lora` load."""

import json

import torch
from safetensors.torch import load_file

from avarc_cli.cli import main
from avarc_cli.loading import ModelSpec, load_model

DIGITS = "avarc_cli/assets/digits"


SHORT = ["--augment", "affine", "--steps", "2", "--batch-size", "4", "--lr", "1e-3"]


def test_the_whole_model_is_trained_and_saved_as_a_model(tmp_path, request):
    out = tmp_path / "cca.safetensors"
    images = str(request.config.rootpath / DIGITS / "test")
    assert main(["train", "cca", images, *SHORT, "--out", str(out)]) == 0
    model, base = load_model(ModelSpec(str(out), "digits-vqvae")), load_model("digits")
    assert model.classes.ids == base.classes.ids
    pairs = zip(model.likelihood.var.parameters(), base.likelihood.var.parameters(), strict=True)
    assert not any(torch.equal(ours, theirs) for ours, theirs in pairs)
    assert not out.with_name(out.name + ".ckpt").exists()


def test_an_adapter_is_a_folder_as_peft_reads_it(tmp_path, request):
    out = tmp_path / "adapter"
    images = str(request.config.rootpath / DIGITS / "test")
    assert main(["train", "cca", images, *SHORT, "--rank", "2", "--out", str(out)]) == 0
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["r"] == config["lora_alpha"] == 2
    tensors = load_file(out / "adapter_model.safetensors")
    assert tensors["base_model.model.blocks.0.attn.mat_qkv.lora_A.weight"].shape == (2, 128)
    assert all(t.abs().max() > 0 for t in tensors.values()), "and it has learnt something"

    runs = {name: tmp_path / name for name in ("with", "without")}
    cache = str(tmp_path / "t.h5")
    assert main(["encode", images, "--limit", "3", "--out", cache]) == 0
    for name, options in {"with": ["--lora", str(out)], "without": []}.items():
        assert main(["classify", cache, *options, "--save-json", "--out", str(runs[name])]) == 0
    recorded = {name: json.loads((run / "run.json").read_text()) for name, run in runs.items()}
    assert recorded["with"]["lora"].startswith("16 matrices of rank 2") and "lora" not in recorded["without"]
    asked = {name: run["model"] for name, run in recorded.items()}
    assert asked["with"]["name"] == "digits with adapter" and asked["with"]["sha256"] != asked["without"]["sha256"]
    scores = {name: json.loads((run / "json" / "0.json").read_text())["stages"][0] for name, run in runs.items()}
    assert scores["with"]["score"] != scores["without"]["score"], "and classify uses what it has learnt"


def test_images_of_classes_that_the_model_does_not_have_are_refused(tmp_path, request, capsys):
    (tmp_path / "img" / "eleven").mkdir(parents=True)
    source = next((request.config.rootpath / DIGITS / "test").rglob("*.png"))
    (tmp_path / "img" / "eleven" / "a.png").write_bytes(source.read_bytes())
    assert main(["train", "cca", str(tmp_path / "img"), *SHORT, "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "none called eleven" in capsys.readouterr().err
