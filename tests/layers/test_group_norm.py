"""In channels-last layout a group is normalized as exactly as in the plain one, whatever its batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.group_norm import GroupNorm


def error(y: Tensor, truth: Tensor) -> float:
    return (y.double() - truth).square().mean().sqrt().item()


def norm(channels: int, groups: int) -> GroupNorm:
    made = GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made.eval()


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mean", [0, 100, 1000])  # standard deviations
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 160, 32, 32), 32),
        ((1, 64, 256, 256), 32),  # a large map
        ((3, 32, 24, 8), 32),  # groups of one channel
        ((2, 40, 13, 7), 1),  # one group; sides that are prime
        ((4, 64, 1, 1), 32),  # one pixel, two channels a group
        ((4, 32, 1, 1), 32),  # one number a group: its variance is 0
        ((1, 96, 1, 500), 8),
    ],
)
@torch.inference_mode()
def test_it_is_as_close_to_float64_as_the_plain_layout(shape, groups, mean):
    torch.manual_seed(0)
    layer, x = norm(shape[1], groups), torch.randn(shape) + mean
    truth = F.group_norm(x.double(), groups, layer.weight.double(), layer.bias.double(), layer.eps)
    plain = F.group_norm(x, groups, layer.weight, layer.bias, layer.eps)
    ours = layer(last(x))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert error(ours, truth) <= 2 * error(plain, truth) + 1e-7


@torch.inference_mode()
def test_parts_of_a_map_with_other_means_are_joined_exactly():
    torch.manual_seed(0)
    layer, x = norm(64, 32), torch.randn(1, 64, 64, 64)
    x[:, :, 20:] += 1000
    x[:, ::2, :, 5:] -= 300
    truth = F.group_norm(x.double(), 32, layer.weight.double(), layer.bias.double(), layer.eps)
    plain = F.group_norm(x, 32, layer.weight, layer.bias, layer.eps)
    assert error(layer(last(x)), truth) <= 2 * error(plain, truth) + 1e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_halves_are_summed_in_float32(dtype):
    torch.manual_seed(0)
    layer, x = norm(64, 32), (torch.randn(2, 64, 32, 32) + 20).to(dtype)
    truth = F.group_norm(x.double(), 32, layer.weight.double(), layer.bias.double(), layer.eps)
    ours = layer(last(x))
    assert ours.dtype == dtype
    assert error(ours, truth) <= 2 * error(truth.to(dtype), truth)


@torch.inference_mode()
def test_the_bits_of_an_image_depend_neither_on_its_batch_nor_on_threads():
    torch.manual_seed(0)
    layer, x = norm(160, 32), last(torch.randn(5, 160, 40, 40))
    expected, threads = layer(x), torch.get_num_threads()
    try:
        for torch_threads in (1, 2, 3):
            torch.set_num_threads(torch_threads)
            for size in (1, 2, 3):
                parts = [layer(part) for part in x.split(size)]
                assert torch.equal(torch.cat(parts), expected)
    finally:
        torch.set_num_threads(threads)


def test_gradients_are_torchs():
    torch.manual_seed(0)
    layer, x = norm(32, 8), last(torch.randn(2, 32, 6, 6)).requires_grad_()
    plain = nn.GroupNorm(8, 32, eps=1e-6)
    plain.load_state_dict(layer.state_dict())
    grads = [torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()]) for module in (layer, plain)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
