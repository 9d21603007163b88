"""3x3 convolutions with a quarter of the multiplications, for inference on a CPU.

Winograd's F(4x4, 3x3): 4x4 outputs are a linear map of 36 products, where the plain sum takes 144. The products of all
tiles are 36 matrix products over the channels. Source: arXiv:1509.09308, section 4; the interpolation points are
0, +-5/8, +-3/2 and infinity in place of 0, +-1, +-2 and infinity, which halves the rounding error (the idea is that of
arXiv:1803.10986), and the sums over channels are made of sums over 32, which halves it again.

Shapes: B images, C and O channels in and out, H and W rows and columns, a multiple of 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.mapped import give_back
from avarc_cli.layers.threads import share

A, B = 5 / 8, 3 / 2  # the points are 0, A, -A, B, -B and infinity
TO_POINTS = [  # the values of a polynomial's product, from six inputs
    [(A * B) ** 2, 0, -A * A - B * B, 0, 1, 0],
    [0, -A * B * B, -B * B, A, 1, 0],
    [0, A * B * B, -B * B, -A, 1, 0],
    [0, -B * A * A, -A * A, B, 1, 0],
    [0, B * A * A, -A * A, -B, 1, 0],
    [0, (A * B) ** 2, 0, -A * A - B * B, 0, 1],
]
FROM_POINTS = [  # four outputs, from the values of six products
    [1, 1, 1, 1, 1, 0],
    [0, A, -A, B, -B, 0],
    [0, A**2, A**2, B**2, B**2, 0],
    [0, A**3, -(A**3), B**3, -(B**3), 1],
]
STRIP = 2**21  # bytes of a strip's tiles: what is transformed is still in the cache when it is used
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
        give_back(self.weight.detach())
        return weight.flatten(0, 1).to(self.weight.dtype).contiguous()

    @torch.no_grad()
    def forward(self, x_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        if height % 4 or width % 4:
            return F.conv2d(x_BCHW, self.weight, self.bias, padding=1)
        x_BHWC = _pad(x_BCHW.permute(0, 2, 3, 1))
        y_BHWO = x_BCHW.new_empty(len(x_BCHW), height, width, self.weight_36CO.shape[2])
        rows = self._rows(height // 4, width // 4)
        # Made here, as malloc would keep what other threads allocate for these threads.
        strips = [_Strip(self, rows, width // 4, like=x_BHWC) for _ in range(torch.get_num_threads())]

        def convolve(pieces: Iterator[tuple[int, int]]) -> None:
            strip = strips.pop()
            for image, start in pieces:
                stop = start + 4 * rows
                strip.convolve(x_BHWC[image, start : stop + 2], y_BHWO[image, start:stop])

        share(convolve, [(image, start) for image in range(len(x_BHWC)) for start in range(0, height, 4 * rows)])
        return y_BHWO.permute(0, 3, 1, 2)

    def _rows(self, height: int, width: int) -> int:
        """Rows of a strip, of an image of this many rows and columns of tiles."""
        _, channels, _ = self.weight_36CO.shape
        most = STRIP // (36 * width * channels * self.weight_36CO.element_size())
        return max(n for n in range(1, height + 1) if height % n == 0 and n <= max(1, most))


class _Strip:
    """Buffers for some rows of tiles, used again for each strip of an image: new memory would cost as much as the sums.

    Their views are made once as well: threads would wait for each other, as only one at a time runs Python.

    rows, columns: tiles of a strip; all strips are alike.
    """

    def __init__(self, conv: WinogradConv, rows: int, columns: int, *, like: Tensor) -> None:
        _, c, o = conv.weight_36CO.shape
        self.rows, self.columns, self.width = rows, columns, (4 * columns + 2) * c
        lines, tiles = like.new_empty(rows, 6, 4 * columns + 2, c), like.new_empty(6, 6, rows, columns, c)
        products = like.new_empty(6, 6, rows, columns, o)
        self.to_points = like.new_tensor(TO_POINTS).expand(rows, 6, 6)
        self.lines_R6N = lines.flatten(2)
        self.lines = [lines[:, :, i : i + 4 * columns - 3 : 4].transpose(0, 1) for i in range(6)]
        self.tiles = tiles.unbind(1)
        in_parts = tiles.view(36, -1, c).split(SUMMED, dim=2)
        self.parts = list(zip(in_parts, conv.weight_36CO.split(SUMMED, dim=1), strict=True))
        self.sums, self.products_6N = products.view(36, -1, o), products.view(6, -1)
        self.from_points = like.new_tensor(FROM_POINTS)
        self.half_4N = like.new_empty(4, self.products_6N.shape[1])
        outputs = like.new_empty(4, 4, rows, columns, o)
        self.outputs_44N, self.pixels = outputs.flatten(2), outputs.permute(2, 0, 3, 1, 4)
        self.bias = like.new_zeros(()) if conv.bias is None else conv.bias

    def convolve(self, x_HWC: Tensor, y_HWO: Tensor) -> None:
        """Rows of whole tiles to y; x has one row and one column more on each side."""
        rows_R6N = x_HWC.as_strided((self.rows, 6, self.width), (4 * self.width, self.width, 1))
        torch.bmm(self.to_points, rows_R6N, out=self.lines_R6N)
        _to_points(self.lines, self.tiles)
        _add_products(self.parts, self.sums)
        torch.mm(self.from_points, self.products_6N, out=self.half_4N)
        torch.bmm(self.from_points.expand(4, 4, 6), self.half_4N.view(4, 6, -1), out=self.outputs_44N)
        torch.add(self.pixels, self.bias, out=y_HWO.view(self.rows, 4, self.columns, 4, -1))


def _add_products(parts: Sequence[tuple[Tensor, Tensor]], out: Tensor) -> None:
    """The sum of the products of matrices. BLAS adds up to hundreds of terms one after the other."""
    first, *others = parts
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


def _to_points(d: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """TO_POINTS times six inputs d, which no matrix product takes: their rows overlap."""
    for p, other, plus, minus in ((A, B, 1, 2), (B, A, 3, 4)):
        torch.sub(d[4], d[2], alpha=other * other, out=out[0])
        torch.sub(d[3], d[1], alpha=other * other, out=out[5])
        torch.add(out[0], out[5], alpha=p, out=out[plus])
        torch.sub(out[0], out[5], alpha=p, out=out[minus])
    for first, last in ((0, 0), (1, 5)):
        torch.sub(d[first + 4], d[first + 2], alpha=A * A + B * B, out=out[last])
        out[last].add_(d[first], alpha=(A * B) ** 2)
