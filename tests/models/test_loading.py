"""Weights that are wrong are named: the file, the first few keys, and what was expected."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_golden, read_var
from safetensors.torch import save_file

import avarc_cli
from avarc_cli import environment
from avarc_cli.devices import pick_device
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layout import TokenLayout
from avarc_cli.loading import ModelSpec, load_model, load_tokenizer
from avarc_cli.models.var.config import read_config
from avarc_cli.models.var.network import VAR
from avarc_cli.tokenizers.vqvae.family import FAMILY as VQVAE_FAMILY
from avarc_cli.zoo.published import SCALES_256, SCALES_512

DIGITS = Path(avarc_cli.__file__).parent / "assets" / "digits"
TF32 = torch.backends.cuda.matmul, torch.backends.cudnn


@pytest.fixture
def tf32_flags():
    """The process's TF32 flags, put back afterwards."""
    before = [flags.allow_tf32 for flags in TF32]
    yield
    for flags, value in zip(TF32, before, strict=True):
        flags.allow_tf32 = value


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
        read_var(tensors, source="here.pth")
    message = str(error.value)
    assert "here.pth does not fit a VAR" in message and "head.bias" in message
    assert "2 missing" in message and "(7,) instead of (128,)" in message and "blocks.0.surprise" in message


@pytest.mark.parametrize("key", ["class_emb.weight", "pos_start", "head.weight", "blocks.0.ffn.fc1.weight"])
def test_a_file_without_a_required_tensor_is_not_a_var(tiny, key):
    tensors = tiny.tensors("var")
    del tensors[key]
    with pytest.raises(CheckpointError, match="VAR"):
        read_var(tensors)


BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")


def without_buffers(tensors):
    return {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[2] not in BUFFERS}


def test_without_its_buffers_a_model_needs_its_scales_and_is_the_same(golden):
    tensors, sides = without_buffers(golden.tensors("var")), list(golden.patch_nums)
    with pytest.raises(CheckpointError, match=r"the scales of x\.pth are unknown") as error:
        read_var(tensors, source="x.pth")
    assert "--model-config" in error.value.fix and '"patch_nums"' in error.value.fix
    for stated in ({"patch_nums": sides}, {"v_patch_nums": ",".join(map(str, sides))}):
        config = read_config(tensors, ConfigSources((("here", stated),)), "x.pth")
        assert config == golden.var().config
        network = VAR.from_state_dict(config, tensors, source="x.pth")
        assert torch.equal(network.place(), golden.var().place())


@pytest.mark.parametrize("sides", [[1, 2, 3], [1, 2, 3, 5], [2, 1, 3, 4], [1, 2, 3, 3, 2]])
def test_stated_scales_must_fit_the_tensors(tiny, sides):
    with pytest.raises(CheckpointError, match=r"does not have the scales 1|does not have the scales 2"):
        read_config(without_buffers(tiny.tensors("var")), ConfigSources((("here", {"patch_nums": sides}),)), "x.pth")


@pytest.mark.parametrize("published", [SCALES_256, SCALES_512])
def test_the_scales_of_published_models_are_known_from_their_number(tiny, published):
    tensors = without_buffers(tiny.tensors("var"))
    tensors["pos_1LC"] = torch.zeros(1, published.num_tokens, 128)
    tensors["lvl_embed.weight"] = torch.zeros(len(published.sides), 128)
    config = read_config(tensors, ConfigSources(), "x.pth")
    assert config.patch_nums == published.sides and "published" in config.inferred["scales"]


@pytest.mark.parametrize("level", [[0, 1, 1, 1], [0] + [5] * 29, [0] * 30, [2] + [0] * 29, [], [-1] * 30])
def test_scales_that_make_no_sense_are_refused(tiny, level):
    tensors = tiny.tensors("var") | {"lvl_1L": torch.tensor([level], dtype=torch.long)}
    with pytest.raises(CheckpointError, match="lvl_1L"):
        read_var(tensors)


