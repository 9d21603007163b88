"""The shape of a LlamaGen, and how it is read off a checkpoint's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import shape_of
from avarc_cli.layout import TokenLayout

CLASS_TABLE = "cls_embedding.embedding_table.weight"
FFN_MULTIPLE = 256  # the hidden width of the feed-forward layers is rounded up to a multiple of it
# Heads of the published sizes (B, L, XL, XXL, 1B, 3B, XXXL, 7B) by width, which identifies them.
PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 3200: 32, 2560: 40, 4096: 32}
HEAD_WIDTH = 64  # channels of a head in most of them

Config = TypeVar("Config", bound="LlamaGenConfig")


@dataclass(frozen=True, kw_only=True)
class LlamaGenConfig:
    """Shape of a class-conditional LlamaGen; models of other conditions with its transformer derive from it."""

    title: ClassVar[str] = "LlamaGen transformer"  # in messages
    inputs_per_token: ClassVar[int] = 1  # positions of the transformer that are evaluated to score a token

    depth: int  # blocks
    width: int  # C, channels of the residual stream
    heads: int  # H, of queries
    kv_heads: int  # G, of keys and values; divides `heads`
    ffn: int  # F, hidden width of the feed-forward layers
    num_classes: int  # without the unconditional class
    vocab_size: int  # V
    side: int | None = None  # g, rows and columns of the token grid; None: the tokenizer's
    inferred: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # see GeneratorConfig

    @property
    def layout(self) -> TokenLayout | None:
        """The grid, if a file states it: the tensors do not tell it."""
        return None if self.side is None else TokenLayout.raster(self.side, self.side)

    @property
    def head_width(self) -> int:
        """D, channels of a head."""
        return self.width // self.heads

    @property
    def ends(self) -> tuple[int, ...]:
        """End position of each row of the grid; the last is L."""
        assert self.side is not None, "the grid is not known yet"
        return tuple(range(self.side, self.side * self.side + 1, self.side))

    @property
    def flops(self) -> int:
        """Operations to score one pair: linears, attention without masked products, head; a multiply-add counts as 2.

        Queries, keys and values of layer 0 are computed once per image, and not counted. In the last layer only the
        positions that score a token go on.
        """
        qkv = (self.heads + 2 * self.kv_heads) * self.head_width * self.width
        branches = self.width**2 + 3 * self.width * self.ffn
        tokens = self.ends[-1]
        length = tokens * self.inputs_per_token
        linears = length * (self.depth - 1) * (qkv + branches) + tokens * (branches + self.width * self.vocab_size)
        return 2 * linears + 4 * self.depth * self.width * length * (length + 1) // 2

    @classmethod
    def of_condition(cls, tensors: Mapping[str, Tensor], source: str) -> dict[str, int]:
        """The fields that say what the model is conditioned on. Raises: CheckpointError for another condition."""
        if any(key.startswith("cls_embedding.cap_proj.") for key in tensors):
            raise CheckpointError(
                f"{source} is a text-conditional {cls.title}",
                "its condition is the encoding of a caption (cls_embedding.cap_proj), not a class",
                'leave the family to its tensors, or state {"family": "llamagen-t2i"}',
            )
        return {"num_classes": shape_of(tensors, CLASS_TABLE, 2, source=source, expected=cls.title)[0] - 1}

    @property
    def as_stated(self) -> dict[str, int]:
        """The values that follow from the tensors, under the reference's names."""
        return {
            "dim": self.width,
            "n_layer": self.depth,
            "vocab_size": self.vocab_size,
            "num_classes": self.num_classes,
        }

    def on_grid(self: Config, layout: TokenLayout, source: str) -> Config:
        """The same with the tokenizer's grid. Raises: CheckpointError when that is none, or not the stated one."""
        if len(layout.grids) != 1 or len(set(layout.grids[0])) != 1:
            raise CheckpointError(
                f"{source} reads the tokens of another tokenizer",
                f"a {self.title} models one square grid, the tokenizer gives {layout}",
                "pass the tokenizer that it was trained with",
            )
        if self.layout is not None and self.layout != layout:
            raise CheckpointError(
                f"{source} models another grid than the tokenizer gives",
                f"the model's is a {self.layout}, the tokenizer's a {layout}",
                "name the size of the images that the model was trained on with --image-size",
            )
        return replace(self, side=layout.grids[0][0])


