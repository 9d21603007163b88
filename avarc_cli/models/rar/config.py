"""The shape of a RAR, and how it is read off a checkpoint's tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.config_sources import ConfigSources, check_shape
from avarc_cli.layers.state_dict import shape_of
from avarc_cli.layout import TokenLayout

TITLE = "RAR transformer"
PREFIX = 2  # positions before the tokens: a learned vector, and the class
SPARE_POSITIONS, SPARE_STEPS = 1024, 100  # rows of the published tables beyond the number of tokens


@dataclass(frozen=True, kw_only=True)
class RARConfig:
    """Shape of a RAR. All of it follows from the tensors."""

    depth: int  # blocks
    width: int  # C, channels of the residual stream
    heads: int  # H
    hidden: int  # F, hidden width of the MLPs
    num_classes: int  # without the unconditional class
    vocab_size: int  # V
    side: int  # g, rows and columns of the token grid
    inferred: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # see GeneratorConfig

    @property
    def layout(self) -> TokenLayout:
        """One square grid."""
        return TokenLayout.raster(self.side, self.side)

    @property
    def head_width(self) -> int:
        """D, channels of a head."""
        return self.width // self.heads

    @property
    def ends(self) -> tuple[int, ...]:
        """End of each run of g tokens along an order; the last is L."""
        return tuple(range(self.side, self.side * self.side + 1, self.side))

    @property
    def first_class(self) -> int:
        """Row of class 0 in the table of embeddings: after the tokens and a mask that RAR never uses."""
        return self.vocab_size + 1

    @property
    def flops(self) -> int:
        """Operations to score one pair: linears, attention without masked products, head; a multiply-add counts as 2.

        The modulation depends on the class and the position alone, and is not counted.
        """
        length = self.ends[-1]
        linears = self.depth * (4 * self.width**2 + 2 * self.width * self.hidden)
        attention = 2 * self.depth * self.width * (length + 1) * (length + 2)
        return 2 * (length + 1) * linears + 2 * length * self.width * self.vocab_size + attention


def read_config(tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> RARConfig:
    """The shape of the RAR that these tensors make up.

    Raises: CheckpointError when they make up none, or contradict what is stated.
    """

    def shape(key: str, dimensions: int = 2) -> torch.Size:
        return shape_of(tensors, key, dimensions, source=source, expected=TITLE)

    vocab_size, width = shape("lm_head.weight")
    tokens = shape("pos_embed", 3)[1] - SPARE_POSITIONS
    side = math.isqrt(max(tokens, 0))
    if side == 0 or side * side != tokens:
        raise _misfit(source, f"its {tokens} tokens fill no square", f"pos_embed has {tokens + SPARE_POSITIONS} rows")
    head_width = shape("blocks.0.attn.q_norm.weight", 1)[0]
    if head_width == 0 or width % head_width:
        raise _misfit(source, f"its {width} channels do not divide among heads of {head_width}", "q_norm states those")
    num_classes = shape("embeddings.weight")[0] - vocab_size - PREFIX
    if num_classes < 1:
        raise _misfit(
            source, "it has no classes", f"{vocab_size + PREFIX + num_classes} embeddings, {vocab_size} codes"
        )
    depth = 0
    while f"blocks.{depth}.attn.qkv.weight" in tensors:
        depth += 1
    config = RARConfig(
        depth=depth,
        width=width,
        heads=width // head_width,
        hidden=shape("blocks.0.mlp.fc1.weight")[0],
        num_classes=num_classes,
        vocab_size=vocab_size,
        side=side,
    )
    numbers = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.hidden,
        "image_seq_len": config.ends[-1],
        "condition_num_classes": config.num_classes,
        "codebook_size": config.vocab_size,
    }
    check_shape(stated, numbers, config.layout, source)
    return config


def _misfit(source: str, what: str, why: str) -> CheckpointError:
    return CheckpointError(f"{source} does not fit a {TITLE}", f"{what}: {why}", "pass the file of a RAR here")