def test_values_that_are_not_finite_are_refused(tiny):
    tensors = tiny.tensors("var")
    tensors["head.weight"][0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        read_var(tensors)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_tensors_that_are_not_floating_point_are_no_weights(tiny, dtype):
    tensors = tiny.tensors("var")
    tensors["head.weight"] = tensors["head.weight"].to(dtype)
    with pytest.raises(CheckpointError, match=r"head\.weight \(" + str(dtype).removeprefix("torch.")):
        read_var(tensors)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64])
def test_weights_of_any_floating_point_type_are_converted(tiny, dtype):
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tiny.tensors("var").items()}
    tensors["attn_bias_for_masking"] = tiny.tensors("var")["attn_bias_for_masking"]
    assert torch.equal(read_var(tensors).head.weight, tensors["head.weight"].float())


@pytest.mark.parametrize(
    ("change", "what"), [(lambda t: t.to("meta"), "without data"), (lambda t: t.to_sparse(), "sparse")]
)
def test_tensors_that_are_not_stored_as_numbers_are_named(tiny, tiny_files, tmp_path, change, what):
    tensors = tiny.tensors("var")
    tensors["head.weight"] = change(tensors["head.weight"])
    torch.save(tensors, tmp_path / "var.pth")
    with pytest.raises(CheckpointError, match=what) as error:
        load_model(ModelSpec(str(tmp_path / "var.pth"), str(tiny_files / "VAE.pth")))
    assert "head.weight" in error.value.why


def test_which_of_several_weights_were_read_is_recorded(tiny, tmp_path):
    for part, name in (("var", "VAR.pth"), ("vae", "VAE.pth")):
        average = {key: value + 1 for key, value in tiny.tensors(part).items()}
        torch.save({"ema": average, "model": tiny.tensors(part)}, tmp_path / name)
    loaded = load_model(ModelSpec(str(tmp_path / "VAR.pth"), str(tmp_path / "VAE.pth")))
    read = "'model'; the file also has 'ema'"
    assert loaded.protocol()["inferred"] == {"weights": read, "tokenizer weights": read}
    assert torch.equal(loaded.likelihood.var.head.weight, tiny.tensors("var")["head.weight"])


def test_a_tokenizer_and_a_generator_in_each_others_place_are_recognized(tiny, tiny_files):
    var, vae = str(tiny_files / "VAR.pth"), str(tiny_files / "VAE.pth")
    with pytest.raises(CheckpointError, match="VAR transformer"):
        load_model(ModelSpec(vae, vae))
    with pytest.raises(UsageError, match="generator"):
        load_tokenizer(ModelSpec(var, var))
    with pytest.raises(CheckpointError, match="VQ-VAE"):
        VQVAE_FAMILY.build(tiny.tensors("var"), ConfigSources(), "here.pth")


def test_a_generator_file_needs_its_tokenizer(tiny_files):
    with pytest.raises(UsageError, match="which tokenizer"):
        load_model(str(tiny_files / "VAR.pth"))


def test_a_tokenizer_of_another_codebook_is_refused(tmp_path):
    torch.save(load_golden("var_tiny_shared_aln").tensors("var"), tmp_path / "VAR.pth")
    torch.save(load_tokenizer("digits").network.state_dict(), tmp_path / "VAE.pth")
    with pytest.raises(CheckpointError, match="another tokenizer") as error:
        load_model(ModelSpec(str(tmp_path / "VAR.pth"), str(tmp_path / "VAE.pth")))
    assert "64 codes of 8" in error.value.why and "128 of 8" in error.value.why


def test_a_tokenizer_of_other_scales_is_refused(tiny_files):
    var = str(tiny_files / "VAR.pth")
    for load in (load_model, load_tokenizer):
        with pytest.raises(CheckpointError, match="another tokenizer") as error:
            load(ModelSpec(var, "digits-vqvae"))
        assert "scales 1,2,3,4;" in error.value.why and "scales 1,2,3,5,8" in error.value.why


def test_a_tokenizer_file_of_other_scales_than_the_card_says_is_refused(tiny, tmp_path):
    save_file(tiny.tensors("vae"), tmp_path / "vae.safetensors", {"patch_nums": "1,2,4"})
    with pytest.raises(CheckpointError, match="digits reads the tokens of another tokenizer") as error:
        load_tokenizer(ModelSpec("digits", str(tmp_path / "vae.safetensors")))
    assert "scales 1,2,3,5,8" in error.value.why and "scales 1,2,4" in error.value.why


