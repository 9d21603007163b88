"""VAR, the visual autoregressive transformer (arXiv:2404.02905): p(tokens of a scale | all coarser scales, class).

Checkpoint-compatible with the published d16 to d36. Written for scoring: any run of scales can be evaluated after a
cached prefix, without an attention mask (a scale attends to itself and to the scales before).

The transformer is a chain of branches, the attention and the MLP of each block in turn. Each adds to the residual
stream x:

    x = x + gate * branch(norm(x)),      norm(x) = layer_norm(x) * (1 + scale) + shift,

where gate, scale and shift depend on the class (AdaLN). Adding a branch and the norm before the next branch are one
operation, `gated_residual_adaln`, which reads and writes x once. That operation crosses the borders of blocks, so the
loop over branches is in `VAR.hidden` and blocks have no forward of their own: they only group the weights.

Shapes: P sequences (pairs of image and class), T positions of the scales that are evaluated, L = sum p_k^2 positions in
all, N classes, C width, H heads, D head width, V codes, Z latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from avarc_cli.layers.gelu import linear_gelu
from avarc_cli.layers.kernels import use_kernels
from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.layers.linears import convert_linears, linear
from avarc_cli.layers.precision import FP32, Precision
from avarc_cli.layers.state_dict import build
from avarc_cli.models.var.config import TITLE, VARConfig
from avarc_kernels import adaln, block_causal_attention, gated_residual_adaln

BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")  # in published files, but not needed here
MAX_LOG_SCALE = math.log(100)  # as in the published code
NORM_EPS = 1e-12  # smallest length that a query or key is divided by; F.normalize's default


class Condition(NamedTuple):
    """Class modulation: tables of N classes, and each pair's row in them.

    Rows are looked up where they are used. Looked up for all pairs and blocks at once, they would be larger than the
    activations.
    """

    blocks: list[Tensor]
    """(N, 1, 6, C) for each block: the gates of its two branches, their scales, their shifts."""
    head: Tensor
    """(N, 1, 2, C): scale and shift of the norm before the head."""
    row_P: Tensor | None = None
    """Row of each pair; None if pair i has row i."""

    def select(self, keep_Q: Tensor) -> Condition:
        """The condition of these pairs."""
        return self._replace(row_P=keep_Q if self.row_P is None else self.row_P[keep_Q])

    def skipping(self, factor_D2B: Tensor) -> Condition:
        """The condition of pairs that have a row each, the gates of every block's two branches times these factors."""
        factors = factor_D2B.transpose(1, 2)[:, :, None, :, None]  # (D, B, 1, 2, 1)
        blocks = [
            torch.cat([block[:, :, :2] * factor, block[:, :, 2:]], dim=2)
            for block, factor in zip(self.blocks, factors, strict=True)
        ]
        return self._replace(blocks=blocks)

    def gates(self) -> list[Tensor]:
        """Gate (N, C) of every branch."""
        return [block[:, 0, branch] for block in self.blocks for branch in (0, 1)]

    def norms(self) -> list[tuple[Tensor, Tensor]]:
        """Scale and shift (N, C) of the norm before every branch, and of the one before the head."""
        before = [(block[:, 0, 2 + branch], block[:, 0, 4 + branch]) for block in self.blocks for branch in (0, 1)]
        return [*before, (self.head[:, 0, 0], self.head[:, 0, 1])]


@dataclass(frozen=True)
class Pass:
    """What a branch needs to know about the forward pass."""

    ends: Sequence[int]
    """End of each of the scales, counted in the T positions."""
    kv_cache: KVCache | None
    """Keys and values of the scales before; None if there are none and none are to be stored."""
    attention: torch.dtype
    """Of queries, keys and values."""
    kernels: str
    """Implementation of the operations (`layers.kernels`)."""


