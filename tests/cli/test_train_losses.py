"""Terms of the published losses in `avarc train`: what is trained with, what is left out, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from fake_hub import sha256
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_datasets import halves

from avarc_cli.cli import main
from avarc_cli.train.discriminators.vit import ViT
from avarc_cli.train.perceptual.convnext import ConvNeXt
from avarc_cli.train.perceptual.lpips import LPIPS
from avarc_cli.zoo import networks

BRIEF = ["--augment", "none", "--batch-size", "2", "--steps", "3", "--vocab", "16", "--channels", "4", "--overwrite"]
LEVELS = ["--width", "32", "--multipliers", "1,1", "--blocks", "1", "--image-size", "16"]
SCALES = [*LEVELS, "--patch-nums", "1,8"]
TITOK = ["--image-size", "16", "--tokens", "4", "--width", "64", "--depth", "1"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images in img/, and files of networks with random weights under the published names."""
    folder = tmp_path_factory.mktemp("losses")
    halves(folder / "img")
    torch.manual_seed(0)
    whole = LPIPS().state_dict()
    save_file({k: v for k, v in whole.items() if k.startswith("features.")}, folder / "vgg.safetensors")
    torch.save({k: v.abs() for k, v in whole.items() if k.startswith("lin")}, folder / "lpips.pth")
    save_file(ViT(1).state_dict(), folder / "dino.safetensors")
    return folder


def train(files, tokenizer, *words, out="out.safetensors"):
    named = [str(files / word) if (files / word).exists() else word for word in words]
    return main(["train", tokenizer, str(files / "img"), *BRIEF, *named, "--out", str(files / out)])


LPIPS_FILES = ["--vgg", "vgg.safetensors", "--lpips", "lpips.pth"]


def test_a_training_says_which_terms_of_the_published_loss_it_leaves_out(files, capsys):
    assert train(files, "vq", *LEVELS) == 0
    said = " ".join(capsys.readouterr().err.split())
    without = "LPIPS (avarc download vgg16 lpips, or --vgg and --lpips), a discriminator (--adversarial)"
    assert f"the published loss is trained without {without}" in said


def test_all_terms_change_the_weights_and_leave_no_note(files, capsys):
    assert train(files, "vq", *LEVELS, out="plain.safetensors") == 0
    capsys.readouterr()
    for out in ("a.safetensors", "b.safetensors"):
        assert train(files, "vq", *LEVELS, *LPIPS_FILES, "--adversarial", out=out) == 0
    said = capsys.readouterr().err
    assert "without" not in said and "lpips" in said and "d_loss" in said
    plain, a, b = (load_file(files / f"{name}.safetensors") for name in ("plain", "a", "b"))
    assert a.keys() == plain.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["decoder.conv_out.weight"], plain["decoder.conv_out.weight"])


def test_a_vq_vae_is_trained_against_a_discriminator_that_sees_through_a_vit(files, capsys):
    assert train(files, "tokenizer", *SCALES, "--adversarial", "--dino", "dino.safetensors") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "adaptive" in said and "without LPIPS (for images from 48 pixels on)" in said
    assert f"the loss uses a discriminator ({files / 'dino.safetensors'})" in said


def test_measures_against_unused_codes_are_taken_and_the_use_is_shown(files, capsys):
    measures = ["--reanchor", "--scale-dropout", "0.5", "--perturb", "0.5"]
    assert train(files, "tokenizer", *SCALES, *measures) == 0
    assert "codes in use by scale: 1x1 " in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_titok_is_compared_by_logits(files, capsys):
    with torch.device("meta"):
        keys = ConvNeXt().state_dict()
    torch.manual_seed(0)
    save_file({k: 0.02 * torch.randn(v.shape) for k, v in keys.items()}, files / "convnext.safetensors")
    words = ["--convnext", "convnext.safetensors", "--adversarial", "--steps", "1"]
    assert train(files, "titok", *TITOK, *words) == 0
    assert "logits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["vq", *LEVELS, "--vgg", "vgg.safetensors"], "--vgg needs --lpips"),
        (["vq", *LEVELS, "--lpips", "lpips.pth"], "--lpips needs --vgg"),
        (["vq", *LEVELS, "--dino", "dino.safetensors"], "--dino has no use here"),
        (["vq", *LEVELS, "--convnext", "dino.safetensors"], "--convnext has no use here"),
        (["vq", *LEVELS, "--image-size", "8", *LPIPS_FILES], "LPIPS cannot compare images of 8 pixels"),
        (["vq", *LEVELS, "--vgg", "none.pth", "--lpips", "lpips.pth"], "none.pth"),
        (["tokenizer", *SCALES, "--adversarial"], "--adversarial needs --dino here"),
        (["tokenizer", *SCALES, "--dino", "dino.safetensors"], "--dino needs --adversarial here"),
        (["tokenizer", *SCALES, "--scale-dropout", "1.5"], "--scale-dropout is 1.5"),
        (["vq", *LEVELS, "--perturb", "nan"], "--perturb is nan"),
        (["vq", *LEVELS, "--lpips-weight", "-1"], "--lpips-weight is -1"),
        (["vq", *LEVELS, "--lpips-weight", "1"], "--lpips-weight has no network to use"),
        (["titok", *TITOK, "--convnext-weight", "inf"], "--convnext-weight is inf"),
        (["titok", *TITOK, "--convnext-weight", "0.1"], "avarc download convnext-small"),
        (["titok", *TITOK, "--codes-of", "digits-vq", "--adversarial"], "no use for --adversarial in the first stage"),
    ],
)
def test_files_that_do_not_go_together_are_refused(files, capsys, words, says):
    assert train(files, *words, out="refused.safetensors") == 2
    said = capsys.readouterr().err
    assert says in " ".join(said.split()) and "Traceback" not in said
    assert not (files / "refused.safetensors").exists()


