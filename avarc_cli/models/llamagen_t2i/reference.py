"""A straightforward implementation of text-conditional LlamaGen, to compare with: all positions, masks, all logits.

Written from the equations alone (arXiv:2406.06525), over the tensors of a published state dict. It shares nothing with
`network`. Shapes: P pairs, T caption positions, L tokens, D channels of the text encoder, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.models.llamagen.reference import rotations, transformer


@torch.inference_mode()
def token_log_probs(
    w: Mapping[str, Tensor], tokens_L: Tensor, features_PTD: Tensor, length_P: Tensor, *, heads: int
) -> Tensor:
    """log p(token | tokens before, caption) of each token under each caption, in nats.

    Args:
        w: a published state dict. tokens_L: int64, of a square grid, row by row.
        features_PTD: of captions, padded on the left to the T positions of the model. length_P: the others.
        heads: H; the heads of keys follow from the tensors.
    Returns: (P, L), in the dtype of the weights.
    """
    logits_PLV = logits(w, tokens_L[:-1], features_PTD, length_P, heads=heads, length=len(tokens_L))
    return logits_PLV.log_softmax(-1).gather(-1, tokens_L.expand(len(logits_PLV), -1)[..., None])[..., 0]


@torch.inference_mode()
def logits(
    w: Mapping[str, Tensor], before_L: Tensor, features_PTD: Tensor, length_P: Tensor, *, heads: int, length: int
) -> Tensor:
    """Logits of the first token, and of the one after each of these, under each caption: (P, 1 + len(before_L), V).

    Args:
        length: L; the others are as for `token_log_probs`.
    """
    pairs, caption = features_PTD.shape[:2]
    hidden = F.gelu(F.linear(features_PTD, w["cls_embedding.cap_proj.fc1.weight"]), approximate="tanh")
    captions_PTC = F.linear(hidden, w["cls_embedding.cap_proj.fc2.weight"])
    rest_LC = w["tok_embeddings.weight"][before_L]
    x = torch.cat([captions_PTC, rest_LC.expand(pairs, -1, -1)], dim=1)
    turn_LJ2 = rotations(length, x.shape[-1] // heads, x)[1 : 1 + len(before_L)]
    turn_LJ2 = F.pad(turn_LJ2, (0, 0, 0, 0, caption, 0))
    return transformer(w, x, turn_LJ2, heads, visible(length_P, caption, x.shape[1]))[:, caption - 1 :]


def visible(length_P: Tensor, caption: int, total: int) -> Tensor:
    """Which positions each one sees, (P, 1, total, total) bool: those before it without padding, and itself."""
    place = torch.arange(total, device=length_P.device)
    padding_P1S = place < caption - length_P[:, None, None]
    before_TS = place <= place[:, None]
    itself_TS = place == place[:, None]
    return ((before_TS & ~padding_P1S) | itself_TS)[:, None]


def padded_left(features_RTD: Tensor, length_R: Tensor, positions: int) -> Tensor:
    """Features with the valid positions at the end of `positions`, zeros before, from ones that begin with them."""
    padded = features_RTD.new_zeros(len(features_RTD), positions, features_RTD.shape[-1])
    for row, (features, length) in enumerate(zip(features_RTD, length_R.tolist(), strict=True)):
        padded[row, positions - length :] = features[:length]
    return padded
