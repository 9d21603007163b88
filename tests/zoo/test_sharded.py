"""Sharded safetensors are read by their index; what does not fit together is refused by name."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from avarc_cli.errors import AvarcError, CheckpointError
from avarc_cli.zoo import checkpoint, weights_index

TENSORS = {f"layer.{i}.weight": torch.full((2, 3), float(i)) for i in range(4)}
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
PLACES = dict.fromkeys(list(TENSORS)[:2], ONE) | dict.fromkeys(list(TENSORS)[2:], TWO)
INDEX = "model.safetensors.index.json"


def write_index(folder, places, **more):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 96}, "weight_map": places} | more))


@pytest.fixture
def folder(tmp_path):
    """A checkpoint in two shards."""
    where = tmp_path / "sharded"
    where.mkdir()
    for shard in (ONE, TWO):
        save_file({k: TENSORS[k] for k, place in PLACES.items() if place == shard}, where / shard, {"format": "pt"})
    write_index(where, PLACES)
    return where


def read_all(path):
    found = checkpoint.read(path)
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in TENSORS.items())
    return found


def test_the_index_and_its_folder_stand_for_all_shards(folder):
    found = read_all(folder / INDEX)
    assert found.metadata == {"format": "pt", "total_size": "96"}
    assert found.path == read_all(folder).path == folder / INDEX


def test_the_digest_is_that_of_the_lines_of_sha256sum(folder):
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in (INDEX, ONE, TWO)]
    before = checkpoint.read(folder).sha256
    assert before == hashlib.sha256("".join(lines).encode()).hexdigest()
    folder = folder.rename(folder.with_name("elsewhere"))
    assert checkpoint.read(folder).sha256 == before
    save_file({key: TENSORS[key] + 1 for key in list(TENSORS)[2:]}, folder / TWO)
    assert checkpoint.read(folder).sha256 != before


@pytest.mark.parametrize("renamed", [False, True])
def test_a_single_shard_is_refused_with_the_index(folder, renamed):
    name = ONE
    if renamed:
        name = "first.safetensors"
        (folder / ONE).rename(folder / name)
        write_index(folder, {key: name if place == ONE else place for key, place in PLACES.items()})
    with pytest.raises(CheckpointError, match="is one of 2 shards") as error:
        checkpoint.read(folder / name)
    assert INDEX in error.value.fix


def test_a_shard_without_its_index_is_refused(folder):
    (folder / INDEX).unlink()
    with pytest.raises(CheckpointError, match="is one of 2 shards") as error:
        checkpoint.read(folder / ONE)
    assert "index" in error.value.fix


def test_a_checkpoint_in_one_shard_is_read_with_and_without_an_index(tmp_path):
    name = "model-00001-of-00001.safetensors"
    save_file(TENSORS, tmp_path / name)
    read_all(tmp_path / name)
    write_index(tmp_path, dict.fromkeys(TENSORS, name))
    read_all(tmp_path)
    read_all(tmp_path / name)


def missing(folder):
    (folder / TWO).unlink()


def truncated(folder):
    (folder / TWO).write_bytes((folder / TWO).read_bytes()[:-5])


def a_folder(folder):
    missing(folder)
    (folder / TWO).mkdir()


def lacks_a_tensor(folder):
    save_file({"layer.3.weight": TENSORS["layer.3.weight"]}, folder / TWO)


def has_a_tensor_of_the_other(folder):
    save_file({key: TENSORS[key] for key in list(TENSORS)[1:]}, folder / TWO)


def has_a_tensor_of_none(folder):
    save_file({key: TENSORS[key] for key in list(TENSORS)[2:]} | {"more": torch.ones(1)}, folder / TWO)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (missing, "is missing"),
        (a_folder, "is missing"),
        (truncated, "not a complete safetensors"),
        (lacks_a_tensor, "lacks tensors"),
        (has_a_tensor_of_the_other, "belong to other shards"),
        (has_a_tensor_of_none, "does not name"),
    ],
)
def test_a_shard_that_does_not_fit_the_index_is_named(folder, damage, named):
    damage(folder)
    with pytest.raises(CheckpointError, match=named) as error:
        checkpoint.read(folder / INDEX)
    assert TWO in error.value.what


@pytest.mark.parametrize(
    "place",
    ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "", "a\0.safetensors"],
)
def test_shards_are_in_the_folder_of_the_index(folder, place):
    (folder.parent / "x.safetensors").write_bytes((folder / TWO).read_bytes())
    write_index(folder, {key: place if shard == TWO else shard for key, shard in PLACES.items()})
    with pytest.raises(CheckpointError, match="points outside of its folder"):
        checkpoint.read(folder / INDEX)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting"),
        ("[]", "list"),
        ("{}", "weight_map"),
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": {"a": 3}}', "weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "names a twice"),
        ("[" * 100_000, "recursion"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "pytorch_model.bin"),
    ],
)
def test_a_file_that_is_no_index_is_refused(folder, text, why):
    (folder / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=INDEX) as error:
        checkpoint.read(folder)
    assert why in error.value.why


def test_a_folder_with_two_checkpoints_is_refused(folder):
    (folder / "other.safetensors.index.json").write_bytes((folder / INDEX).read_bytes())
    with pytest.raises(CheckpointError, match="several checkpoints"):
        checkpoint.read(folder)


@pytest.mark.usefixtures("home")
def test_shards_that_did_not_change_are_not_hashed_again(folder, monkeypatch):
    before = checkpoint.read(folder).sha256
    checkpoint.convert_and_cache(folder)
    monkeypatch.setattr(weights_index, "sha256_of_file", None)
    assert checkpoint.read(folder).sha256 == before
    (folder / ONE).touch()
    with pytest.raises((TypeError, AvarcError)):
        checkpoint.read(folder)


def test_links_to_shards_elsewhere_are_followed_as_in_the_hugging_face_cache(folder, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in (INDEX, ONE, TWO):
        (snapshot / name).symlink_to(folder / name)
    read_all(snapshot)
