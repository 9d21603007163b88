"""Weights of convolutions are laid out when they are first used, with the same results."""

import torch
from torch import nn

from avarc_cli.layers import memory_format
from avarc_cli.layers.memory_format import channels_last


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
        self.small = nn.Conv2d(8, 2, 3)

    def forward(self, x):
        return self.small(self.encoder(x))


def is_laid_out(conv):
    return conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_large_child_is_laid_out_when_it_is_first_called(monkeypatch):
    eager, late = Network(), Network()
    eager.to(memory_format=torch.channels_last)
    monkeypatch.setattr(memory_format, "LARGE", 1 + late.small.weight.nbytes + late.small.bias.nbytes)
    channels_last(late)
    first, weight = late.encoder[0], late.encoder[0].weight
    assert is_laid_out(late.small) and not is_laid_out(first)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(late(x), eager(x))
    assert is_laid_out(first) and first.weight is weight
    late(x).sum().backward()  # they are no inference tensors
    assert first.weight.grad is not None
