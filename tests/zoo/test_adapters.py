"""LoRA adapters in PEFT's folder format are merged as PEFT merges them, or rejected."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.zoo.checkpoint import read, with_adapter

TARGETS = ["attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2"]


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "base.safetensors"
    save_file({"blocks.0.ffn.fc1.weight": torch.randn(6, 4), "blocks.0.ffn.fc1.bias": torch.randn(6)}, path)
    return read(path)


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    prefix = "base_model.model.blocks.0.ffn.fc1"
    tensors = {f"{prefix}.lora_A.weight": torch.randn(2, 4), f"{prefix}.lora_B.weight": torch.randn(6, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8}))
    return folder


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_adds_alpha_over_r_times_b_a(base, adapter, name):
    a, b = load_file(adapter / "adapter_model.safetensors").values()
    if name.endswith(".bin"):  # written by older versions of PEFT
        torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / name)
        (adapter / "adapter_model.safetensors").unlink()
    merged = with_adapter(base, adapter)
    key = "blocks.0.ffn.fc1.weight"
    assert torch.allclose(merged.tensors[key], base.tensors[key] + 4 * b @ a)
    assert torch.equal(merged.tensors["blocks.0.ffn.fc1.bias"], base.tensors["blocks.0.ffn.fc1.bias"])
    assert merged.sha256 != base.sha256 and "alpha 8" in merged.metadata["lora"]


def test_peft_merges_to_the_same_weights(tiny, tmp_path):
    peft = pytest.importorskip("peft", reason="needs avarc[peft]")
    torch.manual_seed(1)
    var = tiny.var()
    save_file({key: value.contiguous() for key, value in var.state_dict().items()}, tmp_path / "base.safetensors")
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False)
    model = peft.get_peft_model(tiny.var(), config)
    model.save_pretrained(tmp_path / "adapter")
    theirs = model.merge_and_unload().state_dict()
    ours = with_adapter(read(tmp_path / "base.safetensors"), tmp_path / "adapter").tensors
    assert theirs.keys() == ours.keys() and not torch.equal(
        ours["blocks.0.attn.proj.weight"], var.blocks[0].attn.proj.weight
    )
    assert all(torch.allclose(theirs[key], ours[key], atol=1e-6) for key in theirs)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_peft_trained_are_taken_over(tiny, tmp_path, bias):
    peft = pytest.importorskip("peft", reason="needs avarc[peft]")
    torch.manual_seed(1)
    save_file({k: v.contiguous() for k, v in tiny.var().state_dict().items()}, tmp_path / "base.safetensors")
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, init_lora_weights=False, bias=bias)
    model = peft.get_peft_model(tiny.var(), config)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    theirs = model.merge_and_unload().state_dict()
    ours = with_adapter(read(tmp_path / "base.safetensors"), tmp_path / "adapter").tensors
    assert not torch.equal(ours["blocks.0.ffn.fc1.bias"], tiny.var().state_dict()["blocks.0.ffn.fc1.bias"])
    assert all(torch.allclose(theirs[key], ours[key], atol=1e-6) for key in theirs)


def test_peft_loads_our_adapters(tiny, tmp_path):
    peft = pytest.importorskip("peft", reason="needs avarc[peft]")
    from avarc_cli.layers import low_rank
    from avarc_cli.train.cca import student_of
    from avarc_cli.train.save import save_lora

    model = tiny.likelihood()
    var, student = model.network, student_of(model, 2, torch.Generator().manual_seed(0)).network
    with torch.no_grad():
        for change in low_rank.attached(student).values():
            change.b.normal_(generator=torch.Generator().manual_seed(1))
    save_lora(low_rank.attached(student), tmp_path / "ours", base_sha256="0")
    theirs = peft.PeftModel.from_pretrained(tiny.var(), tmp_path / "ours").merge_and_unload()
    for block, taught in zip(theirs.blocks, student.layers, strict=True):
        assert torch.allclose(block.attn.proj.weight, taught.attn.proj.weight, atol=1e-6)
        assert not torch.equal(block.ffn.fc2.weight, var.blocks[0].ffn.fc2.weight)


def test_tensors_without_low_rank_replace_the_models(base, adapter):
    file = adapter / "adapter_model.safetensors"
    bias = torch.zeros(6)
    save_file(load_file(file) | {"base_model.model.blocks.0.ffn.fc1.bias": bias}, file)
    assert torch.equal(with_adapter(base, adapter).tensors["blocks.0.ffn.fc1.bias"], bias)


def test_an_adapter_for_another_model_is_rejected_with_both_hashes(base, adapter):
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file), file, {"base_sha256": "f00d"})
    with pytest.raises(CheckpointError, match=f"sha256 f00d; .*{base.sha256}"):
        with_adapter(base, adapter)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), UsageError, "no adapter_config.json"),
        (lambda d: (d / "adapter_model.safetensors").unlink(), UsageError, "no adapter_model.safetensors or"),
        (shutil.rmtree, UsageError, "contains no LoRA adapter"),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"\x10"), CheckpointError, "adapter_model"),
        (lambda d: (d / "adapter_config.json").write_text("{"), CheckpointError, "cannot be read"),
        (
            lambda d: (d / "adapter_config.json").write_text('{"lora_alpha": 1, "use_dora": true}'),
            CheckpointError,
            "use_dora",
        ),
        (
            lambda d: save_file({"x.lora_A.weight": torch.ones(2, 4)}, d / "adapter_model.safetensors"),
            CheckpointError,
            "x",
        ),
        (
            lambda d: save_file({"y.weight": torch.ones(2)}, d / "adapter_model.safetensors"),
            CheckpointError,
            "does not fit",
        ),
    ],
)
def test_an_invalid_adapter_is_rejected(base, adapter, damage, error, message):
    damage(adapter)
    with pytest.raises(error, match=message):
        with_adapter(base, adapter)
