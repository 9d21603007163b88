"""TiTok: parity with the reference implementation, two-stage and single-stage."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill

from avarc_cli import families
from avarc_cli.errors import CheckpointError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.tokenizers.titok.config import is_first_stage
from avarc_cli.tokenizers.titok.family import FAMILY
from avarc_cli.tokenizers.titok.loss import FirstStageLoss, SecondStageLoss
from avarc_cli.tokenizers.titok.network import TiTok

NAMES = ("titok_tiny", "titok_pixel_tiny")


@functools.cache  # for the tests of this file: filling 330 MB takes seconds
def golden(name):
    meta, arrays = fill.load_golden(GOLDEN / f"{name}.npz")
    return meta, arrays, fill.state_dict(meta["keys"], meta["seed"], meta["scales"])


def load(name):
    """(meta, arrays, tensors)."""
    meta, arrays, filled = golden(name)
    return meta, arrays, {key: torch.from_numpy(value) for key, value in filled.items()}


@pytest.fixture(scope="module", autouse=True)
def forget_afterwards():
    yield
    golden.cache_clear()


def build(tensors, stated):
    return FAMILY.build(tensors, ConfigSources((("config.json", stated),)), "titok.bin")


@pytest.fixture(scope="module", params=NAMES)
def titok(request):
    """(tolerance, arrays, tokenizer)."""
    meta, arrays, tensors = load(request.param)
    return meta["tolerances"]["default_atol"], arrays, build(tensors, meta["config"])


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float((ours.double() - torch.from_numpy(theirs).double()).abs().max())


@torch.inference_mode()
def test_tokens_codes_and_pictures_are_the_references(titok):
    tolerance, arrays, tokenizer = titok
    latents = tokenizer.encode(2 * torch.from_numpy(arrays["image"]) - 1)
    tokens = tokenizer.tokenize(latents)
    codes = tokenizer.quantize.lookup(tokens)
    assert error(latents, arrays["latents"]) <= tolerance
    assert np.array_equal(tokens.numpy(), arrays["indices"][:, 0])
    assert error(codes, arrays["quantized"]) <= 1e-6
    assert error((tokenizer.decode(codes) + 1) / 2, arrays["decoded"]) <= tolerance
    if "code_logits" in arrays:
        assert error(tokenizer.decoder(codes), arrays["code_logits"]) <= tolerance
    drawn = tokenizer.reconstruct(tokens)
    assert error((drawn + 1) / 2, arrays["decoded"].clip(0, 1)) <= tolerance
    assert drawn.abs().max() <= 1


@torch.inference_mode()
def test_no_bit_of_an_image_depends_on_its_batch(titok):
    _, arrays, tokenizer = titok
    images = 2 * torch.from_numpy(arrays["image"]) - 1
    together = tokenizer.encode(torch.cat([images, images.flip(0), images[:1]]))
    assert torch.equal(together[4], tokenizer.encode(images[:1])[0])
    assert torch.equal(together[2], tokenizer.encode(images[1:])[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_published_file_is_recognized_by_its_tensors(name):
    assert families.TOKENIZERS.recognize(load(name)[2], None, "a file") is FAMILY


def test_without_a_configuration_codes_have_unit_length_in_two_stage_models_only():
    for name, unit in zip(NAMES, (True, False), strict=True):
        config = build(load(name)[2], {}).config
        assert config.l2_norm is unit
        assert "use_l2_norm" in config.inferred


@pytest.mark.parametrize(
    ("vq_model", "says"),
    [
        ({"codebook_size": 512}, "codebook_size is 512 there, and 256 in the tensors"),
        ({"num_latent_tokens": 32}, "num_latent_tokens is 32 there, and 8 in the tensors"),
        ({"use_l2_norm": "yes"}, "'use_l2_norm' in config.json cannot be read"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(vq_model, says):
    with pytest.raises(CheckpointError) as refused:
        build(load("titok_tiny")[2], {"model": {"vq_model": vq_model}})
    assert says in str(refused.value)


def test_a_reference_to_another_entry_states_nothing():
    stated = {"model": {"vq_model": {"codebook_size": "${model.generator.codebook_size}"}}}
    assert build(load("titok_pixel_tiny")[2], stated).vocab_size == 128


@pytest.mark.parametrize(
    ("key", "replacement", "says"),
    [
        ("encoder.positional_embedding", torch.zeros(18, 512), "its 17 patches fill no square"),
        ("encoder.class_embedding", torch.zeros(1, 500), "8 layers of 500 channels"),
        ("latent_tokens", torch.zeros(9, 512), "(8, 512) instead of (9, 512)"),
        ("pixel_quantize.embedding.weight", None, "only the first stage of a TiTok"),
    ],
)
def test_tensors_of_other_shapes_are_refused(key, replacement, says):
    _, _, tensors = load("titok_tiny")
    del tensors[key]
    if replacement is not None:
        tensors[key] = replacement
    with pytest.raises(CheckpointError) as refused:
        build(tensors, {})
    assert says in str(refused.value)


@torch.inference_mode()
def test_moments_draws_and_pictures_of_a_vae_are_the_references():
    meta, arrays, tensors = load("titok_vae_tiny")
    tolerance, tokenizer = meta["tolerances"]["default_atol"], build(tensors, meta["config"])
    assert (tokenizer.vocab_size, tokenizer.channels, tokenizer.inferred) == (0, 6, {})
    latents = tokenizer.encode(2 * torch.from_numpy(arrays["image"]) - 1)
    mean, logvar = tokenizer.quantize.moments(latents)
    noise_BLZ = torch.from_numpy(arrays["noise"])[:, :, 0].transpose(1, 2)
    drawn = tokenizer.draw(latents, noise_BLZ)
    assert error(latents, arrays["moments"]) <= tolerance
    assert error(mean, arrays["mean"]) <= tolerance
    assert error(logvar, arrays["logvar"]) <= tolerance
    assert error((0.5 * (mean**2 + logvar.exp() - 1 - logvar)).sum((1, 2)), arrays["kl"]) <= 10 * tolerance
    assert error(tokenizer.quantize.lookup(drawn), arrays["sample"]) <= tolerance
    assert torch.equal(tokenizer.quantize.lookup(tokenizer.tokenize(latents)), mean)
    for tokens, decoded in ((tokenizer.tokenize(latents), "decoded_mean"), (drawn, "decoded_sample")):
        assert tokens.shape == (2, 8, 6)
        assert error((tokenizer.decode(tokenizer.quantize.lookup(tokens)) + 1) / 2, arrays[decoded]) <= tolerance
        assert error((tokenizer.reconstruct(tokens) + 1) / 2, arrays[decoded].clip(0, 1)) <= tolerance


def test_a_vae_is_recognized_by_its_tensors_and_has_footprints():
    _, arrays, tensors = load("titok_vae_tiny")
    assert families.TOKENIZERS.recognize(tensors, None, "a file") is FAMILY
    tokenizer = build(tensors, {})
    footprints = tokenizer.footprints(torch.from_numpy(arrays["mean"])[0, :, 0].T)
    assert footprints.shape == (8, 4, 4)
    assert torch.allclose(footprints.sum((1, 2)), torch.ones(8))
    assert tokenizer.checkpoint_metadata() == {}


def test_the_logarithm_of_a_variance_is_clamped():
    tokenizer = build(load("titok_vae_tiny")[2], {})
    latents = torch.tensor([1.0, -90.0, 90.0]).repeat_interleave(torch.tensor([6, 3, 3]))[None, :, None, None]
    mean, logvar = tokenizer.quantize.moments(latents.expand(1, 12, 1, 8))
    assert mean.unique().tolist() == [1.0]
    assert logvar.unique().tolist() == [-30.0, 20.0]


@pytest.mark.parametrize(("name", "mode"), [("titok_vae_tiny", "vq"), ("titok_pixel_tiny", "vae")])
def test_another_kind_of_quantization_than_stated_is_refused(name, mode):
    with pytest.raises(CheckpointError, match=f"'quantize_mode' in config.json is '{mode}'"):
        build(load(name)[2], {"model": {"vq_model": {"quantize_mode": mode}}})


def test_a_step_of_training_changes_every_tensor():
    torch.manual_seed(0)
    network = FAMILY.new(image_size=8, patch=4, num_tokens=6, vocab_size=20, code_channels=4, width=64, depth=1)
    loss, before = FAMILY.training_loss(network), {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    value, shown = loss(torch.rand(2, 3, 8, 8) * 2 - 1, 0, 10, torch.Generator())
    value.backward()
    optimizer.step()
    assert set(shown) == {"rmse", "vq"}
    assert not [key for key, tensor in network.state_dict().items() if torch.equal(tensor, before[key])]
    assert network.checkpoint_metadata() == {"use_l2_norm": "false"}


class Teacher(torch.nn.Module):
    """Always gives these tokens (B, L)."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def encode(self, images):
        return images

    def tokenize(self, latents):
        return self.tokens


