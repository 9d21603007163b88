"""The shape of a VAR, and how it is read off a checkpoint's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.config_sources import ConfigSources, square_sides
from avarc_cli.layers.state_dict import shape_of
from avarc_cli.layout import TokenLayout
from avarc_cli.zoo.published import SCALES_256, SCALES_512

TITLE = "VAR transformer"
HEAD_WIDTH = 64  # channels of a head in every published VAR


@dataclass(frozen=True, kw_only=True)
class VARConfig:
    """Shape of a VAR."""

    depth: int  # blocks
    width: int  # C, channels of the residual stream
    heads: int  # of attention
    num_classes: int  # without the unconditional class
    patch_nums: tuple[int, ...]  # side of each scale, coarse to fine
    vocab_size: int  # V
    z_channels: int  # Z, channels of the tokenizer's latents
    shared_aln: bool = False  # one class modulation for all blocks
    qk_norm: bool = True  # queries and keys of length one
    mlp_ratio: float = 4.0  # hidden width of the MLP / C
    inferred: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # see GeneratorConfig

    @property
    def layout(self) -> TokenLayout:
        """The scales."""
        return TokenLayout.multi_scale(self.patch_nums)

    @property
    def ends(self) -> tuple[int, ...]:
        """End position of each scale; the last is L."""
        return self.layout.grid_ends

    @property
    def flops(self) -> int:
        """Operations to score one pair: linears, attention without masked tiles, head; a multiply-add counts as 2."""
        linears = (8 + 4 * self.mlp_ratio) * self.width**2 * self.depth * self.ends[-1]
        attention = (
            4 * self.width * self.depth * sum(p * p * e for p, e in zip(self.patch_nums, self.ends, strict=True))
        )
        return round(linears + attention + 2 * self.width * self.vocab_size * self.ends[-1])


def read_config(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> VARConfig:
    """The shape of the VAR that these tensors make up.

    The tensors tell everything but the number of heads of a model without QK-norm, which `stated` may hold as
    "num_heads" (the reference's name); otherwise heads have 64 channels, as in every published VAR. The scales are in
    a buffer that some programs do not save; then `stated` must hold "patch_nums", or the model must have as many scales
    and positions as a published one.

    Raises: CheckpointError when the tensors are no VAR, or its scales are unknown.
    """

    def shape(key: str, ndim: int) -> torch.Size:
        return shape_of(tensors, key, ndim, source=source, expected=TITLE)

    depth = 0
    while f"blocks.{depth}.attn.mat_qkv.weight" in tensors:
        depth += 1
    rows, width = shape("class_emb.weight", 2)
    qk_norm = "blocks.0.attn.scale_mul_1H11" in tensors
    inferred: dict[str, str] = {}
    if qk_norm:
        heads = shape("blocks.0.attn.scale_mul_1H11", 4)[1]
    else:
        heads, inferred = _heads(width, stated, source)
    first, total, count = shape("pos_start", 3)[1], shape("pos_1LC", 3)[1], shape("lvl_embed.weight", 2)[0]
    if "lvl_1L" in tensors:
        patch_nums = _read_patch_nums(tensors["lvl_1L"], source, first, total)
    else:
        patch_nums, more = _patch_nums(stated, source, first, total, count)
        inferred |= more
    return VARConfig(
        depth=depth,
        width=width,
        heads=heads,
        num_classes=rows - 1,
        patch_nums=patch_nums,
        vocab_size=shape("head.weight", 2)[0],
        z_channels=shape("word_embed.weight", 2)[1],
        shared_aln="shared_ada_lin.1.weight" in tensors,
        qk_norm=qk_norm,
        mlp_ratio=shape("blocks.0.ffn.fc1.weight", 2)[0] / width,
        inferred=inferred,
    )


def _heads(width: int, stated: ConfigSources, source: str) -> tuple[int, dict[str, str]]:
    """Heads of a model without QK-norm, and what was inferred about them."""
    heads = stated.whole_number("num_heads", "heads")
    if heads is None:
        heads = max(width // HEAD_WIDTH, 1)
        return heads, {"heads": f"{heads}, of {HEAD_WIDTH} channels as in every published VAR"}
    if width % heads:
        raise CheckpointError(
            f"{source} cannot have {heads} heads", f"its {width} channels do not divide among them", "correct num_heads"
        )
    return heads, {}


def _read_patch_nums(level_1L: Tensor, source: str, first: int, total: int) -> tuple[int, ...]:
    level_L = level_1L.flatten().long()
    counts = level_L.bincount().tolist() if len(level_L) and level_L.min() >= 0 else []
    sides = tuple(math.isqrt(n) for n in counts)
    in_order = bool((level_L.diff() >= 0).all())
    if not in_order or 0 in counts or [p * p for p in sides] != counts or counts[:1] != [first] or sum(counts) != total:
        raise CheckpointError(
            f"{source} does not fit a {TITLE}",
            f"'lvl_1L' gives scales of {counts[:12]} positions; expected squares, {first} first, {total} in all",
            "the file is corrupt: download it again",
        )
    return sides


def _patch_nums(
    stated: ConfigSources, source: str, first: int, total: int, count: int
) -> tuple[tuple[int, ...], dict[str, str]]:
    """The scales of a model without the buffer that tells them, and what was inferred about them."""

    def fits(sides: Sequence[int]) -> bool:
        return len(sides) == count and sides[0] ** 2 == first and sum(p * p for p in sides) == total

    shape = f"{count} scales with {total} positions in all, {first} in the first"
    layout = stated.layout("patch_nums", "v_patch_nums")
    if layout is not None:
        sides = square_sides(layout, source, TITLE)
        if not fits(sides):
            text = ",".join(map(str, sides))
            raise CheckpointError(f"{source} does not have the scales {text}", f"it has {shape}", "correct patch_nums")
        return sides, {}
    for sides in (SCALES_256.sides, SCALES_512.sides):
        if fits(sides):
            text = ",".join(map(str, sides))
            return sides, {"scales": f"{text}: those of the published models; the file has no 'lvl_1L' that tells"}
    raise CheckpointError(
        f"the scales of {source} are unknown",
        f"it has no 'lvl_1L' that tells them, and no published model has {shape}",
        'add --model-config FILE.json, or a config.json beside it, with {"patch_nums": [1, 2, ...]}',
    )