def ffn_width(width: int) -> int:
    """Hidden width of the feed-forward layers in the published models: two thirds of 4 C, rounded up."""
    return -(-int(2 * 4 * width / 3) // FFN_MULTIPLE) * FFN_MULTIPLE


def read_config(
    tensors: Mapping[str, Tensor],
    stated: ConfigSources,
    source: str,
    kind: type[Config],
) -> Config:
    """The shape of the LlamaGen, or the model of another `kind` with its transformer, that these tensors make up.

    They tell neither the heads, which `stated` may hold as "n_head" (the reference's name), nor the grid, which it may
    hold as "block_size", the number of tokens. Heads are otherwise those of the published model of this width.

    Raises: CheckpointError when the tensors are none of this kind, or contradict what is stated.
    """

    def shape(key: str) -> torch.Size:
        return shape_of(tensors, key, 2, source=source, expected=kind.title)

    condition = kind.of_condition(tensors, source)
    vocab_size, width = shape("tok_embeddings.weight")
    depth = 0
    while f"layers.{depth}.attention.wqkv.weight" in tensors:
        depth += 1
    heads, inferred = _heads(width, stated, source)
    head_width, rows = width // heads, shape("layers.0.attention.wqkv.weight")[0]
    kv_heads, remainder = divmod(rows - width, 2 * head_width)
    if remainder or kv_heads < 1 or heads % kv_heads or head_width % 4:
        raise CheckpointError(
            f"{source} cannot have {heads} heads",
            f"its {width} channels give {rows} rows of queries, keys and values; a head is a multiple of 4 wide",
            "state the right n_head with --model-config FILE.json",
        )
    stated_kv = stated.whole_number("n_kv_head")
    if stated_kv is not None and stated_kv != kv_heads:
        raise CheckpointError(
            f"{source} contradicts its configuration",
            f"n_kv_head is {stated_kv} there, and the tensors hold {kv_heads} heads of keys and values",
            "correct the configuration",
        )
    config = kind(
        depth=depth,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        ffn=shape("layers.0.feed_forward.w1.weight")[0],
        vocab_size=vocab_size,
        side=_side(stated, source),
        inferred=inferred,
        **condition,
    )
    _check_stated(config, stated, source)
    return config


def default_heads(width: int) -> int:
    """Heads of the published model of this width, or as many as have 64 channels, at least one."""
    return PUBLISHED_HEADS.get(width, max(width // HEAD_WIDTH, 1))


def _heads(width: int, stated: ConfigSources, source: str) -> tuple[int, dict[str, str]]:
    """Heads of the queries, and what was inferred about them."""
    heads = stated.whole_number("n_head", "num_heads")
    if heads is None:
        heads = default_heads(width)
        of = "those of the published model of this width" if width in PUBLISHED_HEADS else ""
        return heads, {"heads": f"{heads}, {of or f'of {HEAD_WIDTH} channels as in most published models'}"}
    if width % heads:
        raise CheckpointError(
            f"{source} cannot have {heads} heads", f"its {width} channels do not divide among them", "correct n_head"
        )
    return heads, {}


def _side(stated: ConfigSources, source: str) -> int | None:
    """Rows of the token grid, if a file states it as a layout or as the number of tokens."""
    tokens = stated.whole_number("block_size")
    if tokens is not None:
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise CheckpointError(f"{source} cannot have {tokens} tokens", "they fill no square", "correct block_size")
        return side
    layout = stated.layout()
    return None if layout is None else LlamaGenConfig.on_grid(_ANY, layout, source).side


_ANY = LlamaGenConfig(depth=1, width=4, heads=1, kv_heads=1, ffn=1, num_classes=1, vocab_size=1)


def _check_stated(config: LlamaGenConfig, stated: ConfigSources, source: str) -> None:
    """Raises: CheckpointError where a file states another shape than the tensors have."""
    for name, of_tensors in config.as_stated.items():
        value = stated.whole_number(name)
        if value is not None and value != of_tensors:
            raise CheckpointError(
                f"{source} contradicts its configuration",
                f"{name} is {value} there, and {of_tensors} in the tensors",
                "correct the configuration, or pass the file that it belongs to",
            )
