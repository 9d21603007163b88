"""Commands whose weights are missing: they ask, they obey --yes, or they name the command to run."""

import os
import pty
from pathlib import Path

import pytest
import torch
from conftest import load_golden
from fake_hub import VAR
from PIL import Image
from programs import start

from avarc_cli.cli import main
from avarc_cli.tokens import read
from avarc_cli.zoo import cards, local_files, weights_index


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "image.png"
    Image.new("RGB", (64, 64)).save(path)
    return str(path)


COMMANDS = [
    ("classify", "{image}", "--model", "var-d16"),
    ("classify", "{image}", "--model", "digits", "--tokenizer", "var-vqvae-256"),
    ("encode", "{image}", "--out", "{dir}/t.h5", "--model", "var-vqvae-256"),
    ("sample", "3", "--out", "{dir}/s.png", "--model", "var-d16"),
    ("train", "var", "{classes}", "--out", "{dir}/v.safetensors", "--tokenizer", "var-vqvae-256"),
    ("train", "cca", "{classes}", "--out", "{dir}/v.safetensors", "--model", "var-d16"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2]))
def test_without_a_terminal_the_error_names_the_command(hub, capsys, tmp_path, picture, words):
    classes = tmp_path / "classes"
    for name in ("goldfish", "tench"):
        (classes / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(classes / name / "x.png")
    assert main([word.format(image=picture, classes=classes, dir=tmp_path) for word in words]) == 1
    err = capsys.readouterr().err
    assert "avarc download var-" in err and "Traceback" not in err
    assert not hub.requests


def test_with_yes_they_are_downloaded_and_used(hub, capsys, tmp_path, picture):
    tiny = load_golden("var_tiny")
    torch.save(tiny.tensors("vae"), tmp_path / "vae.pth")
    hub.files[VAR, "vae_ch160v4096z32.pth"] = (tmp_path / "vae.pth").read_bytes()
    words = ["encode", picture, "--out", str(tmp_path / "t.h5"), "--model", "var-vqvae-256", "--yes", "--workers", "0"]
    assert main(words) == 0, capsys.readouterr().err
    path = local_files.locate(cards.tokenizer_card("var-vqvae-256").weights)
    assert path is not None and weights_index.is_indexed(path)
    assert [r.path for r in hub.seen("HEAD") if "var_d16" in r.path] == [], "encode needs no generator"
    assert read(tmp_path / "t.h5").header.layout == cards.tokenizer_card("var-vqvae-256").layout


@pytest.mark.parametrize(("answer", "fetched"), [("y", True), ("n", False), ("\x04", False)])
def test_at_a_terminal_the_user_is_asked(hub, home, picture, answer, fetched):
    """The question goes to stderr; what was answered decides, and Ctrl-D is a no."""
    ours, theirs = pty.openpty()
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": "0"}
    process = start("ensure_weights", "var-vqvae-256", env=env, stdin=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while b"[y/N]" not in said:
        said += os.read(ours, 1000)
    os.write(ours, answer.encode() + (b"\n" if answer.isalpha() else b""))
    try:
        while more := os.read(ours, 1000):
            said += more
    except OSError:
        pass  # the other side is closed
    process.wait(timeout=300)
    assert b"var-vqvae-256" in said
    assert bool(list(Path(home).rglob("*.pth"))) == fetched
    assert (process.returncode == 0) == fetched
    assert fetched or b"avarc download var-vqvae-256" in said
