"""MaskGen and TA-TiTok through the commands, with captions that a CLIP of a few kilobytes encodes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill
from PIL import Image
from tiny_encoders import tiny_clip

from avarc_cli.cli import main

POSITIONS, WIDTH = 9, 48  # of the golden generator's captions
TEXT = {"text_context_length": POSITIONS}


def avarc(*words: object) -> int:
    return main([str(word) for word in words])


def write(folder, name, config, shapes):
    """Weights of a golden file, with other shapes for some of its tensors, and its configuration beside them."""
    meta, _ = fill.load_golden(GOLDEN / f"{name}.npz")
    filled = fill.state_dict(meta["keys"] | shapes, meta["seed"], meta["scales"])
    folder.mkdir()
    torch.save({key: torch.from_numpy(value) for key, value in filled.items()}, folder / "w.bin")
    stated = meta["config"]
    stated["model"]["vq_model"] |= config
    (folder / "config.json").write_text(json.dumps(stated | TEXT))
    return folder / "w.bin"


def tatitok(folder, name, latents, channels, codes=None):
    width = fill.load_golden(GOLDEN / f"{name}.npz")[0]["keys"]["latent_tokens"][1]
    shapes = {
        "latent_tokens": [latents, width],
        "encoder.latent_token_positional_embedding": [latents, width],
        "decoder.latent_token_positional_embedding": [latents, width],
        "decoder.text_guidance_positional_embedding": [POSITIONS, width],
        "decoder.text_guidance_proj.weight": [width, WIDTH],
        "decoder.decoder_embed.weight": [width, channels],
        "encoder.conv_out.weight": [channels * (1 if codes else 2), width, 1, 1],
        "encoder.conv_out.bias": [channels * (1 if codes else 2)],
    }
    shapes |= {"quantize.embedding.weight": [codes, channels]} if codes else {}
    config = {"num_latent_tokens": latents, "token_size": channels} | ({"codebook_size": codes} if codes else {})
    return write(folder, name, config, shapes)


@pytest.fixture(scope="module", params=["vq", "kl"])
def setting(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f"maskgen_{request.param}")
    if request.param == "vq":
        reader = tatitok(folder / "tok", "tatitok_tiny", 16, 16, codes=128)
    else:
        reader = tatitok(folder / "tok", "tatitok_vae_tiny", 8, 4)
    generator = write(folder / "gen", f"maskgen_{request.param}_tiny", {}, {})
    for i in range(2):
        (folder / "img").mkdir(exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "img" / f"{i}.png")
    words = ["encode", folder / "img", "--tokenizer", reader, "--preprocess", "none", "--out", folder / "t.h5"]
    assert avarc("-q", *words) == 0
    (folder / "c.txt").write_text("a cat\na dog\nan owl\n")
    clip = tiny_clip(folder / "clip", width=WIDTH, embed=WIDTH, positions=POSITIONS)
    models = ["--model", generator, "--tokenizer", reader, "--text-encoder", clip]
    return SimpleNamespace(folder=folder, cache=folder / "t.h5", models=models, clip=clip)


def test_images_are_scored_under_captions_and_the_empty_one(setting, tmp_path):
    words = ["-q", "classify", setting.cache, *setting.models, "--captions", setting.folder / "c.txt"]
    words += ["--steps", "4", "--score", "pmi", "--save-likelihood", "--out"]
    assert avarc(*words, tmp_path / "run") == 0
    assert avarc(*words, tmp_path / "plain", "--aesthetic-score", "2") == 0
    scores = [np.load(tmp_path / run / "likelihood" / "0.npz")["log_likelihood"] for run in ("run", "plain")]
    assert len(scores[0]) == 3 and np.isfinite(scores[0]).all() and not np.allclose(*scores)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "4 passes" in recorded["likelihood"] and recorded["captions"]["count"] == 3


@pytest.mark.parametrize("setting", ["kl"], indirect=True)
def test_several_templates_are_means(setting, tmp_path):
    words = ["-q", "classify", setting.cache, *setting.models, "--classes", "cat,dog", "--save-likelihood"]
    templates = {"a": ["a {}"], "b": ["the {}"], "both": ["a {}", "the {}"]}
    for run, each in templates.items():
        options = [word for template in each for word in ("--template", template)]
        assert avarc(*words, *options, "--steps", "2", "--out", tmp_path / run) == 0
    a, b, both = (np.load(tmp_path / run / "likelihood" / "1.npz")["log_likelihood"] for run in templates)
    assert np.allclose(both, (a + b) / 2, atol=1e-4)


def test_pictures_are_drawn_and_decoded_with_their_captions(setting, tmp_path):
    words = ["-q", "sample", "a cat", "a dog", *setting.models, "--count", "1", "--out", tmp_path / "s.png"]
    assert avarc(*words) == 0
    assert (tmp_path / "s.png").stat().st_size > 0


@pytest.mark.parametrize("setting", ["vq"], indirect=True)
def test_explanations_decode_with_the_empty_caption(setting, tmp_path):
    words = ["-q", "explain", setting.cache, *setting.models, "--captions", setting.folder / "c.txt", "--limit", "1"]
    assert avarc(*words, "--steps", "2", "--out", tmp_path / "e.png") == 0
