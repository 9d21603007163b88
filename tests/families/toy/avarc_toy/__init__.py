"""A family of another package: tokens are gray levels of patches, and every position has its own distribution.

It shows the least that a family consists of. Shapes: B images, L patches, V gray levels, P pairs, N classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.family import GeneratorFamily, TokenizerFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.state_dict import build
from avarc_cli.layout import TokenLayout
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.tokenizer import TokenizerNetwork

PATCH = 8  # pixels


class ToyTokenizer(TokenizerNetwork):
    """The nearest of V gray levels of each patch."""

    inferred: Mapping[str, str] = {}

    def __init__(self, side: int, vocab_size: int) -> None:
        super().__init__()
        self.layout, self.vocab_size = TokenLayout.raster(side, side), vocab_size
        self.image_size = PATCH * side
        self.gray_levels = nn.Parameter(torch.empty(vocab_size))

    def encode(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images.mean(1, keepdim=True), PATCH)

    def tokenize(self, latents: Tensor) -> Tensor:
        return (latents.flatten(1)[..., None] - self.gray_levels).abs().argmin(-1)

    def reconstruct(self, tokens_BL: Tensor) -> Tensor:
        rows, columns = self.layout.grids[0]
        gray = self.gray_levels[tokens_BL].unflatten(1, (1, rows, columns))
        return F.interpolate(gray, scale_factor=PATCH).expand(-1, 3, -1, -1)

    def checkpoint_metadata(self) -> dict[str, str]:
        return {"side": str(self.layout.grids[0][0])}


class ToyTokenizerFamily(TokenizerFamily):
    name, title, signature = "toy-patches", "toy tokenizer", ("gray_levels",)

    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> ToyTokenizer:
        side, vocab_size = stated.whole_number("side") or 4, len(tensors["gray_levels"])
        return build(lambda: ToyTokenizer(side, vocab_size), tensors, source=source, expected=self.title)


@dataclass(frozen=True)
class ToyConfig:
    layout: TokenLayout
    inferred: Mapping[str, str] = field(default_factory=dict)


@dataclass
class ToyState:
    tokens_BL: Tensor
    sequence_P: Tensor
    class_id_P: Tensor
    segment: int = 0


class ToyGenerator(LikelihoodModel):
    """log p(token | class) from a table of logits (N + 1, L, V); segments are rows of patches."""

    def __init__(self, table_NLV: Tensor, layout: TokenLayout) -> None:
        self.log_prob_NLV = table_NLV.float().log_softmax(-1)
        rows, columns = layout.grids[0]
        self.segment_ends = tuple(columns * (row + 1) for row in range(rows))
        self.num_classes = len(table_NLV) - 1
        self.unconditional = self.num_classes
        self.flops_per_token = 1

    def begin(
        self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None
    ) -> ToyState:
        return ToyState(tokens_BL, sequence_P, class_id_P)

    def extend(self, state: ToyState, stop: int, *, keep_cache_segments: int) -> Tensor:
        start, end = (0, *self.segment_ends)[state.segment], self.segment_ends[stop - 1]
        tokens_PT = state.tokens_BL[state.sequence_P, start:end]
        state.segment = stop
        return self.log_prob_NLV[state.class_id_P, start:end].gather(-1, tokens_PT[..., None])[..., 0]

    def select(self, state: ToyState, keep_Q: Tensor) -> ToyState:
        return replace(state, sequence_P=state.sequence_P[keep_Q], class_id_P=state.class_id_P[keep_Q])

    def fork(
        self,
        state: ToyState,
        keep_Q: Tensor,
        tokens_BL: Tensor,
        sequence_Q: Tensor,
        stop: int,
        order_BL: Tensor | None = None,
    ) -> ToyState:
        return ToyState(tokens_BL, sequence_Q, state.class_id_P[keep_Q], stop)

    def sample(self, class_id_B: Tensor, *, generators: Sequence[torch.Generator], **options: Any) -> Tensor:
        probability_BLV = self.log_prob_NLV[class_id_B].exp()
        pairs = zip(probability_BLV, generators, strict=True)
        return torch.stack([torch.multinomial(p_LV, 1, generator=g)[:, 0] for p_LV, g in pairs])

    def bytes_per_token(self, *, cached: bool) -> int:
        return 8


class ToyFamily(GeneratorFamily):
    name, title, signature = "toy", "toy generator", ("token_table",)

    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> ToyConfig:
        side = int(tensors["token_table"].shape[1] ** 0.5)
        return ToyConfig(TokenLayout.raster(side, side))

    def build(self, config: Any, tensors: Mapping[str, Tensor], tokenizer: Any, **options: Any) -> ToyGenerator:
        return ToyGenerator(tensors["token_table"], config.layout)


GENERATORS, TOKENIZERS = ToyFamily(), ToyTokenizerFamily()
