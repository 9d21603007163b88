"""CCA fine-tuning: the loss as published, and students that train no more than they should."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from avarc_cli.cli import main
from avarc_cli.errors import UsageError
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.train.cca import Contrast, adapter_of, student_of

DIGITS = "avarc_cli/assets/digits"
SHORT = ["--augment", "affine", "--steps", "2", "--batch-size", "4", "--lr", "1e-3"]


def test_the_loss_is_the_papers():
    own, other = [30.0, -10.0], [5.0, -40.0]

    def log_sigmoid(x):
        return -math.log1p(math.exp(-x))

    beta, weight = 0.02, 300.0
    first = -log_sigmoid(beta * own[0]) - weight * log_sigmoid(-beta * other[0])
    second = -log_sigmoid(beta * own[1]) - log_sigmoid(beta * other[1])  # its class was dropped: a positive
    contrast = Contrast(beta=beta, weight=weight)
    loss = contrast.loss(torch.tensor(own + other), torch.tensor([True, False]))
    assert loss.item() == pytest.approx((first + second) / 2 / weight, rel=1e-6)
    small = Contrast(beta=beta, weight=0.5).loss(torch.tensor(own + other), torch.tensor([True, True]))
    assert small.item() == pytest.approx(
        sum(-log_sigmoid(beta * a) - 0.5 * log_sigmoid(-beta * b) for a, b in zip(own, other, strict=True)) / 2
    ), "a weight below 1 does not enlarge the loss"


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"weight": -1.0}, {"class_dropout": 1.0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match="beta is above 0"):
        Contrast(**wrong)


def test_a_student_begins_as_its_teacher_and_shares_nothing(tiny):
    var = tiny.var()
    whole = student_of(var, 0, torch.Generator())
    assert all(
        p.requires_grad and p.data_ptr() != q.data_ptr()
        for p, q in zip(whole.parameters(), var.parameters(), strict=True)
    )
    adapted = student_of(var, 2, torch.Generator().manual_seed(0))
    x = torch.randn(3, var.config.width)
    for block, taught in zip(var.layers, adapted.layers, strict=True):
        assert torch.equal(block.ffn.fc1(x), taught.ffn.fc1(x))
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all("parametrizations.weight.0" in name for name in trained)
    names = {name.split(".", 2)[2] for name in adapter_of(adapted)}
    assert names == {"attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2"}


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
    asked = {name: json.loads((run / "run.json").read_text())["model"] for name, run in runs.items()}
    assert asked["with"]["name"] == "digits with adapter" and asked["with"]["sha256"] != asked["without"]["sha256"]
    scores = {name: json.loads((run / "json" / "0.json").read_text())["stages"][0] for name, run in runs.items()}
    assert scores["with"]["score"] != scores["without"]["score"], "and classify uses what it has learnt"


def test_images_of_classes_that_the_model_does_not_have_are_refused(tmp_path, request, capsys):
    (tmp_path / "img" / "eleven").mkdir(parents=True)
    source = next((request.config.rootpath / DIGITS / "test").rglob("*.png"))
    (tmp_path / "img" / "eleven" / "a.png").write_bytes(source.read_bytes())
    assert main(["train", "cca", str(tmp_path / "img"), *SHORT, "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "none called eleven" in capsys.readouterr().err
