"""ConvNeXt-S (arXiv:2201.03545) with ImageNet's logits, under torchvision's keys, and the loss made of it.

1d-tokenizer compares images by these logits. Stochastic depth is left out: it belongs to the network's training.

Shapes: B images, C channels, H and W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.state_dict import build

TITLE = "ConvNeXt-S"
WIDTHS, DEPTHS = (96, 192, 384, 768), (3, 3, 27, 3)
NUM_CLASSES = 1000
SIZE = 224  # pixels
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1]


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of each pixel."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ToLast(nn.Module):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.permute(0, 2, 3, 1)


class ToFirst(nn.Module):
    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC.permute(0, 3, 1, 2)


class Block(nn.Module):
    """x + scale * MLP(norm(7x7 convolution of each channel))."""

    def __init__(self, c: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
        mlp = (nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
        self.block = nn.Sequential(depthwise, ToLast(), nn.LayerNorm(c, eps=1e-6), *mlp, ToFirst())
        self.layer_scale = nn.Parameter(torch.full((c, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * self.block(x)


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, WIDTHS[0], 4, 4), LayerNorm2d(WIDTHS[0], eps=1e-6))]
        for level, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            if level:
                before = WIDTHS[level - 1]
                layers.append(nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, width, 2, 2)))
            layers.append(nn.Sequential(*(Block(width) for _ in range(depth))))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            LayerNorm2d(WIDTHS[-1], eps=1e-6), nn.Flatten(1), nn.Linear(WIDTHS[-1], NUM_CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1000) of normalized images (B, 3, H, W)."""
        return self.classifier(self.features(x).mean((2, 3), keepdim=True))


class LogitsLoss(nn.Module):
    """Mean squared difference of the logits of two batches of images."""

    def __init__(self, network: ConvNeXt) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """The loss, a scalar, of images in [-1, 1]."""
        return F.mse_loss(self._logits(images), self._logits(others))

    def _logits(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(v)[:, None, None] for v in (MEAN, STD))
        small = F.interpolate((images + 1) / 2, (SIZE, SIZE), mode="bilinear", antialias=True)
        return self.network((small - mean) / std)


def from_tensors(tensors: Mapping[str, Tensor], source: str) -> LogitsLoss:
    """The loss, frozen, from the state dict of torchvision's convnext_small.

    Raises: CheckpointError when tensors are missing, unknown or have other shapes.
    """
    return LogitsLoss(build(ConvNeXt, tensors, source=source, expected=TITLE))
