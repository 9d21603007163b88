"""TA-TiTok, with a codebook and as a VAE: parity with the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill

from avarc_cli import families
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.tokenizers.tatitok.family import FAMILY

NAMES = ("tatitok_tiny", "tatitok_vae_tiny")


def load(name):
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    return meta, arrays, {key: torch.from_numpy(value) for key, value in filled.items()}


def build(tensors, stated):
    return FAMILY.build(tensors, ConfigSources((("config.json", stated),)), "tatitok.bin")


@pytest.fixture(scope="module", params=NAMES)
def golden(request):
    """(tolerance, arrays, tokenizer)."""
    meta, arrays, tensors = load(request.param)
    return meta["tolerance"]["other_implementation"]["atol"], arrays, build(tensors, meta["config"])


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float((ours.double() - torch.from_numpy(theirs).double()).abs().max())


@torch.inference_mode()
def test_tokens_and_pictures_are_the_references(golden):
    tolerance, arrays, tokenizer = golden
    latents, text = tokenizer.encode(2 * torch.from_numpy(arrays["image"]) - 1), torch.from_numpy(arrays["text"])
    tokens = tokenizer.tokenize(latents)
    if tokenizer.channels:
        assert error(latents, arrays["moments"]) <= tolerance
        assert error(tokens.transpose(1, 2)[:, :, None], arrays["mean"]) <= tolerance
        assert error(tokenizer.quantize.moments(latents)[1], arrays["logvar"]) <= tolerance
        tokens = torch.from_numpy(arrays["mean"])[:, :, 0].transpose(1, 2)
    else:
        assert error(latents, arrays["z"]) <= tolerance
        assert np.array_equal(tokens.numpy(), arrays["tokens"][:, 0])
        codes = tokenizer.quantize.lookup(tokens)
        assert error(codes.permute(0, 2, 3, 1), arrays["z_quantized"]) <= 1e-6
        hidden = tokenizer.decoder.hidden(codes, tokenizer.decoder.embed_text(text))
        assert error(hidden, arrays["decoder_hidden"]) <= tolerance
    codes = tokenizer.quantize.lookup(tokens)
    assert error((tokenizer.decode(codes, text) + 1) / 2, arrays["decoded"]) <= tolerance
    drawn = tokenizer.with_guidance(text).reconstruct(tokens)
    assert error((drawn + 1) / 2, arrays["decoded"].clip(0, 1)) <= tolerance


@torch.inference_mode()
def test_a_caption_is_needed_to_decode_and_one_may_serve_all_images():
    _, arrays, tensors = load("tatitok_tiny")
    tokenizer, text = build(tensors, {}), torch.from_numpy(arrays["text"])
    tokens = torch.from_numpy(arrays["tokens"][:, 0])
    with pytest.raises(UsageError, match="needs a caption"):
        tokenizer.reconstruct(tokens)
    guided = tokenizer.with_guidance(text[0])
    together = guided.reconstruct(tokens)
    assert torch.allclose(together[:1], tokenizer.with_guidance(text).reconstruct(tokens)[:1], atol=1e-4)
    assert (together[1] - tokenizer.with_guidance(text[1]).reconstruct(tokens)[1]).abs().max() > 1e-3
    assert guided.latent_tokens is tokenizer.latent_tokens
    with pytest.raises(UsageError, match="needs a caption"):  # the network itself is as it was
        tokenizer.reconstruct(tokens)
    footprints = guided.footprints(tokens[0])
    assert footprints.shape == (8, 4, 4)
    assert torch.allclose(footprints.sum((1, 2)), torch.ones(8))
    with pytest.raises(ValueError, match=r"expected are \(77, 768\)"):
        tokenizer.with_guidance(text[:, :10])


@pytest.mark.parametrize("name", NAMES)
def test_the_published_file_is_recognized_by_its_tensors(name):
    assert families.TOKENIZERS.recognize(load(name)[2], None, "a file") is FAMILY


def test_how_often_codes_were_used_is_ignored_and_nothing_else():
    _, _, tensors = load("tatitok_tiny")
    assert build({**tensors, "quantize.embed_prob": torch.zeros(64)}, {}).vocab_size == 64
    with pytest.raises(CheckpointError, match=r"1 unknown: quantize\.other"):
        build({**tensors, "quantize.other": torch.zeros(64)}, {})
    del tensors["decoder.text_guidance_proj.bias"]
    with pytest.raises(CheckpointError, match="does not fit a TA-TiTok"):
        build(tensors, {})
