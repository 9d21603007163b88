"""A straightforward implementation of RandAR, to compare with: one pass over instructions and tokens, all logits.

Written from the equations alone (arXiv:2412.01827), over the tensors of a published state dict. It shares nothing with
`network`. Shapes: P pairs, L tokens, C width, H heads, D head width, J = D / 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from avarc_cli.models.llamagen.reference import rotations, transformer, turned


@torch.inference_mode()
def token_log_probs(
    w: Mapping[str, Tensor], tokens_L: Tensor, class_id_P: Tensor, *, heads: int, order_L: Tensor | None = None
) -> Tensor:
    """log p(token | tokens before in the order, class) of each token under each class, in nats.

    Args:
        w: a published state dict. tokens_L: int64, of a square grid, row by row. class_id_P: int64.
        heads: H; the heads of keys follow from the tensors.
        order_L: cells in the order of scoring; None for row by row.
    Returns: (P, L) in the order of scoring, in the dtype of the weights.
    """
    order_L = torch.arange(len(tokens_L), device=tokens_L.device) if order_L is None else order_L
    target_L, classes_PC = tokens_L[order_L], w["cls_embedding.embedding_table.weight"][class_id_P]
    turn_LJ2 = rotations(len(tokens_L), classes_PC.shape[-1] // heads, classes_PC)
    instruction_LHD = w["pos_instruct_embeddings"].view(1, heads, -1).expand(len(order_L), -1, -1)
    instruction_LC = turned(instruction_LHD[None], turn_LJ2[1 + order_L])[0].flatten(1)
    pairs_LC = torch.stack([instruction_LC, w["tok_embeddings.weight"][target_L]], dim=1).flatten(0, 1)
    x = torch.cat([classes_PC[:, None], pairs_LC.expand(len(class_id_P), -1, -1)], dim=1)
    rows = torch.cat([torch.zeros_like(order_L[:1]), 1 + order_L.repeat_interleave(2)])
    logits = transformer(w, x, turn_LJ2[rows], heads)[:, 1::2]
    return logits.log_softmax(-1).gather(-1, target_L.expand(len(x), -1)[..., None])[..., 0]
