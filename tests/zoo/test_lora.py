"""LoRA weights inside a PEFT state dict are merged as W + (alpha / r) B A, or rejected with a reason."""

import json

import pytest
import torch
from safetensors.torch import save_file

from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.zoo.checkpoint import read

W, BIAS = torch.arange(12.0).view(4, 3), torch.ones(4)
A, B = torch.tensor([[1.0, 0, 2], [0, 1, 0]]), torch.arange(8.0).view(4, 2)  # rank 2
P = "base_model.model.blocks.0.proj"
ADAPTED = {
    f"{P}.base_layer.weight": W,
    f"{P}.base_layer.bias": BIAS,
    f"{P}.lora_A.default.weight": A,
    f"{P}.lora_B.default.weight": B,
    "base_model.model.head.weight": W.clone(),
}


def write(tmp_path, tensors=ADAPTED, **wrapper):
    torch.save({"state_dict": tensors, **wrapper} if wrapper else tensors, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def merged(path, scale):
    checkpoint = read(path)
    assert checkpoint.tensors.keys() == {"blocks.0.proj.weight", "blocks.0.proj.bias", "head.weight"}
    assert torch.equal(checkpoint.tensors["blocks.0.proj.weight"], W + scale * B @ A)
    assert torch.equal(checkpoint.tensors["blocks.0.proj.bias"], BIAS)
    assert torch.equal(checkpoint.tensors["head.weight"], W)
    return checkpoint.metadata["lora"]


def test_an_adapter_of_unknown_scale_is_rejected(tmp_path):
    with pytest.raises(CheckpointError, match="of unknown scale") as error:
        read(write(tmp_path))
    assert "adapter_config.json" in error.value.fix and "--lora-alpha" in error.value.fix


def test_the_user_may_state_a_scale_that_no_file_states(tmp_path):
    path = write(tmp_path)
    found = {alpha: read(path, lora_alpha=alpha) for alpha in (4.0, 6.0)}
    for alpha, each in found.items():
        assert torch.equal(each.tensors["blocks.0.proj.weight"], W + alpha / 2 * B @ A)
        assert each.metadata["lora"] == f"1 matrices of rank 2 merged with alpha {alpha:g} (from --lora-alpha)"
    assert found[4.0].sha256 != found[6.0].sha256


def test_weights_merged_with_another_scale_beside_the_file_are_other_weights(tmp_path):
    found = []
    for alpha in (4, 6):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        found.append(read(write(tmp_path)).sha256)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("tensors", "wrapper", "config", "alpha"),
    [
        (ADAPTED, {"lora_alpha": 4}, None, 4),
        (ADAPTED, {}, {"lora_alpha": 4}, 8),
        ({"head.weight": W}, {}, None, 4),
        (ADAPTED, {}, None, float("nan")),
    ],
)
def test_a_scale_that_is_stated_or_not_needed_or_no_number_is_refused(tmp_path, tensors, wrapper, config, alpha):
    if config:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="--lora-alpha"):
        read(write(tmp_path, tensors, **wrapper), lora_alpha=alpha)


def test_the_config_beside_an_adapter_without_scale_must_still_allow_merging(tmp_path):
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"r": 2}))
    assert "alpha 4 " in read(write(tmp_path), lora_alpha=4).metadata["lora"]
    config.write_text(json.dumps({"r": 2, "use_rslora": True}))
    with pytest.raises(CheckpointError, match="cannot be merged"):
        read(write(tmp_path), lora_alpha=4)


def test_alpha_comes_from_the_wrapper(tmp_path):
    recorded = merged(write(tmp_path, lora_alpha=16), scale=8)
    assert recorded == "1 matrices of rank 2 merged with alpha 16 (from the file)"


def test_alpha_comes_from_beside_the_tensors(tmp_path):
    assert "alpha 6" in merged(write(tmp_path, {**ADAPTED, "lora_alpha": 6.0}), scale=3)


def test_alpha_comes_from_safetensors_metadata(tmp_path):
    save_file(ADAPTED, tmp_path / "w.safetensors", metadata={"lora_alpha": "5"})
    merged(tmp_path / "w.safetensors", scale=2.5)


