"""Convolutions made faster for inference are about as exact as plain ones, and do not depend on the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from avarc_cli.layers import convolution
from avarc_cli.layers.convolution import MatmulConv, NarrowConv
from avarc_cli.layers.winograd import WinogradConv
from avarc_cli.tokenizers.vqvae.config import VQVAEConfig
from avarc_cli.tokenizers.vqvae.network import VQVAE

WIDE = VQVAEConfig(vocab_size=512, z_channels=8, ch=128, ch_mult=(1, 1, 3), patch_nums=(1, 2, 4, 8))
SMALL = VQVAEConfig(vocab_size=512, z_channels=64, ch=32, ch_mult=(1, 3), patch_nums=(1, 3, 8))


def error(y: Tensor, truth: Tensor) -> float:
    return (y.double() - truth).square().mean().sqrt().item()


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("stride", "padding", "bias", "shape"),
    [
        (1, 1, True, (2, 320, 16, 16)),
        (2, 0, True, (2, 160, 17, 33)),
        ((2, 1), (0, 2), False, (1, 130, 9, 7)),
        (1, 0, True, (3, 130, 3, 3)),
    ],
)
@torch.inference_mode()
def test_a_matrix_product_is_as_close_to_float64_as_the_plain_convolution(stride, padding, bias, shape, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(convolution, "STRIP", 2**18)  # several strips
    conv, x = nn.Conv2d(shape[1], 140, 3, stride, padding, bias=bias), torch.randn(shape)
    truth, plain = copy.deepcopy(conv).double()(x.double()), conv(x)
    for layout in (x, last(x)):
        ours = MatmulConv(conv)(layout)
        assert ours.shape == plain.shape
        assert error(ours, truth) <= 2 * error(plain, truth) + 1e-7


@pytest.mark.parametrize(
    ("conv", "kind"),
    [
        (nn.Conv2d(160, 160, 3, padding=1), WinogradConv),
        (nn.Conv2d(640, 640, 3, padding=1), MatmulConv),
        (nn.Conv2d(160, 160, 3, stride=2), MatmulConv),
        (nn.Conv2d(640, 32, 3, padding=1), MatmulConv),
        (nn.Conv2d(3, 160, 3, padding=1), NarrowConv),
        (nn.Conv2d(640, 640, 1), nn.Conv2d),
        (nn.Conv2d(160, 160, 3, padding=1, groups=2), nn.Conv2d),
        (nn.Conv2d(160, 160, 3, dilation=2), nn.Conv2d),
        (nn.Conv2d(160, 160, 3, padding="same"), nn.Conv2d),
        (nn.Conv2d(160, 160, 3, padding=1, padding_mode="reflect"), nn.Conv2d),
    ],
)
def test_what_replaces_a_convolution_follows_from_its_shape(conv, kind):
    assert type(convolution.faster(conv)) is kind


def encoder(config: VQVAEConfig) -> tuple[VQVAE, VQVAE]:
    """A plain model, and the same as it is loaded on a CPU."""
    torch.manual_seed(0)
    plain = VQVAE(config).eval()
    ours = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    ours.speed_up()
    return plain, ours


@pytest.mark.parametrize("config", [WIDE, SMALL])
@torch.inference_mode()
def test_latents_are_at_most_twice_as_far_from_float64_as_plain_pytorchs(config):
    plain, ours = encoder(config)
    images = torch.rand(3, 3, config.image_size, config.image_size) * 2 - 1
    truth = copy.deepcopy(plain).double().encode(images.double())
    assert error(ours.encode(last(images)), truth) <= 2 * error(plain.encode(images), truth)


@pytest.mark.parametrize("config", [WIDE, SMALL])
@torch.inference_mode()
def test_latents_and_tokens_of_an_image_do_not_depend_on_its_batch(config):
    _, ours = encoder(config)
    images = last(torch.rand(7, 3, config.image_size, config.image_size) * 2 - 1)
    latents = ours.encode(images).contiguous()
    tokens = ours.tokenize(latents)
    for size in (1, 2, 3):
        parts = [ours.encode(part).contiguous() for part in images.split(size)]
        assert torch.equal(torch.cat(parts), latents)
        assert torch.equal(torch.cat([ours.tokenize(part) for part in parts]), tokens)


@pytest.mark.parametrize("config", [WIDE, SMALL])
def test_the_state_dict_stays_that_of_the_plain_model(config):
    plain, ours = (model.state_dict() for model in encoder(config))
    assert list(ours) == list(plain)
    assert all(torch.equal(ours[key], tensor) for key, tensor in plain.items())


@torch.inference_mode()
def test_channels_last_computes_what_torchs_own_conversion_does():
    torch.manual_seed(0)
    with torch.inference_mode(False):
        vqvae = VQVAE(WIDE).eval().requires_grad_(False)
        plain = copy.deepcopy(vqvae).to(memory_format=torch.channels_last)
        for network in (vqvae, plain):
            network.speed_up()
        convolution.to_channels_last(vqvae)
    images = last(torch.randn(2, 3, WIDE.image_size, WIDE.image_size))
    latents = vqvae.encode(images)
    assert torch.equal(latents, plain.encode(images))
    tokens = vqvae.tokenize(latents)
    assert not vqvae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(vqvae.reconstruct(tokens), plain.reconstruct(tokens))
    assert vqvae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test_layouts_that_were_freed_are_made_again():
    torch.manual_seed(0)
    module = nn.Sequential(WinogradConv(nn.Conv2d(128, 128, 3, padding=1)), MatmulConv(nn.Conv2d(128, 130, 3)))
    x = torch.randn(1, 128, 8, 8)
    before, made = module(x), [set(vars(conv)) for conv in module]
    convolution.free_layouts(module)
    assert [len(names - set(vars(conv))) for names, conv in zip(made, module, strict=True)] == [1, 1]
    assert torch.equal(module(x), before)
