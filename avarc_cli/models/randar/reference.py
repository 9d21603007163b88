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
    target_L = tokens_L[order_L]
    logits_PLV = logits(w, target_L, class_id_P, order_L, heads=heads)[:, 1::2]
    return logits_PLV.log_softmax(-1).gather(-1, target_L.expand(len(class_id_P), -1)[..., None])[..., 0]


@torch.inference_mode()
def logits(
    w: Mapping[str, Tensor], given_T: Tensor, class_id_P: Tensor, order_L: Tensor, *, heads: int, asked: int = 0
) -> Tensor:
    """Logits at every position under each class, (P, 1 + 2 T + asked, V): class, (instruction, token), instructions.

    Args:
        given_T: the first tokens of the order. asked: instructions at the end, of the cells that follow.
    """
    classes_PC, given = w["cls_embedding.embedding_table.weight"][class_id_P], len(given_T)
    turn_LJ2, cell_N = rotations(len(order_L), classes_PC.shape[-1] // heads, classes_PC), order_L[: given + asked]
    instruction_NHD = w["pos_instruct_embeddings"].view(1, heads, -1).expand(len(cell_N), -1, -1)
    instruction_NC = turned(instruction_NHD[None], turn_LJ2[1 + cell_N])[0].flatten(1)
    pairs_TC = torch.stack([instruction_NC[:given], w["tok_embeddings.weight"][given_T]], dim=1).flatten(0, 1)
    rest_C = torch.cat([pairs_TC, instruction_NC[given:]])
    x = torch.cat([classes_PC[:, None], rest_C.expand(len(class_id_P), -1, -1)], dim=1)
    rows = torch.cat([torch.zeros_like(order_L[:1]), 1 + cell_N[:given].repeat_interleave(2), 1 + cell_N[given:]])
    return transformer(w, x, turn_LJ2[rows], heads)
