"""MaskGen KL: p(hidden tokens | visible tokens, caption) for continuous tokens, under its published keys.

The transformer gives a vector for every position, and a head (`latent_head`) models the token there by diffusion.

Shapes: P sequences (pairs of image and caption), L tokens, Z channels of a token, C width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avarc_cli.layers.linears import linear
from avarc_cli.layers.precision import Precision
from avarc_cli.layers.state_dict import build
from avarc_cli.models.maskgen.config import MaskGenKLConfig
from avarc_cli.models.maskgen.joint import AdaLN, Captions, JointTransformer
from avarc_cli.models.maskgen.latent_head import TokenHead

SCORE_BASE = 10000.0  # of the sinusoids of the aesthetic score
SCORE_UNIT = 100.0
EPS = 1e-6


class DiffLoss(nn.Module):
    """The head, under its published name."""

    def __init__(self, c: MaskGenKLConfig) -> None:
        super().__init__()
        self.net = TokenHead(c.channels, c.head_width, c.head_depth, c.width)


class MaskGenKL(JointTransformer):
    block_list = "decoder_blocks"
    config: MaskGenKLConfig

    def __init__(self, config: MaskGenKLConfig) -> None:
        super().__init__(config)
        c = config
        self.z_proj, self.z_proj_ln = nn.Linear(c.channels, c.width), nn.LayerNorm(c.width, EPS)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, c.width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, c.num_tokens, c.width))
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, c.num_tokens, c.width))
        self.text_emb = nn.Linear(c.text_width, c.width)
        self.text_pooled_emb = nn.Linear(c.text_width + c.score_width, c.width)
        self.decoder_norm = AdaLN(c.width, 2)
        self.diffloss = DiffLoss(c)

    @classmethod
    def from_state_dict(cls, config: MaskGenKLConfig, tensors: Mapping[str, Tensor], *, source: str) -> MaskGenKL:
        """A MaskGen of this shape with these tensors.

        Raises: CheckpointError naming `source` and the first few offending keys.
        """
        return build(lambda: cls(config), tensors, source=source, expected=config.title)

    @property
    def of_sequence(self) -> nn.Linear:
        return self.text_emb

    @property
    def of_pooled(self) -> nn.Linear:
        return self.text_pooled_emb

    @property
    def last_norm(self) -> AdaLN:
        return self.decoder_norm

    @property
    def head(self) -> TokenHead:
        """Models one token, given `conditions`."""
        return self.diffloss.net

    @staticmethod
    def score_embedding(score_R: Tensor, width: int) -> Tensor:
        exponent = torch.arange(0, width, 2, dtype=torch.float32, device=score_R.device) * (
            -math.log(SCORE_BASE) / width
        )
        angle = SCORE_UNIT * score_R[:, None] * exponent.exp()
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)

    def conditions(self, captions: Captions, row_P: Tensor, x_PLZ: Tensor, visible_PL: Tensor) -> Tensor:
        """What the head is given for each position, (P, L, C) float32.

        Args:
            x_PLZ: tokens times `config.scale_factor`; those that are not visible are not read.
        """
        embedded = torch.where(visible_PL[..., None], self.z_proj_ln(linear(self.z_proj, x_PLZ)), self.mask_token)
        stream = self.stream(embedded + self.decoder_pos_embed_learned, captions, row_P)
        return stream + self.diffusion_pos_embed_learned

    def set_precision(self, precision: Precision) -> MaskGenKL:
        super().set_precision(precision)
        self.head.set_precision(precision)
        return self
