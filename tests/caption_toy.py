"""A generator of captions for tests: the mean of a caption's features, times a matrix, is added to a table of logits.

`FAMILY` is registered by the fixture `caption_family` (tests/cli/test_captions.py). Shapes: R captions, T positions, D
channels, L tokens, V codes, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from avarc_cli.errors import UsageError
from avarc_cli.family import GeneratorFamily
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.joined import join_states
from avarc_cli.layout import TokenLayout
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.text.features import CaptionFeatures, TextInput


def layout_of(tokens: int) -> TokenLayout:
    """A grid where their number is a square, else none."""
    side = int(tokens**0.5)
    return TokenLayout.raster(side, side) if side**2 == tokens else TokenLayout.sequence(tokens)


def means(features: CaptionFeatures) -> Tensor:
    """(R, D), over each caption's own positions."""
    length_R = features.length_R[:, None]
    has_RT = torch.arange(features.sequence_RTD.shape[1]) < length_R
    return (features.sequence_RTD * has_RT[..., None]).sum(1) / length_R


@dataclass
class State:
    tokens_BL: Tensor
    sequence_P: Tensor
    class_id_P: Tensor
    segment: int = 0


class CaptionToy(LikelihoodModel):
    """log p(token | caption); segments are rows of a grid, or tokens."""

    flops_per_token = 1
    joins = True

    def __init__(self, table_LV: Tensor, weight_DV: Tensor, encoder: str, logit_RV: Tensor | None = None) -> None:
        layout = layout_of(len(table_LV))
        width = layout.grids[0][1] if layout.grids else 1
        self.table_LV, self.weight_DV, self.encoder = table_LV, weight_DV, encoder
        self.segment_ends = tuple(range(width, len(table_LV) + 1, width))
        self.text = TextInput(encoder=encoder, positions=120, width=len(weight_DV))
        self.num_classes, self.unconditional = 0, None
        if logit_RV is not None:
            self.log_prob_RLV = (table_LV + logit_RV[:, None]).log_softmax(-1)

    def with_captions(self, features: CaptionFeatures, *, aesthetic_score: float | None = None) -> CaptionToy:
        if aesthetic_score is not None and aesthetic_score > 10:
            raise UsageError(f"--aesthetic-score {aesthetic_score:g}", "it is a number from 0 to 10")
        own = [means(features) * (aesthetic_score or 1)] + ([] if features.empty is None else [means(features.empty)])
        bound = CaptionToy(self.table_LV, self.weight_DV, self.encoder, torch.cat(own) @ self.weight_DV)
        bound.num_classes = len(features)
        bound.unconditional = None if features.empty is None else len(features)
        return bound

    def begin(self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None) -> State:
        return State(tokens_BL, sequence_P, class_id_P)

    def extend(self, state: State, stop: int, *, keep_cache_segments: int) -> Tensor:
        start, end = (0, *self.segment_ends)[state.segment], self.segment_ends[stop - 1]
        tokens_PT = state.tokens_BL[state.sequence_P, start:end]
        state.segment = stop
        return self.log_prob_RLV[state.class_id_P, start:end].gather(-1, tokens_PT[..., None])[..., 0]

    def select(self, state: State, keep_Q: Tensor) -> State:
        return replace(state, sequence_P=state.sequence_P[keep_Q], class_id_P=state.class_id_P[keep_Q])

    def join(self, states: Sequence[State]) -> State:
        return join_states(states)

    def fork(
        self,
        state: State,
        keep_Q: Tensor,
        tokens_BL: Tensor,
        sequence_Q: Tensor,
        stop: int,
        order_BL: Tensor | None = None,
    ) -> State:
        return State(tokens_BL, sequence_Q, state.class_id_P[keep_Q], stop)

    def sample(self, class_id_B: Tensor, *, generators: Sequence[torch.Generator], **options: Any) -> Tensor:
        pairs = zip(self.log_prob_RLV[class_id_B].exp(), generators, strict=True)
        return torch.stack([torch.multinomial(p_LV, 1, generator=g)[:, 0] for p_LV, g in pairs])

    def bytes_per_token(self, *, cached: bool) -> int:
        return 8


@dataclass(frozen=True)
class Config:
    layout: TokenLayout
    encoder: str
    inferred: Mapping[str, str] = field(default_factory=dict)


class Family(GeneratorFamily):
    name, title, signature = "caption-toy", "toy generator of captions", ("caption_table", "caption_weight")

    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> Config:
        found = stated.find("text_encoder")
        return Config(layout_of(len(tensors["caption_table"])), str(found[0]) if found else "flan-t5-xl")

    def build(self, config: Any, tensors: Mapping[str, Tensor], tokenizer: Any, **options: Any) -> CaptionToy:
        return CaptionToy(tensors["caption_table"], tensors["caption_weight"], config.encoder)


FAMILY = Family()


def tensors(width: int = 16, tokens: int = 64, codes: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """Random weights, which tell captions apart clearly."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(tokens, codes, generator=generator)
    return {"caption_table": table, "caption_weight": torch.randn(width, codes, generator=generator)}
