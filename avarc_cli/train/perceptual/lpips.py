"""LPIPS (arXiv:1801.03924) on VGG16's features, under the published keys.

`features.N` are those of torchvision's vgg16, `lin0.model.1.weight` and so on those of the lpips package. The dropout
before the linear heads is left out: it belongs to their training.

Shapes: B images, C channels, h, w sides of features.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from avarc_cli.layers.state_dict import build

TITLE = "VGG16 with the heads of LPIPS"
LEVELS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions; pooling between
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of ImageNet's pixels in [-1, 1]
EPSILON = 1e-10


class Head(nn.Module):
    """A weight for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class LPIPS(nn.Module):
    """The distance of two images as VGG16 sees them."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends = []  # index of the layer after which a level's features are read
        before = 3
        for level, (channels, convolutions) in enumerate(LEVELS):
            if level:
                layers.append(nn.MaxPool2d(2))
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(inplace=True)]
                before = channels
            self.ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        for level, (channels, _) in enumerate(LEVELS):
            setattr(self, f"lin{level}", Head(channels))

    @property
    def heads(self) -> list[Head]:
        return [getattr(self, f"lin{level}") for level in range(len(LEVELS))]

    def levels(self, images: Tensor) -> Iterator[Tensor]:
        """Features of each level, (B, C, h, w), of images in [-1, 1]."""
        mean, std = (images.new_tensor(v)[:, None, None] for v in (MEAN, STD))
        x = (images - mean) / std
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.ends:
                yield x

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Distances (B, 1, 1, 1) of images in [-1, 1]."""
        distance = images.new_zeros(len(images), 1, 1, 1)
        for head, a, b in zip(self.heads, self.levels(images), self.levels(others), strict=True):
            distance = distance + head((_unit(a) - _unit(b)).square()).mean((2, 3), keepdim=True)
        return distance


def _unit(x: Tensor) -> Tensor:
    """Features of length one over channels. Zero vectors stay zero, and have no gradient."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPSILON)


def from_tensors(vgg: Mapping[str, Tensor], heads: Mapping[str, Tensor], source: str) -> LPIPS:
    """LPIPS, frozen, from the state dicts of torchvision's vgg16 and of the lpips package.

    Raises: CheckpointError when tensors are missing or have other shapes.
    """
    features = {k: v for k, v in vgg.items() if k.startswith("features.")}
    linear = {k: v for k, v in heads.items() if re.match(r"lin\d\.", k)}  # whole models have them as lins.N as well
    return build(LPIPS, features | linear, source=source, expected=TITLE)
