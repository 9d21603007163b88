"""VAEs and TA-TiToks through the commands."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avarc_cli.cli import main
from avarc_cli.tokenizers.tatitok.config import TATiTokConfig
from avarc_cli.tokenizers.tatitok.network import TATiTok
from avarc_cli.tokenizers.titok.config import TiTokConfig, TransformerConfig
from avarc_cli.tokenizers.titok.network import TiTok
from avarc_cli.tokens import read
from avarc_cli.train.save import save_tokenizer
from avarc_cli.zoo.local_files import ASSETS

DIGITS = ASSETS / "digits" / "test"
TRANSFORMER = TransformerConfig(width=64, depth=1, heads=1)
SHAPE = {
    "num_tokens": 16,
    "code_channels": 3,
    "patch": 4,
    "side": 4,
    "encoder": TRANSFORMER,
    "decoder": TRANSFORMER,
    "l2_norm": False,
}


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A VAE and a TA-TiTok with made-up weights, and caches of four images by both."""
    folder = tmp_path_factory.mktemp("continuous")
    torch.manual_seed(0)
    vae, text = folder / "vae.safetensors", folder / "text.safetensors"
    save_tokenizer(TiTok(TiTokConfig(**SHAPE, vocab_size=0)), vae, family="titok", preprocess="fit")
    shape = {**SHAPE, "vocab_size": 32, "text_length": 5, "text_width": 8}
    save_tokenizer(TATiTok(TATiTokConfig(**shape)), text, family="tatitok", preprocess="fit")
    for tokenizer in (vae, text):
        options = ["--tokenizer", tokenizer, "--sample", "4", "--samples", "2"]
        assert avarc("-q", "encode", DIGITS, *options, "--out", tokenizer.with_suffix(".h5")) == 0
    return SimpleNamespace(vae=vae, text=text, cache=vae.with_suffix(".h5"), text_cache=text.with_suffix(".h5"))


def refused(capsys, *words: object) -> str:
    """What an error of usage says."""
    capsys.readouterr()
    assert avarc(*words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


def test_a_cache_of_continuous_tokens_is_encoded_shown_verified_and_drawn(setting, tmp_path, capsys):
    options = ["--tokenizer", setting.vae, "--sample", "4", "--samples", "2", "--sigma", "0.3"]
    assert avarc("encode", DIGITS, *options, "--out", tmp_path / "t.h5") == 0
    assert "--sigma does not apply to vae.safetensors" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "t.h5").read_bytes() == setting.cache.read_bytes()

    assert avarc("cache", "info", setting.cache, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"vocabulary": None, "channels": 3, "views": "posterior", "sigma": 0.0}.items() <= facts.items()
    assert avarc("cache", "info", setting.cache) == 0
    assert "channels" in capsys.readouterr().out
    assert avarc("cache", "verify", setting.cache) == 0
    capsys.readouterr()

    picture = tmp_path / "rows.png"
    assert avarc("cache", "head", setting.cache, "--rows", 2, "--picture", picture, "--tokenizer", setting.vae) == 0
    said = capsys.readouterr()
    tokens = read(setting.cache).tokens([0])[0]
    assert f"{tokens[0, 0, 0]:.2f} {tokens[0, 0, 1]:.2f} {tokens[0, 0, 2]:.2f} ..." in " ".join(said.out.split())
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert avarc("cache", "head", setting.cache, "--rows", 1, "--json") == 0
    assert np.allclose(json.loads(capsys.readouterr().out)["rows"][0]["tokens"], tokens)


def test_bytes_do_not_depend_on_devices(setting, tmp_path):
    options = ["--tokenizer", setting.vae, "--sample", "4", "--samples", "2", "--devices", "cpu:2"]
    assert avarc("-q", "encode", DIGITS, *options, "--out", tmp_path / "t.h5") == 0
    assert (tmp_path / "t.h5").read_bytes() == setting.cache.read_bytes()


