"""Random changes of what a discriminator sees (arXiv:2006.10738, as StyleGAN-T's code has them), with gradients.

Shapes: B images, H and W rows and columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 0.125  # of the side, at most


def augment(images: Tensor, generator: torch.Generator, *, cutout: float = 0.2) -> Tensor:
    """Images (B, 3, H, W), each shifted, recolored, and with a box of zeros.

    Args:
        generator: on the CPU. cutout: side of the box, of the image's.
    """
    random = torch.rand(7, len(images), generator=generator).to(images.device)
    shifted = _shift(images, random[0], random[1])
    return _cut(_recolor(shifted, *random[2:5, :, None, None, None]), random[5], random[6], cutout)


def blur(images: Tensor, strength: float) -> Tensor:
    """Images blurred by a Gaussian 2^-(d/s)^2 with s = sqrt(H/2) * strength pixels, mirrored at the edges."""
    scale = math.sqrt(images.shape[2] / 2) * strength
    radius = math.floor(3 * scale)
    if radius < 1:
        return images
    distance = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    line = torch.exp2(-((distance / scale) ** 2))
    line = (line / line.sum()).expand(images.shape[1], 1, -1)
    x = F.pad(images, [radius] * 4, mode="reflect")
    x = F.conv2d(x, line[..., None], groups=images.shape[1])
    return F.conv2d(x, line[..., None, :], groups=images.shape[1])


def _shift(images: Tensor, down_B: Tensor, right_B: Tensor) -> Tensor:
    """Shifted by whole pixels; zeros come in."""
    padded = F.pad(images, [1] * 4)
    rows, columns = (_shifted_indices(side, r) for side, r in zip(images.shape[2:], (down_B, right_B), strict=True))
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _shifted_indices(side: int, random_B: Tensor) -> Tensor:
    """Where the rows or columns of each image come from, of those with one of padding on both ends, (B, side)."""
    most = round(side * SHIFT)
    offsets_B = (random_B * (2 * most + 1)).floor().long() - most
    places = torch.arange(side, device=random_B.device) + offsets_B[:, None] + 1
    return places.clamp(0, side + 1)


def _recolor(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Each of the amounts in [0, 1), (B, 1, 1, 1)."""
    x = images + (brightness - 0.5)
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def _cut(images: Tensor, row_B: Tensor, column_B: Tensor, size: float) -> Tensor:
    """A box of zeros around a random pixel of each image."""
    inside = []
    for side, random_B in zip(images.shape[2:], (row_B, column_B), strict=True):
        box = round(side * size)
        first_B = (random_B * (side + 1 - box % 2)).floor().long() - box // 2
        places = torch.arange(side, device=images.device) - first_B[:, None]
        inside.append((places >= 0) & (places < box))
    hidden = inside[0][:, :, None] & inside[1][:, None]
    return images * ~hidden[:, None]