def test_a_file_of_another_network_is_refused_by_name(files, capsys):
    words = ["--vgg", "dino.safetensors", "--lpips", "lpips.pth"]
    assert train(files, "vq", *LEVELS, *words, out="refused.safetensors") == 1
    assert "does not fit a VGG16 with the heads of LPIPS" in " ".join(capsys.readouterr().err.split())


# ---- networks that were downloaded


@pytest.fixture
def downloaded(files, tmp_path, monkeypatch):
    """The folder of torch.hub, with the networks of LPIPS and DINO."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for name, file in (("vgg16", "vgg.safetensors"), ("lpips", "lpips.pth"), ("dino-vits16", "dino.safetensors")):
        (folder / networks.find(name).weights.filename).write_bytes((files / file).read_bytes())
    return folder


def weights_of(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118  # not a mapping


def test_downloaded_networks_are_used_stated_and_recorded(files, downloaded, capsys):
    assert train(files, "vq", *LEVELS, *LPIPS_FILES, out="named.safetensors") == 0
    capsys.readouterr()
    assert train(files, "vq", *LEVELS, out="found.safetensors") == 0
    said = " ".join(capsys.readouterr().err.split())
    first, second = (downloaded / networks.find(name).weights.filename for name in ("vgg16", "lpips"))
    assert f"the loss uses LPIPS ({first} and {second}; --lpips-weight 0 leaves it out)" in said
    assert "without a discriminator (--adversarial)" in said
    (named, of_named), (found, of_found) = (weights_of(files / f"{name}.safetensors") for name in ("named", "found"))
    assert all(torch.equal(named[key], found[key]) for key in named)
    digests = {"vgg16": sha256(first.read_bytes()), "lpips": sha256(second.read_bytes())}
    assert json.loads(of_found["frozen_networks"]) == digests and of_found == of_named


def test_the_weight_0_leaves_a_term_out_and_the_training_is_as_without_the_network(files, downloaded, capsys):
    assert train(files, "vq", *LEVELS, "--lpips-weight", "0", out="zero.safetensors") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "without LPIPS (--lpips-weight 0)" in said and "uses" not in said
    for file in downloaded.iterdir():
        file.unlink()
    assert train(files, "vq", *LEVELS, out="plain.safetensors") == 0
    assert (files / "zero.safetensors").read_bytes() == (files / "plain.safetensors").read_bytes()


def test_a_named_file_wins_and_the_other_half_of_lpips_may_be_downloaded(files, downloaded, capsys):
    assert train(files, "vq", *LEVELS, "--vgg", "vgg.safetensors", "--lpips-weight", "0.5") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"LPIPS ({files / 'vgg.safetensors'} and {downloaded}" in said


def test_a_downloaded_vit_serves_the_discriminator(files, downloaded, capsys):
    assert train(files, "tokenizer", *SCALES, "--adversarial") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "a discriminator (" in said and "--no-adversarial leaves it out" in said and "adaptive" in said


def test_a_continued_training_needs_the_same_networks(files, downloaded, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    words = ["vq", *LEVELS, "--lpips-weight", "1", "--steps", "4", "--save-every", "1"]
    command = ["train", words[0], str(files / "img"), *BRIEF, *words[1:], "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avarc_cli.train.loop.discard", lambda path: None)
        assert main(command) == 0
    heads = downloaded / networks.find("lpips").weights.filename
    torch.save({key: 2 * value for key, value in torch.load(heads, weights_only=True).items()}, heads)
    assert main(command) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "belongs to a training with another loss" in said
    assert "its frozen networks must be those of that run" in said and "Traceback" not in said
