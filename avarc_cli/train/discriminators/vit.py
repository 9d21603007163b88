"""A frozen vision transformer (arXiv:2010.11929), ViT-S/16, under timm's keys: the eyes of StyleGAN-T's discriminator.

Shapes: B images, T tokens: the class token and 196 patches, C channels, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.state_dict import build, count_layers
from avarc_cli.zoo import checkpoint

TITLE = "ViT-S/16"
SIZE, PATCH, WIDTH, HEADS, MLP = 224, 16, 384, 6, 4
DEPTH = 12  # of the published one
READ_AFTER = (2, 5, 8, 11)  # blocks whose output is read, besides the embedding
EPSILON = 1e-6


class PatchEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BTC: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BTC).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLPBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, MLP * WIDTH), nn.Linear(MLP * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH, eps=EPSILON), Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH, eps=EPSILON), MLPBlock()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE // PATCH) ** 2 + 1, WIDTH))
        self.patch_embed = PatchEmbedding()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    @property
    def num_read(self) -> int:
        """Number of layers whose features `forward` gives."""
        return 1 + sum(after < len(self.blocks) for after in READ_AFTER)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, 196) of normalized images (B, 3, 224, 224): each patch's token plus the class token."""
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], dim=1) + self.pos_embed
        read = [_patches(x)]
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in READ_AFTER:
                read.append(_patches(x))
        return read


def _patches(x_BTC: Tensor) -> Tensor:
    return (x_BTC[:, 1:] + x_BTC[:, :1]).transpose(1, 2)


def check(path: Path) -> None:
    """Raises: CheckpointError unless the file holds this network, in its published depth."""
    found = len(from_tensors(checkpoint.read(path).tensors, str(path)).blocks)
    if found != DEPTH:
        raise CheckpointError(f"{path} does not fit a {TITLE}", f"it has {found} blocks, not {DEPTH}", checkpoint.AGAIN)


def from_tensors(tensors: Mapping[str, Tensor], source: str) -> ViT:
    """The network, frozen, from timm's or DINO's state dict; its final norm and head are not used.

    The keys' part of each bias is set to zero, as VAR's code does: it changes no attention, only rounding.
    Raises: CheckpointError when tensors are missing or have other shapes.
    """
    used = {key: tensor.clone() for key, tensor in tensors.items() if not key.startswith(("norm.", "head", "fc_norm."))}
    depth = count_layers(used, "blocks.{}.attn.qkv.bias")
    for layer in range(depth):
        used[f"blocks.{layer}.attn.qkv.bias"][WIDTH : 2 * WIDTH] = 0
    return build(lambda: ViT(depth), used, source=source, expected=TITLE)
