"""avarc models add and remove: names for the user's own checkpoints."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from avarc_cli.cli import main
from avarc_cli.errors import AvarcError, UsageError
from avarc_cli.loading import load_model
from avarc_cli.zoo import cards, registered, weights_index

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def mine(tiny, tmp_path):
    """A generator as a pickle, and its tokenizer as safetensors."""
    torch.save({"trainer": {"var_wo_ddp": tiny.tensors("var")}}, tmp_path / "VAR.pth")
    scales = ",".join(map(str, tiny.patch_nums))
    save_file(tiny.tensors("vae"), tmp_path / "vae.safetensors", {"patch_nums": scales, "preprocess": "fit"})
    return tmp_path


def add(*words):
    return main(["models", "add", *map(str, words)])


@pytest.fixture
def both(mine):
    assert add("my-vq", mine / "vae.safetensors", "--license", "MIT") == 0
    assert add("my-var", mine / "VAR.pth", "--tokenizer", "my-vq") == 0
    return mine


def test_a_registered_pair_is_loaded_by_name(both, tiny, capsys):
    loaded = load_model("my-var")
    assert torch.equal(loaded.likelihood.var.head.weight, tiny.tensors("var")["head.weight"])
    assert (loaded.tokenizer.name, loaded.tokenizer.preprocess, loaded.name) == ("my-vq", "fit", "my-var")
    assert weights_index.is_indexed(both / "VAR.pth"), "and loads fast"
    capsys.readouterr()
    assert main(["--quiet", "models"]) == 0
    assert {"my-var", "my-vq", "digits"} <= set(capsys.readouterr().out.split())


def test_the_card_of_a_registered_file_has_its_facts(both, tiny, capsys):
    card = cards.model_card("my-var")
    reader = cards.tokenizer_card("my-vq")
    assert (card.layout.sides, card.num_classes) == (tiny.patch_nums, tiny.meta["config"]["num_classes"])
    assert reader.preprocess == "fit" and card.image_size == reader.image_size
    capsys.readouterr()
    assert main(["models", "show", "my-vq", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["license"] == "MIT" and shown["path"] == str(both / "vae.safetensors")


def test_a_tokenizer_may_be_named_by_its_path(mine, monkeypatch):
    monkeypatch.chdir(mine)
    assert add("my-var", "VAR.pth", "--tokenizer", "vae.safetensors") == 0
    monkeypatch.chdir("/")
    assert load_model("my-var").tokenizer.file == str(mine / "vae.safetensors")


def test_a_removed_name_is_unknown_and_its_file_is_kept(both):
    assert main(["models", "remove", "my-var"]) == 0
    assert main(["models", "remove", "my-vq"]) == 0
    with pytest.raises(UsageError, match="no model is called"):
        cards.model_card("my-var")
    assert (both / "VAR.pth").exists() and not weights_index.is_indexed(both / "VAR.pth")
    assert registered.load() == registered.Registered()


WRONG = [
    (["x", "VAR.pth"], "--tokenizer"),
    (["x", "gone.pth"], "no file"),
    (["my-vq", "vae.safetensors"], "is taken"),
    (["digits", "vae.safetensors"], "is taken"),
    (["-x", "vae.safetensors"], ""),
    (["a/b", "vae.safetensors"], "cannot be a name"),
    (["", "vae.safetensors"], "an argument is empty"),
    (["x", "VAR.pth", "--tokenizer", "digits-vqvae"], "another tokenizer"),
    (["x", "VAR.pth", "--tokenizer", "my-var"], "no tokenizer is called"),
]


def test_invalid_registrations_are_rejected(both, capsys, monkeypatch):
    monkeypatch.chdir(both)
    before = registered.load()
    for words, message in WRONG:
        capsys.readouterr()
        assert add(*words) in (1, 2), words
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err, err
    assert registered.load() == before


def test_scales_of_a_generator_are_its_tokenizers(mine, capsys):
    assert add("my-var", mine / "VAR.pth", "--tokenizer", mine / "vae.safetensors", "--patch-nums", "1,2") == 2
    assert "no use for --patch-nums with --tokenizer" in capsys.readouterr().err


def test_a_tokenizer_that_a_model_needs_is_not_removed(both, capsys):
    for name, message in (("my-vq", "my-var reads its tokens"), ("var-d16", "not a checkpoint that you registered")):
        assert main(["models", "remove", name]) == 2
        assert message in capsys.readouterr().err


def test_a_missing_registered_file_is_reported_with_a_fix(both, capsys):
    (both / "VAR.pth").unlink()
    assert main(["sample", "0", "--out", str(both / "s.png"), "--model", "my-var"]) == 2
    assert "avarc models remove my-var" in capsys.readouterr().err
    assert main(["download", "my-var"]) == 2
    assert "is your own file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "models": [{}]}', "\0", "é"])
def test_names_that_cannot_be_read_are_reported_with_the_file(capsys, text):
    registered.file().parent.mkdir(parents=True)
    registered.file().write_text(text, "latin-1")
    with pytest.raises(AvarcError, match=r"models\.json"):
        registered.load()
    assert main(["models"]) == 1
    assert "models.json" in capsys.readouterr().err


def test_names_that_cannot_be_written_are_reported(mine, capsys, monkeypatch):
    shutil.rmtree(mine / "avarc", ignore_errors=True)
    (mine / "avarc").write_text("a file where the folder should be")
    assert add("my-vq", mine / "vae.safetensors") == 1
    err = capsys.readouterr().err
    assert "AVARC_HOME" in err and "Traceback" not in err
