"""StyleGAN-T's discriminator (arXiv:2301.09515) as VAR's tokenizer code (vaex) has it: heads on a frozen ViT-S/16.

Shapes: B images, C channels, L patches, G groups of images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from avarc_cli.train.discriminators.vit import SIZE, WIDTH, ViT

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]
EPSILON = 1e-6
GROUP = 8  # images of a group of `GroupedBatchNorm`


class GroupedBatchNorm(nn.Module):
    """Batch normalization of ceil(B / 8) groups, each by its own statistics; none are kept for evaluation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCL: Tensor) -> Tensor:
        """Raises: RuntimeError when the batch does not divide into its groups."""
        x = x_BCL.view(math.ceil(len(x_BCL) / GROUP), -1, *x_BCL.shape[1:])
        variance, mean = torch.var_mean(x, (1, 3), correction=0, keepdim=True)
        x = (x - mean) / (variance + EPSILON).sqrt()
        return (x * self.weight[:, None] + self.bias[:, None]).view(x_BCL.shape)


def _norm(kind: str) -> nn.Module:
    if kind == "gn":
        return nn.GroupNorm(32, WIDTH, eps=EPSILON)
    return GroupedBatchNorm(WIDTH) if kind == "bn" else nn.BatchNorm1d(WIDTH, eps=EPSILON)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.fn(x)) / math.sqrt(2)


class DinoDiscriminator(nn.Module):
    """Only the heads are trained and are part of the state dict. Needs its `vit` on the same device."""

    unit_range = False
    """Whether images come in [0, 1] rather than [-1, 1]."""

    def __init__(self, vit: ViT, *, kernel: int = 9, norm: str = "sbn", spectral: bool = True) -> None:
        """norm: "sbn", batch normalization, which several processes must synchronize; "bn", `GroupedBatchNorm`; or
        "gn", group normalization.
        """
        super().__init__()
        self._vit = (vit,)  # hidden from parameters() and state_dict()

        def convolution(channels: int, size: int) -> nn.Module:
            conv = nn.Conv1d(WIDTH, channels, size, padding=size // 2, padding_mode="circular")
            nn.init.trunc_normal_(conv.weight, std=0.02)
            return spectral_norm(conv) if spectral else conv

        def block(size: int) -> nn.Module:
            return nn.Sequential(convolution(WIDTH, size), _norm(norm), nn.LeakyReLU(0.2))

        self.heads = nn.ModuleList(
            nn.Sequential(block(1), Residual(block(kernel)), convolution(1, 1)) for _ in range(vit.num_read)
        )

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Logits (B, 196 times the number of heads), larger for what looks real.

        Args:
            generator: decides whether images larger than 224 pixels are cropped or reduced; None reduces them.
        """
        mean, std = (images.new_tensor(v)[:, None, None] for v in (MEAN, STD))
        features = self._vit[0](_resize(((images + 1) / 2 - mean) / std, generator))
        return torch.cat([head(x).flatten(1) for head, x in zip(self.heads, features, strict=True)], dim=1)


def _resize(images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Images of 224 pixels: half of the time a crop where there is more, otherwise all of it."""
    height, width = images.shape[2:]
    if min(height, width) > SIZE and generator is not None and torch.rand((), generator=generator) <= 0.5:
        top, left = (int(torch.randint(side - SIZE + 1, (), generator=generator)) for side in (height, width))
        return images[..., top : top + SIZE, left : left + SIZE]
    return F.interpolate(images, (SIZE, SIZE), mode="area" if height > SIZE else "bicubic")
