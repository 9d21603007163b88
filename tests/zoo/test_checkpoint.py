"""Wrappers are removed from checkpoints, and other files are rejected with a clear message."""

import hashlib
import os
import pickle
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.zoo.checkpoint import read

WEIGHTS = {"blocks.0.attn.proj.weight": torch.arange(6.0).view(2, 3), "lvl_1L": torch.tensor([[0, 1]])}


def saved(tmp_path, content, name="w.pth", **options):
    torch.save(content, tmp_path / name, **options)
    return tmp_path / name


def same(tensors):
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[key], WEIGHTS[key]) for key in WEIGHTS)
    return True


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: sd,
        lambda sd: {"trainer": {"var_wo_ddp": sd, "config": {"depth": 16}}, "epoch": 3},
        lambda sd: {"var_wo_ddp": sd},
        lambda sd: {"state_dict": sd, "optimizer": {"state": [1]}},
        lambda sd: {"model": sd},
        lambda sd: {"model": {"state_dict": sd}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_wrappers_are_unwrapped(tmp_path, wrap, zipped):
    path = saved(tmp_path, wrap(dict(WEIGHTS)), _use_new_zipfile_serialization=zipped)
    checkpoint = read(path)
    assert same(checkpoint.tensors)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.path == path


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prefixes=st.lists(st.sampled_from(["module.", "_orig_mod.", "base_model.model."]), max_size=4))
def test_prefixes_are_stripped_in_any_order(tmp_path, prefixes):
    assert same(read(saved(tmp_path, {"".join(prefixes) + key: t for key, t in WEIGHTS.items()})).tensors)


def test_the_prefix_of_a_compiled_submodule_is_stripped(tmp_path):
    compiled = {key.replace("blocks.0.", "blocks.0._orig_mod."): tensor for key, tensor in WEIGHTS.items()}
    assert same(read(saved(tmp_path, compiled)).tensors)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"state_dict": {f"model.{k}": t for k, t in w.items()}, "epoch": 1},  # Lightning
        lambda w: {f"_fsdp_wrapped_module.{k}": t for k, t in w.items()},
        lambda w: {k.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): t for k, t in w.items()},
        lambda w: {"module": w, "optimizer": None, "global_steps": 3},  # DeepSpeed
        lambda w: {"n_averaged": torch.tensor(4), **{f"module.{k}": t for k, t in w.items()}},  # AveragedModel
        lambda w: {"ema": w, "step": 4},
    ],
)
def test_what_training_programs_put_around_weights_is_removed(tmp_path, wrap):
    assert same(read(saved(tmp_path, wrap(WEIGHTS))).tensors)


@pytest.mark.parametrize("average", ["ema", "model_ema", "state_dict_ema"])
def test_of_weights_and_their_average_the_weights_are_read_and_this_is_recorded(tmp_path, average):
    found = read(saved(tmp_path, {average: {k: t + 1 for k, t in WEIGHTS.items()}, "model": WEIGHTS}))
    assert same(found.tensors)
    assert found.metadata["weights read"] == f"'model'; the file also has '{average}'"


def test_parameters_become_plain_tensors(tmp_path):
    (tensor,) = read(saved(tmp_path, {"w": torch.nn.Parameter(torch.ones(2))})).tensors.values()
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad


def test_numbers_and_text_of_the_wrappers_become_metadata(tmp_path):
    content = {"trainer": {"var_wo_ddp": WEIGHTS, "lora_alpha": 16}, "epoch": 3, "name": "d16", "lr": 0.5}
    assert read(saved(tmp_path, content)).metadata == {"lora_alpha": "16", "epoch": "3", "name": "d16", "lr": "0.5"}


def test_safetensors_keep_their_metadata_whatever_the_file_is_called(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.pth", metadata={"step": "12"})
    checkpoint = read(tmp_path / "w.pth")
    assert same(checkpoint.tensors)
    assert checkpoint.metadata == {"step": "12"}


def test_a_missing_path_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.pth"):
        read(tmp_path / "gone.pth")


class Evil:
    def __reduce__(self):
        return os.system, ("echo ran > ran.txt",)


def test_a_pickle_with_code_is_rejected_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for zipped in (True, False):
        path = saved(tmp_path, {"w": torch.ones(1), "x": Evil()}, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="contains more than weights") as caught:
            read(path)
        assert "system" in caught.value.why
    assert not (tmp_path / "ran.txt").exists()


def test_a_flipped_bit_is_detected(tmp_path):
    path = saved(tmp_path, {"w": torch.arange(1000.0)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is corrupt") as caught:
        read(path)
    assert "checksum" in caught.value.why


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 4, 9, 100, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_detected(tmp_path, kind, kept):
    path = tmp_path / "w.pth"
    if kind == "safetensors":
        save_file({"w": torch.arange(1000.0)}, path)
    else:
        torch.save({"w": torch.arange(1000.0)}, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{"]), rest=st.binary(max_size=80))
def test_arbitrary_bytes_raise_only_checkpoint_errors(tmp_path, start, rest):
    (tmp_path / "noise").write_bytes(start + rest)
    with pytest.raises(CheckpointError):
        read(tmp_path / "noise")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"hello, world", "text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
        (b"<!doctype html><html>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"\x00\x01\x02", "begins with"),
    ],
)
def test_the_message_says_what_other_files_are(tmp_path, content, word):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a weights file") as caught:
        read(tmp_path / "w.pth")
    assert word in caught.value.why


def test_a_zip_that_is_not_torchs_is_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="not a torch file"):
        read(tmp_path / "w.pth")


def test_a_plain_pickle_is_rejected(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"w": [1, 2]}))
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read(tmp_path / "w.pth")


def test_a_folder_is_rejected_with_the_weights_in_it(tmp_path):
    saved(tmp_path, WEIGHTS, "inside.pth")
    with pytest.raises(CheckpointError, match="is a folder") as caught:
        read(tmp_path)
    assert "inside.pth" in caught.value.why


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (torch.ones(2), "a Tensor"),
        ([torch.ones(2)], "a list"),
        ({1: torch.ones(2)}, "a dict"),
        ({}, "it must have tensors"),
        ({"epoch": 3, "loss": 0.5}, "epoch, loss"),
        ({"model": {"epoch": 3}}, "epoch"),
    ],
)
def test_a_file_without_a_state_dict_is_rejected_with_its_contents(tmp_path, content, word):
    with pytest.raises(CheckpointError, match="contains no state dict") as caught:
        read(saved(tmp_path, content))
    assert word in caught.value.why


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, 3])
def test_an_entry_that_is_not_a_tensor_is_rejected(tmp_path, value):
    with pytest.raises(CheckpointError, match="not a plain state dict") as caught:
        read(saved(tmp_path, {**WEIGHTS, "head.weight": value}))
    assert "head.weight" in caught.value.why


def test_two_models_in_one_file_are_rejected(tmp_path):
    with pytest.raises(CheckpointError, match="contains two models"):
        read(saved(tmp_path, {"w": torch.ones(1), "module.w": torch.ones(1)}))


def test_safetensors_without_tensors_are_rejected(tmp_path):
    save_file({}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="contains no tensors"):
        read(tmp_path / "w.safetensors")
