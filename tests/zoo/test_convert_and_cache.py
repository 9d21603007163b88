"""After convert_and_cache, files load fast and are still identified by the sha256 of the original."""

import json
import os

import pytest
import torch
from fake_hub import sha256, weights
from safetensors.torch import save_file

from avarc_cli.errors import AvarcError, CheckpointError
from avarc_cli.zoo import checkpoint, paths, weights_index

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def pickled(tmp_path):
    """A pickle in a wrapper, and its tensors."""
    content, tensors = weights(3, 1000)
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    return path, tensors


def forbid(monkeypatch, *names):
    """Make calls of these functions fail."""
    for name in names:
        module, _, function = name.rpartition(".")
        monkeypatch.setattr({"checkpoint": checkpoint, "weights_index": weights_index}[module], function, None)


def test_a_cached_pickle_is_neither_hashed_nor_unpickled_again(pickled, monkeypatch):
    path, tensors = pickled
    before = checkpoint.read(path)
    checkpoint.convert_and_cache(path)
    forbid(monkeypatch, "weights_index.sha256_of_file", "checkpoint._read_pickle")
    after = checkpoint.read(path)
    assert after.path == before.path == path
    assert after.sha256 == before.sha256 == sha256(path.read_bytes())
    assert after.metadata == before.metadata == {"epoch": "3"}
    assert after.tensors.keys() == tensors.keys()
    assert all(torch.equal(after.tensors[key], tensor) for key, tensor in tensors.items())
    checkpoint.convert_and_cache(path)  # does nothing


def test_safetensors_are_indexed_but_not_copied(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(3)}, path)
    checkpoint.convert_and_cache(path)
    assert [p.suffix for p in paths.weights_folder().iterdir()] == [".json"]
    forbid(monkeypatch, "weights_index.sha256_of_file")
    assert checkpoint.read(path).sha256 == sha256(path.read_bytes())


def test_nothing_is_written_beside_the_file(pickled):
    before = sorted(pickled[0].parent.iterdir())
    checkpoint.convert_and_cache(pickled[0])
    assert sorted(set(pickled[0].parent.iterdir()) - {paths.config_folder()}) == before


def test_a_changed_file_is_read_again(pickled):
    path, _ = pickled
    checkpoint.convert_and_cache(path)
    stat, (content, tensors) = path.stat(), weights(4, 1000)
    assert len(content) == stat.st_size, "otherwise the size would tell"
    while path.stat().st_ctime_ns == stat.st_ctime_ns:  # the clock of a file system may tick slowly
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as `cp -p` and rsync do
    assert checkpoint.read(path).sha256 == sha256(content)
    assert torch.equal(checkpoint.read(path).tensors["w"], tensors["w"])
    checkpoint.convert_and_cache(path)
    entry = weights_index.find(path)
    assert entry is not None and entry.sha256 == sha256(content) and entry.valid_copy()


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "entry"])
def test_a_damaged_copy_or_entry_costs_time_but_does_not_change_the_result(pickled, damage):
    path, tensors = pickled
    checkpoint.convert_and_cache(path)
    digest = sha256(path.read_bytes())
    copy = next(paths.weights_folder().glob("*.safetensors"))
    if damage == "delete":
        copy.unlink()
    elif damage == "truncate":
        copy.write_bytes(copy.read_bytes()[:100])
    elif damage == "flip":
        content = bytearray(copy.read_bytes())
        content[-9] ^= 255
        copy.write_bytes(content)
    else:
        next(paths.weights_folder().glob("*.json")).write_text("{}")
    read = checkpoint.read(path)
    assert read.sha256 == digest and torch.equal(read.tensors["w"], tensors["w"])
    assert not weights_index.is_indexed(path)
    checkpoint.convert_and_cache(path)
    assert weights_index.is_indexed(path)


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_bytes(b"other")])
def test_the_copy_of_a_file_that_changed_or_is_gone_can_be_deleted(pickled, change):
    path, _ = pickled
    checkpoint.convert_and_cache(path)
    change(path)
    weights_index.forget(path)
    assert list(paths.weights_folder().iterdir()) == []


def test_links_to_a_file_share_its_entry(pickled, tmp_path):
    (tmp_path / "snapshot.pth").symlink_to(pickled[0])
    checkpoint.convert_and_cache(tmp_path / "snapshot.pth")
    assert weights_index.is_indexed(pickled[0])


def test_adapters_in_a_copy_are_merged_with_the_current_config(tmp_path):
    base, a, b = torch.zeros(2, 2), torch.ones(1, 2), torch.ones(2, 1)
    tensors = {"m.base_layer.weight": base, "m.lora_A.default.weight": a, "m.lora_B.default.weight": b}
    torch.save(tensors, tmp_path / "w.pth")
    checkpoint.convert_and_cache(tmp_path / "w.pth")
    for alpha in (1, 5):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        assert checkpoint.read(tmp_path / "w.pth").tensors["m.weight"][0, 0] == alpha


def test_shared_and_strided_tensors_are_copied_correctly(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    tensors = {
        "a": whole,
        "same": whole,
        "row": whole[1],
        "turned": whole.T,
        "none": torch.zeros(0),
        "one": whole[0, 2],
    }
    torch.save(tensors, tmp_path / "w.pth")
    checkpoint.convert_and_cache(tmp_path / "w.pth")
    read = checkpoint.read(tmp_path / "w.pth").tensors
    assert all(torch.equal(read[key], tensor) for key, tensor in tensors.items())


def test_a_pickle_with_code_is_not_converted(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.")
    with pytest.raises(CheckpointError, match="more than weights"):
        checkpoint.convert_and_cache(tmp_path / "w.pth")
    assert not paths.weights_folder().exists()


def test_a_full_disk_is_one_message_and_leaves_no_files(pickled, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(AvarcError, match="cannot write a safetensors copy") as caught:
        checkpoint.convert_and_cache(pickled[0])
    assert "No space left" in caught.value.why
    assert not list(paths.weights_folder().iterdir())
    assert checkpoint.read(pickled[0]).sha256


def test_folders_follow_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/x/config")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    assert paths.config_folder() == tmp_path / "avarc"
    monkeypatch.delenv("AVARC_HOME")
    assert (str(paths.config_folder()), str(paths.weights_folder())) == ("/x/config/avarc", "/x/cache/avarc/weights")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(paths.config_folder()) == "/home/me/.config/avarc"
