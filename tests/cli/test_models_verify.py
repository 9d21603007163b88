"""avarc models verify: every byte of the files and of avarc's copies is compared with its digest."""

import json
import os

import pytest
import torch
from fake_hub import weights
from safetensors.torch import save_file

from avarc_cli.cli import main
from avarc_cli.zoo import cards, checkpoint, local_files, paths

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def mine(tiny, tmp_path):
    """A registered generator, a pickle, and its tokenizer, in safetensors."""
    torch.save({"model": tiny.tensors("var")}, tmp_path / "VAR.pth")
    scales = ",".join(map(str, tiny.patch_nums))
    save_file(tiny.tensors("vae"), tmp_path / "vae.safetensors", {"patch_nums": scales})
    assert main(["models", "add", "my-vq", str(tmp_path / "vae.safetensors")]) == 0
    assert main(["models", "add", "my-var", str(tmp_path / "VAR.pth"), "--tokenizer", "my-vq"]) == 0
    return tmp_path


def flip(path, position):
    """Change one byte, and leave size and times as they were."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def verify(capsys, *names):
    """Exit code, {file name: status}, and what was said on stderr."""
    capsys.readouterr()
    code = main(["models", "verify", *names, "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, {os.path.basename(each["file"]): each["status"] for each in json.loads(out)["files"]}, err


def the_copy():
    (copy,) = paths.weights_folder().glob("*.safetensors")
    return copy


def test_whole_files_and_copies_are_reported_as_such(mine, capsys):
    code, statuses, _ = verify(capsys)
    assert code == 0
    assert statuses == {"VAR.pth": "whole", the_copy().name: "whole", "vae.safetensors": "whole"}
    assert verify(capsys, "my-vq")[1] == {"vae.safetensors": "whole"}


@pytest.mark.parametrize("name", ["VAR.pth", "vae.safetensors"])
@pytest.mark.parametrize("position", [0.3, 1.0])
def test_a_changed_byte_of_a_file_is_an_error_that_names_it(mine, capsys, name, position):
    flip(mine / name, position)
    code, statuses, err = verify(capsys)
    assert code == 1 and statuses[name] == "damaged" and f"{name} is damaged" in err
    assert "copy it again" in err
    others = {file: status for file, status in statuses.items() if file != name}
    assert set(others.values()) == {"whole"}


@pytest.mark.parametrize("position", [0.3, 0.7, 1.0])
def test_a_damaged_copy_is_named_and_made_again(mine, capsys, position):
    copy = the_copy()
    before = copy.read_bytes()
    flip(copy, position)
    code, statuses, err = verify(capsys, "my-var")
    assert code == 1 and statuses == {"VAR.pth": "whole", copy.name: "damaged, made again"} and copy.name in err
    assert copy.read_bytes() == before
    assert verify(capsys)[0] == 0


def test_a_damaged_copy_of_a_damaged_file_is_deleted(mine, capsys):
    copy = the_copy()
    flip(copy, 0.5)
    flip(mine / "VAR.pth", 0.5)
    code, statuses, _ = verify(capsys, "my-var")
    assert code == 1 and set(statuses.values()) == {"damaged"} and not copy.exists()


def test_the_header_and_the_ends_of_a_copy_are_checked_whenever_it_is_loaded(mine, tiny, monkeypatch):
    copy = the_copy()
    for position in (0.0, 0.0001, 1.0):
        flip(copy, position)
        assert torch.equal(checkpoint.read(mine / "VAR.pth").tensors["head.bias"], tiny.tensors("var")["head.bias"])
        flip(copy, position)
    monkeypatch.setattr(checkpoint, "_read_pickle", None)
    checkpoint.read(mine / "VAR.pth")  # from the copy, which is as it was


def test_a_missing_file_is_an_error(mine, capsys):
    (mine / "vae.safetensors").unlink()
    code, statuses, err = verify(capsys)
    assert code == 1 and statuses["vae.safetensors"] == "missing" and "models remove my-vq" in err


def test_a_published_file_is_compared_with_the_digest_of_the_hub(hub, capsys):
    assert main(["download", "var-d16"]) == 0
    code, statuses, _ = verify(capsys)
    assert code == 0 and set(statuses.values()) == {"whole"}
    file = local_files.locate(cards.model_card("var-d16").weights)
    content, _ = weights(99)
    file.resolve().write_bytes(content)
    code, statuses, err = verify(capsys, "var-d16")
    assert code == 1 and statuses["var_d16.pth"] == "damaged" and "avarc download var-d16" in err
    assert main(["download", "var-d16"]) == 0
    assert verify(capsys)[0] == 0


@pytest.mark.parametrize(("name", "code"), [("var-d16", 1), ("no-such-model", 2), ("digits", 0)])
def test_a_name_says_which_model(capsys, name, code):
    capsys.readouterr()
    assert main(["models", "verify", name]) == code


def test_nothing_here_is_nothing_to_compare(capsys):
    assert verify(capsys) == (0, {}, "")
