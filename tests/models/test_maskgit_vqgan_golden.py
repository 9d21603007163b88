"""The MaskGIT-VQGAN: parity with the reference implementation, and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from golden import fill

from avarc_cli import families
from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.tokenizers.maskgit_vqgan.family import FAMILY
from avarc_cli.tokenizers.maskgit_vqgan.network import ResidualBlock

NEW = {"image_size": 8, "vocab_size": 64, "code_channels": 4, "ch": 32, "ch_mult": (1, 2), "blocks": 1}


def load():
    meta, arrays = fill.load_golden(GOLDEN / "maskgit_vqgan_tiny.npz")
    filled = fill.state_dict(meta["keys"], meta["seed"], meta["scales"])
    return meta, arrays, {key: torch.from_numpy(value) for key, value in filled.items()}


def build(tensors, **stated):
    return FAMILY.build(tensors, ConfigSources((("config.json", stated),)), "maskgit-vqgan.bin")


@pytest.fixture(scope="module")
def vq():
    """(tolerance, arrays, tokenizer)."""
    meta, arrays, tensors = load()
    return meta["tolerances"]["default_atol"], arrays, build(tensors, **meta["config"])


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    return float((ours.double() - torch.from_numpy(theirs).double()).abs().max())


@torch.inference_mode()
def test_tokens_codes_and_pictures_are_the_references(vq):
    tolerance, arrays, tokenizer = vq
    latents = tokenizer.encode(2 * torch.from_numpy(arrays["image"]) - 1)
    tokens = tokenizer.tokenize(latents)
    codes = tokenizer.quantize.lookup(tokens, 4)
    assert error(latents, arrays["latents"]) <= tolerance
    assert np.array_equal(tokens.numpy(), arrays["indices"])
    assert error(codes, arrays["quantized"]) == 0
    assert error((tokenizer.decode(codes) + 1) / 2, arrays["decoded"]) <= tolerance
    assert error((tokenizer.reconstruct(tokens) + 1) / 2, arrays["decoded_clamped"]) <= tolerance


@torch.inference_mode()
def test_the_faster_encoder_for_a_cpu_gives_the_same_tokens(vq):
    tolerance, arrays, _ = vq
    _, _, tensors = load()
    tokenizer = build(tensors, image_size=64).to(memory_format=torch.channels_last)
    tokenizer.speed_up()
    images = (2 * torch.from_numpy(arrays["image"]) - 1).contiguous(memory_format=torch.channels_last)
    latents = tokenizer.encode(images)
    assert error(latents, arrays["latents"]) <= tolerance
    assert np.array_equal(tokenizer.tokenize(latents).numpy(), arrays["indices"])


@torch.inference_mode()
def test_images_of_any_size_that_the_ratio_divides_are_read(vq):
    _, _, tensors = load()
    small = build(tensors, layout={"grids": [[2, 2]]})
    assert (small.image_size, str(small.layout)) == (32, "2x2 grid")
    tokens = small.tokenize(small.encode(torch.rand(1, 3, 32, 32)))
    assert tokens.shape == (1, 4) and small.reconstruct(tokens).shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="for a 4x4 grid"):
        vq[2].tokenize(torch.zeros(1, 32, 2, 2))


def test_where_the_width_changes_the_input_is_dropped():
    block = ResidualBlock(32, 64)
    torch.nn.init.zeros_(block.conv2.weight)
    assert not block(torch.randn(1, 32, 4, 4)).any()


def test_the_published_file_is_recognized_by_its_tensors():
    assert families.TOKENIZERS.recognize(load()[2], None, "a file") is FAMILY


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ({}, "--image-size 256"),
        ({"image_size": 100}, "cannot read images of 100 pixels"),
        ({"layout": {"tokens": 16}}, "one square grid"),
    ],
)
def test_a_size_of_images_that_fits_is_needed(stated, says):
    with pytest.raises(CheckpointError) as refused:
        build(load()[2], **stated)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("key", "shape", "says"),
    [
        ("encoder.conv_in.weight", (32, 3, 3), "'encoder.conv_in.weight' has shape (32, 3, 3)"),
        ("encoder.down.1.block.0.conv1.weight", (48, 32, 3, 3), "its levels are [32, 48, 64, 64, 128] channels wide"),
        ("encoder.down.2.block.0.nin_shortcut.weight", (64, 32, 1, 1), "(64, 32, 1, 1) instead of (64, 64, 1, 1)"),
        ("quantize.embedding.weight", (128, 16), "(32,) instead of (16,)"),
    ],
)
def test_tensors_of_other_shapes_are_refused(key, shape, says):
    _, _, tensors = load()
    tensors[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError) as refused:
        build(tensors, image_size=64)
    assert says in str(refused.value)


def test_a_step_of_training_changes_every_tensor():
    torch.manual_seed(0)
    network = FAMILY.new(**NEW)
    loss, before = FAMILY.training_loss(network), {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    value, shown = loss(images, 0, 10, torch.Generator())
    value.backward()
    optimizer.step()
    assert set(shown) == {"rmse", "vq"}
    assert not [key for key, tensor in network.state_dict().items() if torch.equal(tensor, before[key])]
    assert network.checkpoint_metadata() == {"image_size": "8"}


def test_a_shape_that_does_not_fit_the_images_is_refused():
    with pytest.raises(UsageError, match="do not fit 9-pixel images"):
        FAMILY.new(**NEW | {"image_size": 9})
