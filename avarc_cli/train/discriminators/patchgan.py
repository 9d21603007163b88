"""The discriminator of pix2pix (arXiv:1611.07004), which judges overlapping patches; LlamaGen's tokenizer uses it.

Shapes: B images, C channels, h, w sides of the logits.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class PatchGAN(nn.Module):
    """Convolutions with batch normalization: with three levels, each logit sees 70 x 70 pixels."""

    unit_range = False
    """Whether images come in [0, 1] rather than [-1, 1]."""

    def __init__(self, channels: int = 64, levels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        widths = [channels * min(2**n, 8) for n in range(levels + 1)]
        for level, (before, width) in enumerate(pairwise(widths), start=1):
            stride = 2 if level < levels else 1
            conv = nn.Conv2d(before, width, 4, stride, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)
        self.apply(_initialize)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits (B, 1, h, w), larger for what looks real; nothing is random."""
        return self.main(images)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