class Attention(nn.Module):
    def __init__(self, c: VARConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.qk_norm = layer, c.heads, c.qk_norm
        self.mat_qkv, self.proj = nn.Linear(c.width, 3 * c.width, bias=False), nn.Linear(c.width, c.width)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(c.width)), nn.Parameter(torch.zeros(c.width))
        if c.qk_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, c.heads, 1, 1), math.log(4)))

    def forward(self, x_PTC: Tensor, run: Pass) -> Tensor:
        """The branch's output, (P, T, C)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = linear(self.mat_qkv, x_PTC, bias).unflatten(-1, (3, self.heads, -1))  # (P, T, 3, H, D)
        scale, gain_H = 0.25 / math.sqrt(qkv.shape[-1]), None
        qk, v = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        if self.qk_norm:
            scale, gain_H = 1.0, self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp().flatten()
            if run.kernels != "triton":  # queries and keys in one step, and cached keys are not normalized again
                qk, gain_H = _normalize(qk, gain_H), None
        q, k = qk.to(run.attention).permute(2, 0, 3, 1, 4)
        v = v.to(run.attention)
        if run.kv_cache is not None:
            k, v = run.kv_cache.append(self.layer, k, v)
        out = block_causal_attention(q, k, v, run.ends, scale=scale, gain_H=gain_H, backend=run.kernels)
        return linear(self.proj, out.transpose(1, 2).flatten(2))


def _normalize(qk_PT2HD: Tensor, gain_H: Tensor) -> Tensor:
    """Queries and keys divided by their lengths, queries multiplied by their head's gain.

    Without gradients, float32 ones are overwritten.
    """
    qk = qk_PT2HD.float()
    length_PT2H1 = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).clamp_min(NORM_EPS)
    divisor = length_PT2H1 / torch.stack([gain_H, torch.ones_like(gain_H)])[..., None]
    return (qk / divisor if torch.is_grad_enabled() else qk.div_(divisor)).to(qk_PT2HD.dtype)


class FeedForward(nn.Module):
    def __init__(self, c: VARConfig) -> None:
        super().__init__()
        hidden = round(c.width * c.mlp_ratio)
        self.fc1, self.fc2 = nn.Linear(c.width, hidden), nn.Linear(hidden, c.width)

    def forward(self, x: Tensor, run: Pass) -> Tensor:
        """The branch's output, (P, T, C)."""
        return linear(self.fc2, linear_gelu(self.fc1, x, kernels=run.kernels))


def _ada_lin(width: int, vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, vectors * width))


class Block(nn.Module):
    """The weights of two branches and of their modulation."""

    def __init__(self, c: VARConfig, layer: int) -> None:
        super().__init__()
        self.attn, self.ffn = Attention(c, layer), FeedForward(c)
        if c.shared_aln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, c.width))
        else:
            self.ada_lin = _ada_lin(c.width, 6)


