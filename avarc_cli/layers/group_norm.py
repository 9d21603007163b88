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

import torch
from torch import Tensor, nn

BLOCK = 2**17  # numbers of a block, and for each thread of what is summed at once: still in the cache when squared


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
    x_NRC = x_BHWC.reshape(b * blocks, pixels, c)
    means, squares = [], []
    for x_nRC in x_NRC.split(max(1, BLOCK * torch.get_num_threads() // (pixels * c))):
        x_nRC = x_nRC.to(_sums_dtype(x_BHWC))
        mean_nC = x_nRC.mean(1)
        means.append(mean_nC)
        squares.append((x_nRC - mean_nC[:, None]).square_().sum(1))
    mean_BSGD, squares_BSGD = (torch.cat(t).double().view(b, blocks, groups, -1) for t in (means, squares))
    mean_BG = mean_BSGD.mean((1, 3))
    between_BG = (mean_BSGD - mean_BG[:, None, :, None]).square().mean((1, 3))
    return mean_BG, squares_BSGD.mean((1, 3)) / pixels + between_BG


def _sums_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
