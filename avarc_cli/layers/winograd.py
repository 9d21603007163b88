"""3x3 convolutions with a quarter of the multiplications, for inference on a CPU.

Winograd's F(4x4, 3x3): 4x4 outputs are a linear map of 36 products, where the plain sum takes 144. The products of all
tiles are 36 matrix products over the channels. Source: arXiv:1509.09308, section 4; the interpolation points are
0, +-5/8, +-3/2 and infinity in place of 0, +-1, +-2 and infinity, which halves the rounding error (the idea is that of
arXiv:1803.10986), and the sums over channels are made of sums over 32, which halves it again.

Shapes: B images, C and O channels in and out, H and W rows and columns, a multiple of 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

A, B = 5 / 8, 3 / 2  # the points are 0, A, -A, B, -B and infinity
STRIP = 2**21  # bytes of a strip's tiles, for each thread: what is transformed is still in the cache when it is used
SUMMED = 32  # channels of one matrix product; their sums are added, which rounds half as much as one product over all


class WinogradConv(nn.Module):
    """What an `nn.Conv2d(C, O, 3, padding=1)` computes, without gradients."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias  # for sides that are no multiple of 4

    @cached_property
    def weight_36CO(self) -> Tensor:  # noqa: N802  # a tensor of this shape
        """The transformed weight, made at its first use: scoring the tokens of a cache needs none."""
        points = [0.0, A, -A, B, -B]
        rows = [[1.0, p, p * p] for p in points]
        scales = [math.prod(p - q for q in points if q != p) for p in points]
        scaled = [[x / scale for x in row] for row, scale in zip(rows, scales, strict=True)]
        g = torch.tensor([*scaled, [0.0, 0.0, 1.0]], dtype=torch.float64, device=self.weight.device)
        weight = torch.einsum("ai,ocij,bj->abco", g, self.weight.detach().double(), g)
        return weight.flatten(0, 1).to(self.weight.dtype).contiguous()

    @torch.no_grad()
    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        if height % 4 or width % 4:
            return F.conv2d(x_BCHW, self.weight, self.bias, padding=1)
        x_BHWC = _pad(x_BCHW.permute(0, 2, 3, 1))
        y_BHWO = x_BCHW.new_empty(len(x_BCHW), height, width, self.weight_36CO.shape[2])
        strip = _Strip(self, height // 4, width // 4, like=x_BHWC)
        for x_HWC, y_HWO in zip(x_BHWC, y_BHWO, strict=True):
            for start in range(0, height, 4 * strip.rows):
                stop = start + 4 * strip.rows
                strip.convolve(x_HWC[start : stop + 2], y_HWO[start:stop])
        return y_BHWO.permute(0, 3, 1, 2)


class _Strip:
    """Buffers for some rows of tiles, used again for each strip of an image: new memory would cost as much as the sums.

    rows, columns: tiles of a strip; all strips are alike.
    """

    def __init__(self, conv: WinogradConv, height: int, width: int, *, like: Tensor) -> None:
        _, c, o = conv.weight_36CO.shape
        most = STRIP * torch.get_num_threads() // (36 * width * c * like.element_size())
        self.conv, self.columns = conv, width
        self.rows = max(n for n in range(1, height + 1) if height % n == 0 and n <= max(1, most))
        self.lines_in = like.new_empty(6, self.rows, 4 * width + 2, c)
        self.tiles = like.new_empty(6, 6, self.rows, width, c)
        self.products = like.new_empty(6, 6, self.rows, width, o)
        self.lines_out = like.new_empty(4, 6, self.rows, width, o)
        self.outputs = like.new_empty(4, 4, self.rows, width, o)
        self.scratch = like.new_empty(2, 6, self.rows, width, o)

    def convolve(self, x_HWC: Tensor, y_HWO: Tensor) -> None:
        """Rows of whole tiles to y; x has one row and one column more on each side."""
        last_row, last_column = 4 * self.rows - 3, 4 * self.columns - 3  # beginnings of tiles
        _to_points([x_HWC[i : i + last_row : 4] for i in range(6)], self.lines_in)
        _to_points([self.lines_in[:, :, i : i + last_column : 4] for i in range(6)], self.tiles.unbind(1))
        count = self.rows * self.columns
        _add_products(self.tiles.view(36, count, -1), self.conv.weight_36CO, self.products.view(36, count, -1))
        _from_points(self.products.unbind(1), self.lines_out, self.scratch)
        _from_points(self.lines_out.unbind(1), self.outputs, self.scratch[:, :4])
        y = y_HWO.view(self.rows, 4, self.columns, 4, -1)
        torch.add(self.outputs.permute(2, 0, 3, 1, 4), _bias(self.conv, y), out=y)


def _add_products(a_NRC: Tensor, b_NCO: Tensor, out: Tensor) -> None:
    """The product of each pair of matrices. BLAS adds up to hundreds of terms one after the other."""
    first, *others = zip(a_NRC.split(SUMMED, dim=2), b_NCO.split(SUMMED, dim=1), strict=True)
    torch.bmm(*first, out=out)
    for a, b in others:
        torch.baddbmm(out, a, b, out=out)


def _pad(x_BHWC: Tensor) -> Tensor:
    """One row and column of zeros on each side. F.pad would write zeros everywhere first."""
    size, height, width, channels = x_BHWC.shape
    padded = x_BHWC.new_empty(size, height + 2, width + 2, channels)
    for border in (padded[:, 0], padded[:, -1], padded[:, :, 0], padded[:, :, -1]):
        border.zero_()
    padded[:, 1:-1, 1:-1] = x_BHWC
    return padded


def _bias(conv: WinogradConv, like: Tensor) -> Tensor:
    return conv.bias if conv.bias is not None else like.new_zeros(())


def _to_points(d: Sequence[Tensor], out: Sequence[Tensor] | Tensor) -> None:
    """Six values of a polynomial's product, from six inputs d."""
    for p, other, plus, minus in ((A, B, 1, 2), (B, A, 3, 4)):
        torch.sub(d[4], d[2], alpha=other * other, out=out[0])
        torch.sub(d[3], d[1], alpha=other * other, out=out[5])
        torch.add(out[0], out[5], alpha=p, out=out[plus])
        torch.sub(out[0], out[5], alpha=p, out=out[minus])
    for first, last in ((0, 0), (1, 5)):
        torch.sub(d[first + 4], d[first + 2], alpha=A * A + B * B, out=out[last])
        out[last].add_(d[first], alpha=(A * B) ** 2)


def _from_points(m: Sequence[Tensor], out: Tensor, scratch: Tensor) -> None:
    """Four outputs from six products m. scratch: two tensors like m's."""
    even_a, even_b = torch.add(m[1], m[2], out=scratch[0]), torch.add(m[3], m[4], out=scratch[1])
    torch.add(m[0], even_a, out=out[0]).add_(even_b)
    torch.mul(even_a, A**2, out=out[2]).add_(even_b, alpha=B**2)
    odd_a, odd_b = torch.sub(m[1], m[2], out=scratch[0]), torch.sub(m[3], m[4], out=scratch[1])
    torch.mul(odd_a, A, out=out[1]).add_(odd_b, alpha=B)
    torch.mul(odd_a, A**3, out=out[3]).add_(odd_b, alpha=B**3).add_(m[5])
