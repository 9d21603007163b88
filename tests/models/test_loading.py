"""Weights that are wrong are told so: the file, the first few keys, and what was expected."""

import numpy as np
import pytest
import torch
from conftest import load_golden

from avarc_cli.cli import main
from avarc_cli.errors import AvarcError, CheckpointError, UsageError
from avarc_cli.loading import load_model, load_tokenizer
from avarc_cli.models.var import VAR
from avarc_cli.models.vqvae import VQVAE


def test_the_configuration_is_read_off_the_tensors(golden):
    config, said = golden.var().config, golden.meta["config"]
    assert config.patch_nums == golden.patch_nums and config.num_classes == said["num_classes"]
    assert (config.depth, config.width, config.heads) == (said["depth"], said["embed_dim"], said["num_heads"])
    assert (config.shared_aln, config.qk_norm) == (said["shared_aln"], said["attn_l2_norm"])
    vqvae = golden.vqvae().config
    assert (vqvae.vocab_size, vqvae.z_channels, vqvae.ch) == (said["vocab_size"], said["z_channels"], said["ch"])


def test_missing_misshaped_and_unknown_keys_are_named(tiny):
    tensors = tiny.tensors("var")
    del tensors["blocks.1.ffn.fc1.weight"], tensors["head.bias"]
    tensors["blocks.0.attn.proj.bias"] = torch.zeros(7)
    tensors["blocks.0.surprise"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        VAR.from_state_dict(tensors, source="here.pth")
    message = str(error.value)
    assert "here.pth does not fit a VAR" in message and "head.bias" in message
    assert "2 missing" in message and "(7,) instead of (128,)" in message and "blocks.0.surprise" in message


@pytest.mark.parametrize("key", ["class_emb.weight", "lvl_1L", "pos_start", "head.weight", "blocks.0.ffn.fc1.weight"])
def test_a_file_without_a_telling_tensor_is_no_var(tiny, key):
    tensors = tiny.tensors("var")
    del tensors[key]
    with pytest.raises(CheckpointError, match="VAR"):
        VAR.from_state_dict(tensors)


@pytest.mark.parametrize("level", [[0, 1, 1, 1], [0] * 30, [2] + [0] * 29, [], [-1] * 30])
def test_scales_that_make_no_sense_are_refused(tiny, level):
    tensors = tiny.tensors("var") | {"lvl_1L": torch.tensor([level], dtype=torch.long)}
    with pytest.raises(CheckpointError, match="lvl_1L"):
        VAR.from_state_dict(tensors)


def test_values_that_are_not_finite_are_refused(tiny):
    tensors = tiny.tensors("var")
    tensors["head.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        VAR.from_state_dict(tensors)


def test_a_tokenizer_and_a_generator_in_each_others_place_are_recognised(tiny, tiny_files):
    var, vae = str(tiny_files / "VAR.pth"), str(tiny_files / "VAE.pth")
    with pytest.raises(CheckpointError, match="VAR transformer"):
        load_model(vae, vae)
    with pytest.raises(UsageError, match="generator"):
        load_tokenizer(var, var)
    with pytest.raises(CheckpointError, match="VQ-VAE"):
        VQVAE.from_state_dict(tiny.tensors("var"), (1, 2))


def test_a_generator_file_needs_its_tokenizer(tiny_files):
    with pytest.raises(UsageError, match="which tokenizer"):
        load_model(str(tiny_files / "VAR.pth"))


def test_a_tokenizer_of_another_codebook_is_refused(tmp_path):
    torch.save(load_golden("var_tiny_shared_aln").tensors("var"), tmp_path / "VAR.pth")
    with pytest.raises(AvarcError, match="another tokenizer") as error:
        load_model(str(tmp_path / "VAR.pth"), "digits-vqvae")
    assert "64 codes of 8" in error.value.why and "128 of 8" in error.value.why


def test_wrappers_half_precision_and_safetensors_load_alike(tiny, tiny_files, tmp_path):
    from safetensors.torch import save_file

    tensors = tiny.tensors("var")
    variants = {
        "bare.pth": tensors,
        "var.pth": {"var_wo_ddp": tensors},
        "ddp.pth": {"trainer": {"var_wo_ddp": {f"module.{k}": v for k, v in tensors.items()}}},
        "compiled.pth": {f"_orig_mod.{k}": v for k, v in tensors.items()},
    }
    for name, content in variants.items():
        torch.save(content, tmp_path / name)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "var.safetensors")
    for name in (*variants, "var.safetensors"):
        model = load_model(str(tmp_path / name), str(tiny_files / "VAE.pth"))
        assert torch.equal(model.likelihood.var.head.weight, tensors["head.weight"]), name


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 nonsense", b"\x80\x02."])
def test_a_damaged_file_is_one_message_through_the_command_line(tiny_files, tmp_path, capsys, content):
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(content)
    image = str(tiny_files / "img" / "000.png")
    assert main(["classify", image, "--model", str(damaged), "--tokenizer", str(tiny_files / "VAE.pth")]) == 1
    err = capsys.readouterr().err
    assert "damaged.pth" in err and "Traceback" not in err and "bug" not in err


def test_the_command_lines_tokens_are_the_networks_own(golden, tmp_path):
    """The loaded tokenizer may lay out memory as it likes (channels_last): tokens are exact all the same."""
    torch.save(golden.tensors("vae"), tmp_path / "VAE.pth")
    tokenizer = load_tokenizer(str(tmp_path / "VAE.pth"), patch_nums=golden.patch_nums)
    with torch.inference_mode():
        tokens = tokenizer.quantize(tokenizer.encode(golden.images()))
    assert np.array_equal(tokens.numpy(), golden.arrays["tokens"])
