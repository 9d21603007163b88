"""Group normalization that rounds in channels-last layout as little as in the plain one.

On a CPU, torch sums a channels-last tensor and its squares over all rows in float32, and takes the variance as
E[x^2] - E[x]^2. Over 65,536 pixels that is 60 times less exact than its sums for the plain layout, and useless when the
mean is hundreds of standard deviations. Here, deviations are taken from the mean of a block of rows, whose size follows
from the shape of one image; moments of blocks are joined in float64 (Chan, Golub and LeVeque, "Updating formulae and a
pairwise algorithm for computing sample variances", 1979). So an image is normalized to the same bits in any batch, by
any number of threads.

Shapes: B images, C channels, H and W rows and columns, G groups, D = C / G channels of a group, N blocks of all images
or S of one, R pixels of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from avarc_cli.layers.threads import share

BLOCK = 2**17  # numbers of a block, and of what is summed at once: still in the cache when squared


class GroupNorm(nn.GroupNorm):
    """An `nn.GroupNorm` with weight and bias, for inputs (B, C, H, W). With gradients it computes as torch does."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        channels_last = x_BCHW.stride(1) == 1
        if torch.is_grad_enabled() or x_BCHW.device.type != "cpu" or not channels_last:
            return super().forward(x_BCHW)
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        mean_BG, variance_BG = _moments(x_BHWC, self.num_groups)
        each = self.num_channels // self.num_groups
        scale_BC = (variance_BG + self.eps).rsqrt().repeat_interleave(each, 1) * self.weight
        shift_BC = self.bias - mean_BG.repeat_interleave(each, 1) * scale_BC
        precise = _sums_dtype(x_BCHW)
        shift, scale = (t.to(precise)[:, None, None] for t in (shift_BC, scale_BC))
        return torch.addcmul(shift, x_BHWC, scale).to(x_BCHW.dtype).permute(0, 3, 1, 2)


def _moments(x_BHWC: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of channels, (B, G) float64."""
    b, h, w, c = x_BHWC.shape
    lines = max(n for n in range(1, h + 1) if h % n == 0 and n * w * c <= max(BLOCK, w * c))
    pixels, blocks = lines * w, h // lines
    x_NRC, precise = x_BHWC.reshape(b * blocks, pixels, c), _sums_dtype(x_BHWC)
    sums_2NC = x_BHWC.new_empty(2, b * blocks, c, dtype=precise)

    def add(pieces: Iterator[tuple[Tensor, ...]]) -> None:
        for x_nRC, mean_nC, squares_nC in pieces:
            x_nRC = x_nRC.to(precise)
            torch.mean(x_nRC, 1, out=mean_nC)
            torch.sum((x_nRC - mean_nC[:, None]).square_(), 1, out=squares_nC)

    at_once = max(1, BLOCK // (pixels * c))
    pieces = list(zip(*(t.split(at_once) for t in (x_NRC, *sums_2NC)), strict=True))
    if len(pieces) > 1:
        share(add, pieces)
    else:
        add(iter(pieces))
    mean_BSGD, squares_BSGD = sums_2NC.double().view(2, b, blocks, groups, -1)
    mean_BG = mean_BSGD.mean((1, 3))
    between_BG = (mean_BSGD - mean_BG[:, None, :, None]).square().mean((1, 3))
    return mean_BG, squares_BSGD.mean((1, 3)) / pixels + between_BG


def _sums_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
