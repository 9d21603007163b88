"""The faster convolutions compute what the plain ones do, about as exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from avarc_cli.layers import winograd
from avarc_cli.layers.winograd import WinogradConv
from avarc_cli.tokenizers.vqvae.config import VQVAEConfig
from avarc_cli.tokenizers.vqvae.network import VQVAE


def error(y: torch.Tensor, truth: torch.Tensor) -> float:
    return (y.double() - truth).square().mean().sqrt().item()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "channels"),
    [((2, 160, 16, 16), 160), ((1, 160, 4, 12), 200), ((1, 1, 8, 4), 1), ((3, 128, 36, 20), 128)],
)
def test_it_is_nearly_as_close_to_float64_as_the_plain_convolution(shape, channels, bias, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(winograd, "STRIP", 2**16)  # several strips
    conv = nn.Conv2d(shape[1], channels, 3, padding=1, bias=bias)
    x = torch.randn(shape)
    with torch.no_grad():
        truth, plain = copy.deepcopy(conv).double()(x.double()), conv(x)
        ours = WinogradConv(conv)(x.contiguous(memory_format=torch.channels_last))
    assert ours.shape == plain.shape
    # 3, not the usual 2: with AVX-512 plain convolutions add blocks of 16 channels, and are 2.6 times closer than here.
    assert error(ours, truth) <= 3 * error(plain, truth) + 1e-6


def test_sides_that_are_no_multiple_of_4_are_convolved_plainly():
    conv = nn.Conv2d(3, 5, 3, padding=1)
    x = torch.randn(1, 3, 8, 6)
    assert torch.equal(WinogradConv(conv)(x), conv(x))


def test_an_encoder_made_faster_gives_the_same_tokens():
    torch.manual_seed(0)
    config = VQVAEConfig(vocab_size=512, z_channels=8, ch=128, ch_mult=(1, 1, 2), patch_nums=(1, 2, 4, 8))
    model = VQVAE(config).eval().to(memory_format=torch.channels_last)
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        latents = model.encode(images)
        model.speed_up()
        faster = model.encode(images)
        assert torch.equal(model.tokenize(faster), model.tokenize(latents))
    replaced = [type(block.conv1) for level in model.encoder.down for block in level.block]
    assert replaced == [WinogradConv] * 6
    assert (faster - latents).abs().max() < 1e-5 * latents.abs().max() * 10
    assert not torch.equal(faster, latents)  # or nothing was replaced