def test_a_generator_that_names_its_tokenizers_digest_takes_no_other(tiny, tiny_files, tmp_path):
    vae, var = tiny_files / "VAE.pth", str(tmp_path / "var.safetensors")
    ours, other = hashlib.sha256(vae.read_bytes()).hexdigest(), "ab" * 32
    tensors = tiny.tensors("var")
    save_file(tensors, var, {"family": "var", "tokenizer_sha256": ours})
    assert load_model(ModelSpec(var, str(vae))).tokenizer.sha256 == ours
    save_file(tensors, var, {"family": "var", "tokenizer_sha256": other})
    for load in (load_model, load_tokenizer):
        with pytest.raises(CheckpointError, match="another tokenizer") as error:
            load(ModelSpec(var, str(vae)))
        assert ours in error.value.why and other in error.value.why


def test_the_shipped_digits_belong_together():
    assert load_model("digits").tokenizer.file == str(DIGITS / "vqvae.safetensors")


def test_a_file_of_an_unknown_family_is_refused(tiny, tiny_files, tmp_path):
    for part, args in (("var", ("var.safetensors", tiny_files / "VAE.pth")), ("vae", ("vae.safetensors",))):
        save_file(tiny.tensors(part), tmp_path / f"{part}.safetensors", {"family": "painter"})
        with pytest.raises(CheckpointError, match="family 'painter'"):
            load_tokenizer(ModelSpec(*(str(tmp_path / name) for name in args)))


class FlagsStub(torch.nn.Module):
    """A tokenizer network that returns the TF32 flags it runs under."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, images):
        return torch.tensor([flags.allow_tf32 for flags in TF32])

    tokenize = encode


@pytest.mark.parametrize("allowed", [(False, True), (True, True), (True, False)])
def test_the_tokenizer_computes_in_full_float32_whatever_the_process_allows(tf32_flags, allowed):
    tokenizer = replace(load_tokenizer(ModelSpec("digits", device="cpu")), network=FlagsStub())
    images = torch.zeros(1, 3, 16, 16)
    for flags, value in zip(TF32, allowed, strict=True):
        flags.allow_tf32 = value
    assert not tokenizer.encode(images).any() and not tokenizer.quantize(images).any()
    assert tuple(flags.allow_tf32 for flags in TF32) == allowed, "put back as they were"


def test_tf32_on_a_cpu_is_refused():
    with pytest.raises(UsageError, match="tf32 is not available on cpu"):
        load_model(ModelSpec("digits", device="cpu", precision="tf32"))


@pytest.mark.parametrize("device", ["meta", "hpu", "vulkan", "mtia", "privateuseone", "gpu", "", "cuda:99", "xpu:99"])
def test_a_device_that_cannot_compute_is_one_message(device):
    with pytest.raises(UsageError, match="cannot use device") as error:
        pick_device(device)
    assert error.value.why and len(error.value.why) < 300


def test_a_run_records_the_processor_or_gpu_by_name(monkeypatch):
    model = load_model(ModelSpec("digits", device="cpu"))
    assert model.protocol()["device_name"] == environment.machine()["cpu"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU at {device}")
    assert replace(model, device="cuda:1").protocol()["device_name"] == "the GPU at cuda:1"


def test_wrappers_half_precision_and_safetensors_load_alike(tiny, tiny_files, tmp_path):
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
        model = load_model(ModelSpec(str(tmp_path / name), str(tiny_files / "VAE.pth")))
        assert torch.equal(model.likelihood.var.head.weight, tensors["head.weight"]), name


def test_the_command_lines_tokens_are_the_networks_own(golden, tmp_path):
    """The loaded tokenizer may lay out memory as it likes (channels_last): tokens are exact all the same."""
    torch.save(golden.tensors("vae"), tmp_path / "VAE.pth")
    tokenizer = load_tokenizer(str(tmp_path / "VAE.pth"), layout=TokenLayout.multi_scale(golden.patch_nums))
    with torch.inference_mode():
        tokens = tokenizer.quantize(tokenizer.encode(golden.images()))
    assert np.array_equal(tokens.numpy(), golden.arrays["tokens"])
