"""MaskGen VQ: p(hidden codes | visible codes, caption), all hidden ones at once, under its published keys.

Shapes: R captions, P sequences (pairs of image and caption), L tokens, C width, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.precision import Precision, product_backend
from avarc_cli.layers.state_dict import build
from avarc_cli.models.maskgen.config import MaskGenConfig
from avarc_cli.models.maskgen.joint import AdaLN, Captions, JointTransformer
from avarc_kernels.linear import linear as product

HEAD = "lm_head.weight"  # the embeddings once more, in some published files
SCORE_BASE = 1000.0  # of the sinusoids of the aesthetic score
SCORE_UNIT = 100.0


class MaskGen(JointTransformer):
    block_list = "blocks"
    config: MaskGenConfig

    def __init__(self, config: MaskGenConfig) -> None:
        super().__init__(config)
        c = config
        self.pos_embed = nn.Parameter(torch.zeros(1, c.num_tokens, c.width))
        self.text_embed_proj = nn.Linear(c.text_width, c.width)
        self.cond_pooled_proj = nn.Linear(c.text_width + c.score_width, c.width)
        self.norm = AdaLN(c.width, 2)
        self.embeddings = nn.Embedding(c.rows, c.width)

    @classmethod
    def from_state_dict(cls, config: MaskGenConfig, tensors: Mapping[str, Tensor], *, source: str) -> MaskGen:
        """A MaskGen of this shape with these tensors.

        Raises: CheckpointError naming `source` and the first few offending keys, and for a head of its own.
        """
        head = tensors.get(HEAD)
        if head is not None and not torch.equal(head, tensors["embeddings.weight"]):
            raise CheckpointError(
                f"{source} does not fit a {config.title}",
                f"'{HEAD}' differs from 'embeddings.weight', which a MaskGen has in its place",
                "pass the file of a MaskGen here",
            )
        own = {key: value for key, value in tensors.items() if key != HEAD}
        return build(lambda: cls(config), own, source=source, expected=config.title)

    @property
    def of_sequence(self) -> nn.Linear:
        return self.text_embed_proj

    @property
    def of_pooled(self) -> nn.Linear:
        return self.cond_pooled_proj

    @property
    def last_norm(self) -> AdaLN:
        return self.norm

    @staticmethod
    def score_embedding(score_R: Tensor, width: int) -> Tensor:
        half = width // 2
        exponent = -math.log(SCORE_BASE) * torch.arange(half, dtype=torch.float32, device=score_R.device) / half
        angle = SCORE_UNIT * score_R[:, None] * exponent.exp()
        return torch.cat([angle.sin(), angle.cos()], dim=-1)

    @property
    def codes(self) -> Tensor:
        """Weight of the head, which has no bias: the embeddings of the codes."""
        return self.embeddings.weight[: self.config.vocab_size]

    def hidden(self, captions: Captions, row_P: Tensor, ids_PL: Tensor) -> Tensor:
        """Last hidden states, (P, L, C) float32; ids_PL: tokens, or `config.mask` where they are hidden."""
        return self.stream(self.embeddings(ids_PL) + self.pos_embed, captions, row_P)

    def logits(self, captions: Captions, row_P: Tensor, ids_PL: Tensor) -> Tensor:
        """Of every position, (P, L, V) float32; those of visible tokens mean nothing."""
        hidden_PLC = self.hidden(captions, row_P, ids_PL).to(self.codes.dtype)
        return product(hidden_PLC, self.codes, None, backend=product_backend(hidden_PLC)).float()

    def set_precision(self, precision: Precision) -> MaskGen:
        """As `JointTransformer`; on a GPU the embeddings, and with them the head, are in the dtype of activations."""
        super().set_precision(precision)
        if self.embeddings.weight.is_cuda:
            self.embeddings.to(precision.activations)
        return self
