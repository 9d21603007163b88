"""Of several sets of weights in a file one is read, by default the trained weights; its identity tells which."""

import pytest
import torch
from safetensors.torch import save_file

from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.zoo import checkpoint

RAW = {"blocks.0.proj.weight": torch.arange(6.0).view(2, 3), "blocks.0.proj.bias": torch.zeros(2)}
EMA = {key: tensor + 1 for key, tensor in RAW.items()}
STEPS = torch.tensor(7)


def under(prefix, tensors):
    return {f"{prefix}.{key}": tensor for key, tensor in tensors.items()}


def saved(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def holds(found, tensors):
    return found.tensors.keys() == tensors.keys() and all(torch.equal(found.tensors[k], tensors[k]) for k in tensors)


FILES = {
    "DiT": ({"model": RAW, "ema": EMA}, "ema", "model"),
    "torchvision": ({"model": RAW, "model_ema": {"n_averaged": STEPS, **under("module", EMA)}}, "model_ema", "model"),
    "timm": ({"state_dict": RAW, "state_dict_ema": EMA}, "state_dict_ema", "state_dict"),
    "VAR": ({"trainer": {"var_wo_ddp": RAW, "ema": EMA}, "epoch": 3}, "trainer.ema", "trainer.var_wo_ddp"),
    "LightningModule": (
        {"state_dict": under("model", RAW) | under("model_ema", EMA), "epoch": 1},
        "state_dict.model_ema",
        "state_dict.model",
    ),
    "latent diffusion": (
        {
            "state_dict": under("model", RAW)
            | {f"model_ema.{key.replace('.', '')}": tensor for key, tensor in EMA.items()}
            | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": STEPS}
        },
        "state_dict.model_ema",
        "state_dict.model",
    ),
    "ema-pytorch": (
        {
            "model": RAW,
            "ema": {"initted": torch.tensor(True), "step": STEPS}
            | under("ema_model", EMA)
            | under("online_model", RAW),
        },
        "ema.ema_model",
        "model",
    ),
    "a class with a shadow": ({"model": RAW, "ema": {"decay": 0.99, "shadow": EMA}}, "ema.shadow", "model"),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_trained_weights_are_read_unless_the_average_is_asked_for(tmp_path, kind):
    content, average, trained = FILES[kind]
    path = saved(tmp_path, content)
    by_default = checkpoint.read(path)
    assert holds(by_default, RAW)
    assert by_default.metadata["weights read"].startswith(f"'{trained}'; the file also has '{average}'")
    for name in ("ema", average, average.rpartition(".")[2]):
        asked = checkpoint.read(path, weight_set=name)
        assert holds(asked, EMA)
        assert asked.metadata["weights read"].startswith(f"'{average}'; the file also has '{trained}'")


def test_lightnings_weight_averaging_has_the_average_in_the_place_of_the_weights(tmp_path):
    path = saved(tmp_path, {"state_dict": under("model", EMA), "current_model_state": under("model", RAW)})
    assert holds(checkpoint.read(path), EMA)
    assert holds(checkpoint.read(path, weight_set="current_model_state"), RAW)


def test_sets_of_a_safetensors_file_are_told_apart_by_their_prefix(tmp_path):
    save_file(under("model", RAW) | under("model_ema", EMA), tmp_path / "w.safetensors", {"step": "5"})
    assert holds(checkpoint.read(tmp_path / "w.safetensors"), RAW)
    asked = checkpoint.read(tmp_path / "w.safetensors", weight_set="ema")
    assert holds(asked, EMA) and asked.metadata["step"] == "5"


def test_equal_weights_have_one_identity_and_other_weights_another(tmp_path):
    path = saved(tmp_path, {"model": RAW, "ema": EMA})
    sha256 = {name: checkpoint.read(path, weight_set=name).sha256 for name in (None, "model", "ema")}
    assert sha256[None] == sha256["model"] != sha256["ema"]


def test_the_only_set_is_read_with_and_without_its_name(tmp_path):
    path = saved(tmp_path, {"ema": EMA, "step": 3})
    assert holds(checkpoint.read(path), EMA)
    assert holds(checkpoint.read(path, weight_set="ema"), EMA)
    assert checkpoint.read(path).sha256 == checkpoint.read(path, weight_set="ema").sha256


@pytest.mark.parametrize(
    ("content", "there"),
    [
        ({"model": RAW, "model_ema": EMA}, "'model', 'model_ema'"),
        ({"model": RAW, "optimizer": {"state": {0: {"step": STEPS}}}}, "'model'"),
        (RAW, "no name"),
    ],
)
def test_a_set_that_is_not_there_is_refused_with_those_that_are(tmp_path, content, there):
    with pytest.raises(UsageError, match="has no weights 'average'") as error:
        checkpoint.read(saved(tmp_path, content), weight_set="average")
    assert there in error.value.why and "--weights" in error.value.fix


@pytest.mark.parametrize(
    "content",
    [
        {"net": RAW, "optimizer": {"state": {}}},
        {"epoch": 3, "models": {"net": RAW, "critic": EMA}},
        {"state_dict": under("net", RAW) | under("vae", EMA)},
        {"model": EMA, "net": RAW},
    ],
)
def test_any_key_that_leads_to_weights_can_be_named(tmp_path, content):
    path = saved(tmp_path, content)
    assert holds(checkpoint.read(path, weight_set="net"), RAW)
    assert checkpoint.read(path, weight_set="net").metadata["weights read"].startswith("'")


def test_weights_under_an_unknown_key_are_reported_with_the_keys_and_the_option(tmp_path):
    with pytest.raises(CheckpointError, match="contains no state dict") as error:
        checkpoint.read(saved(tmp_path, {"net": RAW, "epoch": 1}))
    assert "net (blocks.0.proj.bias, blocks.0.proj.weight)" in error.value.why and "--weights" in error.value.fix


def test_a_state_dict_that_contains_itself_is_no_weights(tmp_path):
    content = {}
    content["model"] = content
    with pytest.raises(CheckpointError, match="contains no state dict"):
        checkpoint.read(saved(tmp_path, content))


@pytest.mark.usefixtures("home")
def test_each_set_has_its_own_copy(tmp_path, monkeypatch):
    path = saved(tmp_path, {"model": RAW, "ema": EMA})
    before = {name: checkpoint.read(path, weight_set=name) for name in (None, "ema")}
    for name in before:
        checkpoint.convert_and_cache(path, weight_set=name)
    monkeypatch.setattr(checkpoint, "_read_pickle", None)  # copies are read, not the pickle
    for name, expected in before.items():
        found = checkpoint.read(path, weight_set=name)
        assert holds(found, expected.tensors) and found.sha256 == expected.sha256
        assert found.metadata == expected.metadata
