"""The shape of a VAR, and how to read it off a checkpoint's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.state_dict import take

EXPECTED = "VAR transformer"
HEAD_WIDTH = 64  # of a model without QK-norm, whose file does not tell


@dataclass(frozen=True, kw_only=True)
class VARConfig:
    """Shape of a VAR: depth blocks of `width` channels and `heads` heads; patch_nums are the scales' sides."""

    depth: int
    width: int
    heads: int
    num_classes: int
    patch_nums: tuple[int, ...]
    vocab_size: int
    z_channels: int
    shared_aln: bool = False
    qk_norm: bool = True
    mlp_ratio: float = 4.0

    @property
    def ends(self) -> tuple[int, ...]:
        """End position of each scale; the last is L."""
        return tuple(accumulate(p * p for p in self.patch_nums))

    @property
    def flops(self) -> int:
        """Operations to score one pair: linears, attention without masked tiles, head; a multiply-add counts as 2."""
        linears = (8 + 4 * self.mlp_ratio) * self.width**2 * self.depth * self.ends[-1]
        attention = (
            4 * self.width * self.depth * sum(p * p * e for p, e in zip(self.patch_nums, self.ends, strict=True))
        )
        return round(linears + attention + 2 * self.width * self.vocab_size * self.ends[-1])


def read_config(tensors: Mapping[str, Tensor], source: str) -> VARConfig:
    """The shape of the VAR that these tensors make up. Raises CheckpointError when they do not."""

    def shape(key: str, ndim: int) -> torch.Size:
        found = take(tensors, key, source=source, expected=EXPECTED).shape
        if len(found) != ndim:
            raise CheckpointError(f"{source} does not fit a {EXPECTED}", f"'{key}' has shape {tuple(found)}")
        return found

    depth = 0
    while f"blocks.{depth}.attn.mat_qkv.weight" in tensors:
        depth += 1
    rows, width = shape("class_emb.weight", 2)
    qk_norm = "blocks.0.attn.scale_mul_1H11" in tensors
    heads = shape("blocks.0.attn.scale_mul_1H11", 4)[1] if qk_norm else max(width // HEAD_WIDTH, 1)
    return VARConfig(
        depth=depth,
        width=width,
        heads=heads,
        num_classes=rows - 1,
        patch_nums=_read_patch_nums(tensors, source, first=shape("pos_start", 3)[1], total=shape("pos_1LC", 3)[1]),
        vocab_size=shape("head.weight", 2)[0],
        z_channels=shape("word_embed.weight", 2)[1],
        shared_aln="shared_ada_lin.1.weight" in tensors,
        qk_norm=qk_norm,
        mlp_ratio=shape("blocks.0.ffn.fc1.weight", 2)[0] / width,
    )


def _read_patch_nums(tensors: Mapping[str, Tensor], source: str, first: int, total: int) -> tuple[int, ...]:
    level_L = take(tensors, "lvl_1L", source=source, expected=EXPECTED).flatten().long()
    counts = level_L.bincount().tolist() if len(level_L) and level_L.min() >= 0 else []
    sides = tuple(math.isqrt(n) for n in counts)
    in_order = bool((level_L.diff() >= 0).all())
    if not in_order or [p * p for p in sides] != counts or counts[:1] != [first] or sum(counts) != total:
        raise CheckpointError(
            f"{source} does not fit a {EXPECTED}",
            f"'lvl_1L' gives scales of {counts[:12]} positions; expected squares, {first} first, {total} in all",
            "the file is damaged: download it again",
        )
    return sides