def test_the_loss_of_the_first_stage_is_the_cross_entropy_of_the_teachers_tokens_and_that_of_the_codes():
    meta, arrays, tensors = load("titok_tiny")
    whole = build(tensors, meta["config"])
    first = {key: value for key, value in tensors.items() if not key.startswith("pixel_")}
    assert is_first_stage(first) and not is_first_stage(tensors)
    network = TiTok(dataclasses.replace(whole.config, pixel_decoder=None))
    network.load_state_dict(first)
    logits = arrays["code_logits"].astype(np.float64).reshape(len(arrays["image"]), len(arrays["code_logits"][0]), -1)
    tokens = np.random.default_rng(0).integers(0, logits.shape[1], (len(logits), logits.shape[2]))
    log_prob = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    entropy = -np.take_along_axis(log_prob, tokens[:, None], 1).mean()
    latents, codes = (arrays[name].astype(np.float64) for name in ("latents", "quantized"))
    unit = latents / np.sqrt((latents**2).sum(1, keepdims=True))
    expected = entropy + 1.25 * ((unit - codes) ** 2).mean()  # codes have unit length already
    loss = FirstStageLoss(network, Teacher(torch.from_numpy(tokens)))
    found, shown = loss(2 * torch.from_numpy(arrays["image"]) - 1, 0, 10, torch.Generator())
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert shown["nats/code"] == pytest.approx(entropy, rel=1e-5)
    found.backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_loss_of_the_second_stage_is_the_squared_error_of_the_pixels():
    meta, arrays, tensors = load("titok_tiny")
    network = build(tensors, meta["config"])
    found, shown = SecondStageLoss(network)(2 * torch.from_numpy(arrays["image"]) - 1, 0, 10, torch.Generator())
    expected = 4 * ((arrays["decoded"].astype(np.float64) - arrays["image"]) ** 2).mean()
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert shown == {"rmse": pytest.approx(expected**0.5, rel=1e-5)}


def test_after_the_first_stage_there_is_nothing_that_draws_pixels():
    whole = build(load("titok_tiny")[2], {}).config
    network = TiTok(dataclasses.replace(whole, pixel_decoder=None))
    with pytest.raises(ValueError, match="no decoder for pixels"):
        network.reconstruct(torch.zeros(1, whole.num_tokens, dtype=torch.int64))
