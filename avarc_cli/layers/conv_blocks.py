"""The parts that convolutional tokenizers share: those of VQGAN (arXiv:2012.09841), under its published keys.

Shapes: B images, C channels, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.dropout import Dropout
from avarc_cli.layers.group_norm import GroupNorm
from avarc_cli.layers.state_dict import shape_of
from avarc_cli.settings import check_levels


def group_norm(channels: int) -> GroupNorm:
    return GroupNorm(32, channels, eps=1e-6)


def silu(x: Tensor) -> Tensor:
    return F.silu(x, inplace=not torch.is_grad_enabled())  # x is a norm's output, which is not used again


class ResidualBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.dropout = Dropout()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(silu(self.norm1(x)))
        y = self.conv2(self.dropout(silu(self.norm2(y))))
        return y.add_(self.nin_shortcut(x))


class Downsample(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only


class Upsample(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def read_levels(
    tensors: Mapping[str, Tensor], first_conv: str, *, source: str, expected: str
) -> tuple[int, tuple[int, ...], int]:
    """Width of the first level, multiples of it of all levels, and residual blocks of a level of an encoder.

    Args:
        first_conv: key of the first convolution of block {block} of level {level}.
    Raises: CheckpointError when the tensors make up no such encoder.
    """
    ch = shape_of(tensors, "encoder.conv_in.weight", 4, source=source, expected=expected)[0]
    widths: list[int] = []
    while (key := first_conv.format(level=len(widths), block=0)) in tensors:
        widths.append(shape_of(tensors, key, 4, source=source, expected=expected)[0])
    blocks = sum(first_conv.format(level=0, block=j) in tensors for j in range(len(tensors)))
    if not widths or ch % 32 or any(w % ch for w in widths):
        raise CheckpointError(
            f"{source} does not fit a {expected}",
            f"its levels are {widths} channels wide; expected multiples of the first width {ch}, itself one of 32",
            "pass the tokenizer's checkpoint here",
        )
    return ch, tuple(w // ch for w in widths), blocks


def side_of_new(image_size: int, ch: int, ch_mult: tuple[int, ...]) -> int:
    """Rows of tokens that a network of these levels makes of an image. Raises: UsageError when they do not fit."""
    check_levels(image_size, ch_mult, ch)
    return image_size // 2 ** (len(ch_mult) - 1)
