"""Terms of the published losses in `avarc train`: what is trained with, what is left out, what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_datasets import halves

from avarc_cli.cli import main
from avarc_cli.train.discriminators.vit import ViT
from avarc_cli.train.perceptual.convnext import ConvNeXt
from avarc_cli.train.perceptual.lpips import LPIPS

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
    assert "the published loss is trained without LPIPS (--vgg and --lpips), a discriminator (--adversarial)" in said


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
    assert "adaptive" in said and "without LPIPS (--vgg and --lpips)" in said and "discriminator (" not in said


def test_measures_against_unused_codes_are_taken_and_the_use_is_told(files, capsys):
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