def test_alpha_comes_from_the_adapter_config_beside_the_file(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 2, "use_dora": False}))
    assert "alpha 4 (from adapter_config.json)" in merged(write(tmp_path), scale=2)


def test_the_file_has_precedence_over_the_config_beside_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4}))
    merged(write(tmp_path, lora_alpha=2), scale=1)


def test_other_wrappers_and_prefixes_do_not_matter(tmp_path):
    tensors = {f"module._orig_mod.{key}": tensor for key, tensor in ADAPTED.items()}
    torch.save({"trainer": {"var_wo_ddp": tensors}, "lora_alpha": 4}, tmp_path / "w.pth")
    merged(tmp_path / "w.pth", scale=2)


def test_an_adapter_without_a_name_is_merged(tmp_path):
    merged(
        write(tmp_path, {key.replace(".default", ""): tensor for key, tensor in ADAPTED.items()}, lora_alpha=2), scale=1
    )


def test_the_sum_is_computed_in_float32_and_stored_in_the_dtype_of_the_weights(tmp_path):
    half = {key: tensor.half() for key, tensor in ADAPTED.items()}
    weight = read(write(tmp_path, half, lora_alpha=2)).tensors["blocks.0.proj.weight"]
    assert weight.dtype == torch.float16
    assert torch.equal(weight, (W + B @ A).half())


def test_modules_that_peft_trained_without_low_rank_replace_their_originals(tmp_path):
    tensors = dict(ADAPTED)
    del tensors["base_model.model.head.weight"]
    tensors["base_model.model.head.original_module.weight"] = W + 1
    tensors["base_model.model.head.modules_to_save.default.weight"] = W
    merged(write(tmp_path, tensors, lora_alpha=2), scale=1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({f"{P}.base_layer.weight": None}, "adapter without its model"),
        ({f"{P}.lora_A.default.weight": None}, "does not fit"),
        ({f"{P}.lora_B.default.weight": torch.ones(4, 3)}, "does not fit"),
        ({f"{P}.lora_A.default.weight": torch.ones(2, 5)}, "does not fit"),
        ({f"{P}.lora_A.default.weight": torch.ones(0, 3), f"{P}.lora_B.default.weight": torch.ones(4, 0)}, "not fit"),
        ({f"{P}.lora_A.default.weight": torch.ones(2, 3, 1)}, "does not fit"),
        ({f"{P}.lora_magnitude_vector.default.weight": W}, "another kind than LoRA"),
        ({f"{P}.lora_A.second.weight": A, f"{P}.lora_B.second.weight": B}, "several adapters"),
    ],
)
def test_unsupported_adapters_are_rejected(tmp_path, change, what):
    tensors = {key: tensor for key, tensor in {**ADAPTED, **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=what):
        read(write(tmp_path, tensors, lora_alpha=2))


@pytest.mark.parametrize("alpha", ["many", "nan", float("inf")])
def test_an_alpha_that_is_not_a_finite_number_is_rejected(tmp_path, alpha):
    with pytest.raises(CheckpointError, match="not a finite number"):
        read(write(tmp_path, lora_alpha=alpha))


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"r": 2}', "of unknown scale"),
        ('{"lora_alpha": null}', "not a finite number"),
        ('{"lora_alpha": 2, "use_rslora": true}', "cannot be merged by avarc"),
        ('{"lora_alpha": 2, "init_lora_weights": "olora"}', "cannot be merged by avarc"),
        ('{"lora_alpha": 2, "init_lora_weights": "pissa_niter_4"}', "cannot be merged by avarc"),
        ('{"lora_alpha": 2, "init_lora_weights": "a method of the future"}', "cannot be merged by avarc"),
        ('{"lora_alpha": 2, "alpha_pattern": {"proj": 3}}', "cannot be merged by avarc"),
    ],
)
def test_an_unsupported_adapter_config_is_rejected(tmp_path, config, what):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(CheckpointError, match=what):
        read(write(tmp_path))


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "orthogonal", "eva"])
def test_an_adapter_that_starts_at_zero_is_merged(tmp_path, start):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "init_lora_weights": start}))
    merged(write(tmp_path), scale=2)


def test_an_adapter_config_beside_a_file_without_adapters_is_not_read(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    assert "lora" not in read(write(tmp_path, {"w": W})).metadata
