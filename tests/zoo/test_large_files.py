"""A large safetensors file is hashed, and its numbers are looked at, once as long as it does not change."""

import os

import pytest
import torch
from safetensors.torch import save_file

from avarc_cli.errors import CheckpointError
from avarc_cli.layers import state_dict
from avarc_cli.layers.state_dict import known_finite
from avarc_cli.loading import ModelSpec, load_model
from avarc_cli.zoo import checkpoint, weights_index

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(checkpoint, "LARGE", 1)


@pytest.fixture
def hashed(monkeypatch):
    """Files that were hashed."""
    paths, hash_file = [], weights_index.sha256_of_file
    monkeypatch.setattr(weights_index, "sha256_of_file", lambda path, *a: paths.append(path) or hash_file(path, *a))
    return paths


def test_a_file_is_hashed_once_until_it_changes(tmp_path, hashed):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(3)}, path)
    first = checkpoint.read(path).sha256
    assert checkpoint.read(path).sha256 == first and hashed == [path]
    changed_at = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == changed_at:  # the clock of a file system may tick slowly
        save_file({"w": torch.zeros(3)}, path)
    assert checkpoint.read(path).sha256 != first and hashed == [path, path]
    os.utime(path, ns=(0, 0))
    assert checkpoint.read(path).sha256 != first and len(hashed) == 3


def test_a_pickle_is_not_taken_for_converted(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"w": torch.ones(3)}, path)
    checkpoint.read(path)
    assert not weights_index.is_indexed(path)


@pytest.fixture
def looked_at(monkeypatch):
    """Tensors whose numbers were looked at."""
    tensors, is_finite = [], state_dict._is_finite
    monkeypatch.setattr(state_dict, "_is_finite", lambda tensor: tensors.append(tensor) or is_finite(tensor))
    return tensors


def test_numbers_are_looked_at_once_until_the_file_changes(tmp_path, tiny, looked_at):
    var, vae = tmp_path / "var.safetensors", tmp_path / "vae.safetensors"
    tensors = {key: tensor.contiguous() for key, tensor in tiny.tensors("var").items()}
    save_file(tensors, var)
    save_file({key: tensor.contiguous() for key, tensor in tiny.tensors("vae").items()}, vae)
    spec = ModelSpec(str(var), str(vae))
    load_model(spec)
    assert looked_at
    looked_at.clear()
    load_model(spec)
    assert not looked_at
    tensors["pos_1LC"][0, 0, 0] = float("nan")
    save_file(tensors, var)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="not finite"):
            load_model(spec)


def test_weights_that_are_not_those_of_the_file_are_looked_at(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(3)}, path, {"lora": "merged earlier"})
    read = checkpoint.read(path)
    read.note_finite()
    assert not read.is_finite


def test_what_is_known_to_be_finite_is_forgotten_after_an_error(looked_at):
    with pytest.raises(RuntimeError), known_finite(True):
        raise RuntimeError
    state_dict.build(lambda: torch.nn.Linear(1, 1), torch.nn.Linear(1, 1).state_dict(), source="", expected="layer")
    assert looked_at