class HeadNorm(nn.Module):
    """The weights of the modulation before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = _ada_lin(width, 2)


class VAR(nn.Module):
    """The transformer. Class id `num_classes` is the unconditional class."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = c = config
        self.precision, self.kernels = FP32, "torch"
        first, total = c.patch_nums[0] ** 2, c.ends[-1]
        self.word_embed = nn.Linear(c.z_channels, c.width)
        self.class_emb = nn.Embedding(c.num_classes + 1, c.width)
        self.pos_start = nn.Parameter(torch.zeros(1, first, c.width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, total, c.width))
        self.lvl_embed = nn.Embedding(len(c.patch_nums), c.width)
        if c.shared_aln:
            self.shared_ada_lin = _ada_lin(c.width, 6)
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.depth))
        self.head_nm = HeadNorm(c.width)
        self.head = nn.Linear(c.width, c.vocab_size)

    @classmethod
    def from_state_dict(cls, config: VARConfig, tensors: Mapping[str, Tensor], *, source: str) -> VAR:
        """A VAR of this shape with these tensors.

        Raises: CheckpointError naming `source` and the first few offending keys.
        """
        weights = {k: v for k, v in tensors.items() if k.rpartition(".")[2] not in BUFFERS}
        return build(lambda: cls(config), weights, source=source, expected=TITLE)

    @property
    def layers(self) -> list[Block]:
        """The blocks, typed."""
        return cast("list[Block]", list(self.blocks))

    def set_precision(self, precision: Precision) -> VAR:
        """Run the linears of the blocks in this precision; norms, residual stream and class modulation stay float32.

        The head stays float32 on a CPU, whose half-precision products round the logits. A GPU's do not, and a float32
        head would take a d16 in bf16 a quarter more time on an H200 (by arithmetic: docs/gpu.md).

        Raises: UsageError for widths that the precision does not support.
        """
        self.precision = precision
        for block in self.layers:
            for name in ("q_bias", "v_bias"):
                bias = getattr(block.attn, name)
                bias.data = bias.data.to(precision.activations)
            convert_linears(block, ("attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2"), precision)
        if self.head.weight.is_cuda:
            self.head.to(precision.activations)
        return self

    def set_kernels(self, kernels: str) -> VAR:
        """Set the implementation of the operations. Raises: as `use_kernels`."""
        self.kernels = kernels
        use_kernels(self, kernels, head_width=self.config.width // self.config.heads)
        return self

    def condition(self, class_id_N: Tensor) -> Condition:
        """Class modulation of these classes, the only input from the class apart from the first scale's embedding."""
        c = self.class_emb(class_id_N)
        if self.config.shared_aln:
            shared = self.shared_ada_lin(c).unflatten(-1, (1, 6, -1))
            blocks = [block.ada_gss + shared for block in self.layers]
        else:
            blocks = [block.ada_lin(c).unflatten(-1, (1, 6, -1)) for block in self.layers]
        return Condition(blocks, self.head_nm.ada_lin(c).unflatten(-1, (1, 2, -1)))

    def levels(self) -> Tensor:
        """Scale of each position, (1, L) int64, from 0: a buffer of published files, which tells readers the scales."""
        counts = torch.tensor([side * side for side in self.config.patch_nums])
        return torch.arange(len(counts)).repeat_interleave(counts)[None]

    def place(self) -> Tensor:
        """Position plus scale embedding, (1, L, C)."""
        levels = zip(self.lvl_embed.weight, self.config.patch_nums, strict=True)
        return self.pos_1LC + torch.cat([level_C.expand(side * side, -1) for level_C, side in levels])

    def embed_start(self, class_id_P: Tensor) -> Tensor:
        """Input of the first scale, (P, p_1^2, C)."""
        start = self.class_emb(class_id_P)[:, None] + self.pos_start
        return start + self.place()[:, : self.pos_start.shape[1]]

    def embed_rest(self, teacher_BTZ: Tensor) -> Tensor:
        """Input of scales 2..K from the quantizer's teacher input, the same for all classes, (B, L - p_1^2, C)."""
        return self.word_embed(teacher_BTZ) + self.place()[:, self.pos_start.shape[1] :]

    def embed_scale(self, k: int, latents_BTZ: Tensor) -> Tensor:
        """Input of scale k >= 1 (0-based) alone, from the latents so far at its size, (B, p_k^2, C)."""
        return self.word_embed(latents_BTZ) + self.place()[:, self.config.ends[k - 1] : self.config.ends[k]]

    def hidden(
        self,
        x_PTC: Tensor,
        condition: Condition,
        ends: Sequence[int],
        kv_cache: KVCache | None = None,
        *,
        kernels: str | None = None,
    ) -> Tensor:
        """Last hidden states after the head's norm, (P, T, C), in the head's dtype.

        Args:
            x_PTC: embedded input of the scales to evaluate, float32.
            condition: of each pair.
            ends: end of each of these scales, counted in the T positions.
            kv_cache: keys and values of the scales before; stores those of the new positions (KVCache.limit). None
                if these are the first scales and nothing is to be stored.
            kernels: None for the model's own. With gradients it must be "torch".
        """
        kernels = kernels or self.kernels
        row_P, norms = condition.row_P, condition.norms()
        run = Pass(ends, kv_cache, self.precision.attention, kernels)
        branches = [branch for block in self.layers for branch in (block.attn, block.ffn)]
        dtypes = [self.precision.activations] * len(branches) + [self.head.weight.dtype]
        normed_PTC = adaln(x_PTC, *norms[0], row_P, dtype=dtypes[0], backend=kernels)
        for branch, gate, norm, dtype in zip(branches, condition.gates(), norms[1:], dtypes[1:], strict=True):
            y_PTC = branch(normed_PTC, run)
            x_PTC, normed_PTC = gated_residual_adaln(x_PTC, y_PTC, gate, *norm, row_P, dtype=dtype, backend=kernels)
        return normed_PTC
