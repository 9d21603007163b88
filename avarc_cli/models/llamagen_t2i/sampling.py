"""Drawing token sequences from a text-conditional LlamaGen, one token after the other, with guidance.

Shapes: B images, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.models.llamagen.sampling import draw_tokens
from avarc_cli.models.llamagen_t2i.network import CaptionLlamaGen, Prefix


@torch.inference_mode()
def sample(
    gpt: CaptionLlamaGen,
    captions_B: Prefix,
    *,
    guidance: float,
    top_k: int,
    top_p: float,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Tokens (B, L) int64, one image for each caption; arguments as `LikelihoodModel.sample`.

    As in the reference, the null caption has as many positions as the image's own.
    """
    lengths, null_B = captions_B.length_R.unique(return_inverse=True)
    nulls_B = gpt.prefix(gpt.null_features(lengths), lengths).rows(null_B)
    both_2B = Prefix(*(torch.cat(fields) for fields in zip(captions_B, nulls_B, strict=True)))
    kv_cache = KVCache(gpt.config.depth, capacity=gpt.config.ends[-1])

    def hidden(position: int, before_2B1: Tensor | None) -> Tensor:
        if before_2B1 is None:
            return both_2B.hidden_RC[:, None]
        return gpt.hidden_after(both_2B, gpt.token_inputs(before_2B1, position), kv_cache)

    return draw_tokens(gpt, hidden, guidance=guidance, top_k=top_k, top_p=top_p, generators=generators)
