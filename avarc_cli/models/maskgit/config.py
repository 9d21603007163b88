"""The shape of a MaskGIT, and how it is read off a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.config_sources import ConfigSources, check_shape
from avarc_cli.layers.state_dict import count_layers, shape_of
from avarc_cli.layout import TokenLayout

DEFAULT_HEADS = 16  # of all published models; no tensor tells it


@dataclass(frozen=True, kw_only=True)
class MaskGITConfig:
    """Shape of a MaskGIT whose transformer is a UViT."""

    title: ClassVar[str] = "MaskGIT transformer (UViT)"

    depth: int  # blocks; a UViT has one more in the middle
    width: int  # C, channels of the residual stream
    heads: int  # H
    hidden: int  # F, hidden width of the MLPs
    num_classes: int  # without the unconditional class
    vocab_size: int  # V
    num_tokens: int  # L
    inferred: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # see GeneratorConfig

    @property
    def layout(self) -> TokenLayout | None:
        """The tokenizer's, which may have one grid, or none."""
        return None

    @property
    def mask(self) -> int:
        """The id that stands for a hidden token."""
        return self.vocab_size

    @property
    def first_class(self) -> int:
        """The id of class 0; that of the unconditional class comes after the last class's."""
        return self.vocab_size + 1

    @property
    def positions(self) -> int:
        """Of the transformer: the class, and the tokens."""
        return self.num_tokens + 1

    @property
    def pass_flops(self) -> int:
        """Operations of one pass over all positions of one pair, without the head; a multiply-add counts as 2."""
        block = 4 * self.width**2 + 2 * self.width * self.hidden
        skips = self.depth // 2 * 2 * self.width**2
        attention = 2 * self.positions * self.width
        return 2 * self.positions * ((self.depth + 1) * (block + attention) + skips)


@dataclass(frozen=True, kw_only=True)
class MaskGITBertConfig(MaskGITConfig):
    """Shape of a MaskGIT whose transformer is a BERT."""

    title: ClassVar[str] = "MaskGIT transformer (BERT)"

    @property
    def pass_flops(self) -> int:
        block = 4 * self.width**2 + 2 * self.width * self.hidden
        return 2 * self.positions * self.depth * (block + 2 * self.positions * self.width)


def read_uvit(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> MaskGITConfig:
    """The shape of the UViT that these tensors make up.

    Raises: CheckpointError when they make up none, or contradict what is stated.
    """
    shape = _shapes(tensors, source, MaskGITConfig.title)
    return _config(
        MaskGITConfig,
        stated,
        source,
        depth=2 * count_layers(tensors, "in_blocks.{}.norm1.weight"),
        rows=shape("embeddings.weight", 2)[0],
        positions=shape("pos_embed", 3)[1],
        head=shape("lm_head.weight", 2),
        hidden=shape("mid_block.mlp.fc1.weight", 2)[0],
    )


def read_bert(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> MaskGITConfig:
    """The shape of the BERT that these tensors make up. Raises: as `read_uvit`."""
    shape = _shapes(tensors, source, MaskGITBertConfig.title)
    return _config(
        MaskGITBertConfig,
        stated,
        source,
        depth=count_layers(tensors, "encoder.layer.{}.output.dense.weight"),
        rows=shape("embeddings.word_embeddings.weight", 2)[0],
        positions=shape("embeddings.position_embeddings.weight", 2)[0],
        head=shape("lm_head.weight", 2),
        hidden=shape("encoder.layer.0.intermediate.dense.weight", 2)[0],
    )


def _shapes(tensors: Mapping[str, Tensor], source: str, title: str) -> Callable[[str, int], torch.Size]:
    return lambda key, dimensions: shape_of(tensors, key, dimensions, source=source, expected=title)


def _config(
    kind: type[MaskGITConfig],
    stated: ConfigSources,
    source: str,
    *,
    depth: int,
    rows: int,
    positions: int,
    head: torch.Size,
    hidden: int,
) -> MaskGITConfig:
    vocab_size, width = head
    num_classes = rows - vocab_size - 2
    if num_classes < 1 or positions < 2:
        raise CheckpointError(
            f"{source} does not fit a {kind.title}",
            f"it has {rows} embeddings for {vocab_size} codes, a mask, and the classes, at {positions} positions",
            "pass the file of a MaskGIT here",
        )
    heads = stated.whole_number("num_attention_heads", "model.generator.num_attention_heads")
    if width % (heads or DEFAULT_HEADS):
        raise CheckpointError(
            f"the attention heads of {source} are unknown",
            f"its {width} channels do not divide among {heads or DEFAULT_HEADS}",
            'state them in a file {"num_attention_heads": 8} given with --model-config',
        )
    config = kind(
        depth=depth,
        width=width,
        heads=heads or DEFAULT_HEADS,
        hidden=hidden,
        num_classes=num_classes,
        vocab_size=vocab_size,
        num_tokens=positions - 1,
        inferred={} if heads else {"heads": f"{DEFAULT_HEADS}, as in all published models"},
    )
    numbers = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "intermediate_size": hidden,
        "image_seq_len": config.num_tokens,
        "condition_num_classes": num_classes,
    }
    layout = stated.layout()
    if layout is None or layout.num_tokens != config.num_tokens or len(layout.grids) > 1:
        layout = TokenLayout.sequence(config.num_tokens)
    check_shape(stated, numbers, layout, source, inside="model.generator.")
    return config
