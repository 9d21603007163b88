"""The discriminator of TiTok and TA-TiTok (1d-tokenizer's code): convolutions, and blur before each reduction.

Shapes: B images, C channels, H and W rows and columns.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 16  # of the logits
SLOPE = 0.1


class SameConv2d(nn.Conv2d):
    """Padded so that the output has ceil(side / stride) pixels a side, as in TensorFlow."""

    def forward(self, x: Tensor) -> Tensor:
        padding: list[int] = []
        for side, kernel, stride in zip(reversed(x.shape[2:]), reversed(self.kernel_size), self.stride, strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


class BlurHalf(nn.Module):
    """Halves the sides after a blur with [1, 3, 3, 1] in both directions."""

    def forward(self, x: Tensor) -> Tensor:
        line = x.new_tensor([1.0, 3.0, 3.0, 1.0])
        kernel = (line[:, None] * line / 64).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class BlurDiscriminator(nn.Module):
    """Reads images in [0, 1] of sides of at least 16 times 2 to the power of `stages`, or smaller: it repeats then."""

    unit_range = True
    """Whether images come in [0, 1] rather than [-1, 1]."""

    def __init__(self, channels: int = 128, stages: int = 3) -> None:
        super().__init__()
        self.block_in = nn.Sequential(SameConv2d(3, channels, 5), nn.LeakyReLU(SLOPE))
        widths = [channels, *(channels * 2**stage for stage in range(stages))]
        self.blocks = nn.ModuleList(
            nn.Sequential(SameConv2d(before, width, 3), BlurHalf(), nn.GroupNorm(32, width), nn.LeakyReLU(SLOPE))
            for before, width in pairwise(widths)
        )
        self.to_logits = nn.Sequential(
            SameConv2d(widths[-1], widths[-1], 1), nn.LeakyReLU(SLOPE), SameConv2d(widths[-1], 1, 5)
        )

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits (B, 1, 16, 16), larger for what looks real; nothing is random."""
        x = self.block_in(images)
        for block in self.blocks:
            x = block(x)
        return self.to_logits(F.adaptive_max_pool2d(x, SIDE))
