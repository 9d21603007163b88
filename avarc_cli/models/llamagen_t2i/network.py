"""The transformer of text-conditional LlamaGen (arXiv:2406.06525): p(token | tokens before it, caption).

Checkpoint-compatible with the published models. A caption of n positions comes before the image, in place of the class:

    [c_1, ..., c_n, z_1, ..., z_(L-1)],      c = projections of the text encoder's hidden states.

The hidden state of c_n scores z_1. The reference fills captions up to T positions on the left, with positions that no
other one sees; here they are left out.

No caption position is turned, or rather: its rotation is zero, so its query and its key are. Therefore

- the attention of c_j is the plain mean of the values of c_1 .. c_j, and nothing about a caption depends on the image;
- an image position gives each of the n caption positions the score 0. Together they weigh n exp(0) and add n times the
  mean of their values: the same as *one* position with the score log n whose value is that mean.

So a caption is evaluated once, and kept as a `Prefix`: n, the mean value of each layer, and the last hidden state. An
image is evaluated behind one position, however long the caption is, and captions of all lengths share a batch.

Shapes: R captions, P sequences (pairs of image and caption), T positions, C width, H and G heads of queries and of
keys, D head width or channels of the text encoder, N layers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.models.llamagen.network import QKV, Inputs, LlamaGen
from avarc_cli.models.llamagen_t2i.config import CaptionLlamaGenConfig

CAPTIONS_AT_ONCE = 16  # evaluated together: their tokens are as many as those of a few images
ALIGNMENT = 16  # numbers between rows of a mask are a multiple: CUDA's attention copies others, in every layer


class Prefix(NamedTuple):
    """All that images need of captions."""

    length_R: Tensor
    """Positions, n; int64."""
    mean_RNGD: Tensor
    """Mean value of the positions, of each layer."""
    hidden_RC: Tensor
    """Last hidden state of the last position, in the head's dtype."""

    def rows(self, row_P: Tensor) -> Prefix:
        """Those of these captions."""
        return Prefix(*(x[row_P] for x in self))

    def before(self, qkv: QKV, layer: int) -> QKV:
        """These queries, and their keys and values after the one position that stands for the caption."""
        first_P1GD = self.mean_RNGD[:, layer, None]
        return QKV(
            qkv.q_PTHD,
            torch.cat([torch.zeros_like(first_P1GD), qkv.k_PTGD], dim=1),
            torch.cat([first_P1GD, qkv.v_PTGD], dim=1),
        )


class CaptionProjection(nn.Module):
    def __init__(self, c: CaptionLlamaGenConfig) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c.caption_width, c.width, bias=False), nn.Linear(c.width, c.width, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(features), approximate="tanh"))


class CaptionEmbedding(nn.Module):
    """The projection of captions, and the null caption, which is not trained but belongs to the weights."""

    uncond_embedding: Tensor

    def __init__(self, c: CaptionLlamaGenConfig) -> None:
        super().__init__()
        self.cap_proj = CaptionProjection(c)
        self.register_buffer("uncond_embedding", torch.zeros(c.positions, c.caption_width))


class CaptionLlamaGen(LlamaGen):
    """The transformer. It has no class ids: what its images come after is a `Prefix`."""

    config: CaptionLlamaGenConfig
    causal = False
    cls_embedding: CaptionEmbedding  # type: ignore[assignment]  # under the same published name as that of classes

    def __init__(self, config: CaptionLlamaGenConfig) -> None:
        super().__init__(config)
        self.cls_embedding = CaptionEmbedding(config)

    def prefix(self, features_RTD: Tensor, length_R: Tensor, *, kernels: str | None = None) -> Prefix:
        """What images need of these captions.

        Args:
            features_RTD: the text encoder's hidden states, float32; positions from `length_R` on are not looked at.
            kernels: as for `hidden`.
        """
        if self.drop.drops:  # in the same places, whichever rows of a batch these are and however long
            longer = self.config.positions - features_RTD.shape[1]
            return self._prefix(F.pad(features_RTD, (0, 0, 0, longer)), length_R, kernels)
        size, parts = CAPTIONS_AT_ONCE, []
        for features, length in zip(features_RTD.split(size), length_R.split(size), strict=True):
            parts.append(self._prefix(features[:, : int(length.max())], length, kernels))
        return Prefix(*(torch.cat(fields) for fields in zip(*parts, strict=True)))

    def _prefix(self, features_RTD: Tensor, length_R: Tensor, kernels: str | None) -> Prefix:
        count = features_RTD.shape[1]
        row_R, last_R = torch.arange(len(length_R), device=length_R.device), length_R - 1
        seen_T11 = torch.arange(1, count + 1, device=length_R.device)[:, None, None]
        means = []

        def attend(layer: int, qkv: QKV) -> Tensor:
            mean_RTGD = (qkv.v_PTGD.float().cumsum(1) / seen_T11).to(qkv.v_PTGD.dtype)
            means.append(mean_RTGD[row_R, last_R])
            return mean_RTGD.repeat_interleave(self.config.heads // self.config.kv_heads, dim=2).flatten(2)

        no_turn_TJ2 = self.table_LJ2[:1].repeat(count, 1, 1)
        inputs = self.with_qkv(self.drop(self.cls_embedding.cap_proj(features_RTD)), no_turn_TJ2, kernels)
        hidden_RTC = self.hidden(inputs, kernels=kernels, attend=attend)
        return Prefix(length_R, torch.stack(means, dim=1), hidden_RTC[row_R, last_R])

    def null_features(self, length_R: Tensor) -> Tensor:
        """Features of the null caption with these numbers of positions, (R, T, D): its last ones.

        They stand where captions of these lengths stand behind the reference's padding.
        """
        null_TD = self.cls_embedding.uncond_embedding
        at_RT = len(null_TD) - length_R[:, None] + torch.arange(int(length_R.max()), device=length_R.device)
        return null_TD[at_RT.clamp(max=len(null_TD) - 1)]

    def hidden_after(
        self, prefix: Prefix, inputs: Inputs, kv_cache: KVCache | None = None, *, kernels: str | None = None
    ) -> Tensor:
        """As `hidden`, of image positions behind captions.

        Args:
            prefix: of each sequence. In an empty KV cache it is stored as the first position.
        """
        before = kv_cache.length if kv_cache is not None else 0
        new = inputs.x_PTC.shape[1]
        bias = self._bias(prefix.length_R, new, max(before, 1) + new)

        def attend(layer: int, qkv: QKV) -> Tensor:
            qkv = qkv if before else prefix.before(qkv, layer)
            return self.blocks[layer].attention.attend(qkv, layer, kv_cache, kernels or self.kernels, bias)

        return self.hidden(inputs, kernels=kernels, attend=attend)

    def _bias(self, length_P: Tensor, new: int, total: int) -> Tensor:
        """What is added to the scores of the last `new` of `total` positions, (P, 1, new, total) in attention's dtype:
        log n to that of the caption, -inf to those of positions that come later."""
        dtype, padded = self.precision.attention, -(-total // ALIGNMENT) * ALIGNMENT
        bias_TS = torch.full((new, padded), -torch.inf, dtype=dtype, device=length_P.device).triu(1 + total - new)
        bias_P1TS = bias_TS.repeat(len(length_P), 1, 1, 1)
        bias_P1TS[..., 0] = length_P.log()[:, None, None]
        return bias_P1TS[..., :total]