def test_the_dry_run_knows_the_size_of_continuous_tokens(setting, tmp_path, capsys):
    options = ["--tokenizer", setting.vae, "--sample", "8", "--samples", "2", "--dry-run", "--json"]
    assert avarc("encode", DIGITS, *options, "--out", tmp_path / "t.h5") == 0
    assert 8 * 2 * 16 * 3 * 4 in json.loads(capsys.readouterr().out)["files"].values()


def test_continuous_tokens_under_a_generator_of_codes_are_errors_that_name_both(setting, tmp_path, capsys):
    vae = ["--tokenizer", setting.vae]
    said = refused(capsys, "classify", DIGITS, "--model", "digits-titok", *vae, "--limit", "2")
    assert "digits-titok cannot read the tokens of vae.safetensors" in said
    assert "it reads codes, vae.safetensors gives continuous tokens" in said
    said = refused(capsys, "encode", DIGITS, "--model", "digits-titok", *vae, "--out", tmp_path / "t.h5")
    assert "digits-titok cannot read the tokens of vae.safetensors" in said
    said = refused(capsys, "classify", setting.cache, "--model", "digits-titok", "--out", tmp_path / "run")
    assert "holds continuous tokens of 3 channels, the model reads tokens of a codebook" in said
    assert "vae.safetensors" in said and "digits-titok-vq" in said
    said = refused(capsys, "train", "maskgit", DIGITS, *vae, "--out", tmp_path / "maskgit.safetensors")
    assert "cannot read the tokens of vae.safetensors" in said
    assert not (tmp_path / "run" / "predictions.jsonl").exists()


def test_two_names_that_do_not_go_together_are_an_error_before_a_download(capsys):
    said = refused(capsys, "classify", DIGITS, "--model", "maskgit-l32", "--tokenizer", "titok-ll32-vae")
    assert "it reads codes, titok-ll32-vae gives tokens of 16 channels" in said


def test_options_that_do_not_apply_are_errors_that_say_why(setting, tmp_path, capsys):
    said = refused(capsys, "encode", DIGITS, "--tokenizer", setting.vae, "--latents", "--out", tmp_path / "t.h5")
    assert "the tokens of vae.safetensors are its latents" in said
    said = refused(capsys, "cache", "export", setting.cache, "--out", tmp_path / "t.jsonl")
    assert "it holds continuous tokens" in said
    np.save(tmp_path / "t.npy", np.zeros((2, 16), dtype=np.int32))
    said = refused(
        capsys, "cache", "import", tmp_path / "t.npy", "--tokenizer", setting.vae, "--out", tmp_path / "t.h5"
    )
    assert "cannot import continuous tokens" in said
    assert not (tmp_path / "t.h5").exists()


def test_tokens_of_a_decoder_that_reads_captions_are_drawn_only_with_one(setting, tmp_path, capsys):
    assert read(setting.text_cache).tokens([0]).shape == (1, 2, 16)
    head = ["cache", "head", setting.text_cache, "--tokenizer", setting.text, "--picture", tmp_path / "rows.png"]
    assert "needs a caption to decode tokens" in refused(capsys, *head)
    assert not (tmp_path / "rows.png").exists()


def test_the_list_of_models_tells_channels_of_continuous_tokens_only(capsys):
    assert avarc("models", "show", "tatitok-bl32-vae") == 0
    said = capsys.readouterr().out
    assert "channels" in said and "turkeyju/tokenizer_tatitok_bl32_vae" in said
    assert avarc("models", "show", "tatitok-bl32-vq") == 0
    assert "channels" not in capsys.readouterr().out


def test_a_registered_vae_keeps_its_channels(setting, capsys):
    assert avarc("models", "add", "my-vae", setting.vae) == 0
    capsys.readouterr()
    try:
        assert avarc("models", "show", "my-vae", "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["family"], facts["channels"], facts["num_tokens"]) == ("titok", 3, 16)
    finally:
        assert avarc("models", "remove", "my-vae") == 0
