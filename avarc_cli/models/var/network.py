"""VAR, the visual autoregressive transformer (arXiv:2404.02905): p(tokens of a scale | all coarser scales, class).

Checkpoint-compatible with the published d16 to d36. Written for scoring: any run of scales can be evaluated after a
prefix whose keys and values are kept, and no attention mask exists (a scale sees itself and what came before).

Shapes: P sequences (pairs of image and class), T positions of the scales at hand, L = sum p_k^2 positions in all,
C width, H heads, D head width, V codes, Z latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.precision import CACHED, FP32, Precision, QuantizedLinear, linear, quantized
from avarc_cli.layers.state_dict import build
from avarc_cli.models.var.config import TITLE, VARConfig
from avarc_kernels import adaln, block_causal_attention, gated_residual_adaln, linear_gelu

BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")  # in published files; we compute what they hold
MAX_LOG_SCALE = math.log(100)
NORM_EPS = 1e-12  # a shorter query or key is divided by this


class Condition(NamedTuple):
    """Class modulation of N classes: (N, 1, 6, C) for each block, (N, 1, 2, C) for the head.

    row_P is each pair's row in these tables; None when pair i has row i. Rows are looked up where they are used: for
    all pairs and blocks at once they would be larger than the activations.
    """

    blocks: list[Tensor]
    head: Tensor
    row_P: Tensor | None = None

    def select(self, keep_Q: Tensor) -> Condition:
        """The conditions of these pairs."""
        return self._replace(row_P=keep_Q if self.row_P is None else self.row_P[keep_Q])

    def before(self, i: int, branch: int) -> tuple[Tensor, Tensor]:
        """Scale and shift (N, C) before block i's attention (branch 0) or MLP (1), or, after the last, the head."""
        if i == len(self.blocks):
            return self.head[:, 0, 0], self.head[:, 0, 1]
        return self.blocks[i][:, 0, 2 + branch], self.blocks[i][:, 0, 4 + branch]


class Attention(nn.Module):
    def __init__(self, c: VARConfig) -> None:
        super().__init__()
        self.heads, self.qk_norm = c.heads, c.qk_norm
        self.mat_qkv, self.proj = nn.Linear(c.width, 3 * c.width, bias=False), nn.Linear(c.width, c.width)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(c.width)), nn.Parameter(torch.zeros(c.width))
        if c.qk_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, c.heads, 1, 1), math.log(4)))

    def forward(
        self,
        x_PTC: Tensor,
        ends: Sequence[int],
        past: Tensor | None,
        kept: Tensor | None,
        dtype: torch.dtype,
        kernels: str,
    ) -> Tensor:
        """Branch output (P, T, C). past, kept: this block's part of them (see VAR.hidden); dtype: of the attention."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = linear(self.mat_qkv, x_PTC, bias).unflatten(-1, (3, self.heads, -1))  # (P, T, 3, H, D)
        scale, gain_H = 0.25 / math.sqrt(qkv.shape[-1]), None
        qk, v = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        if self.qk_norm:
            scale, gain_H = 1.0, self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp().flatten()
            if kernels == "torch":  # both at once, and a prefix's keys once: the op would do it in every stage
                qk, gain_H = _normalize(qk, gain_H), None
        q, k = qk.to(dtype).permute(2, 0, 3, 1, 4)
        v = v.to(dtype)
        k, v = _with_prefix(k, v, past, kept)
        out = block_causal_attention(q, k, v, ends, scale=scale, gain_H=gain_H, backend=kernels)
        return linear(self.proj, out.transpose(1, 2).flatten(2))


def _with_prefix(k: Tensor, v: Tensor, past: Tensor | None, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values of prefix and new positions; the first of them are written to `kept`.

    k, v: (P, H, T, D) of the new positions; past, kept: (2, P, H, positions, D).
    """
    before = 0 if past is None else past.shape[3]
    if kept is not None and kept.shape[3] == before + k.shape[2]:  # all are kept: read them from where they stay
        kept[0, :, :, before:], kept[1, :, :, before:] = k, v
        if past is not None and past.data_ptr() != kept.data_ptr():
            kept[:, :, :, :before] = past
        return kept[0], kept[1]
    if past is not None:
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
    if kept is not None:
        kept[0], kept[1] = k[:, :, : kept.shape[3]], v[:, :, : kept.shape[3]]
    return k, v


def _normalize(qk_PT2HD: Tensor, gain_H: Tensor) -> Tensor:
    """Queries and keys of length one, queries times their head's gain."""
    qk = qk_PT2HD.float()
    length_PT2H1 = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).clamp_min(NORM_EPS)
    divisor = length_PT2H1 / torch.stack([gain_H, torch.ones_like(gain_H)])[..., None]
    return (qk / divisor).to(qk_PT2HD.dtype)


class FeedForward(nn.Module):
    def __init__(self, c: VARConfig) -> None:
        super().__init__()
        hidden = round(c.width * c.mlp_ratio)
        self.fc1, self.fc2 = nn.Linear(c.width, hidden), nn.Linear(hidden, c.width)

    def forward(self, x: Tensor, kernels: str) -> Tensor:
        if kernels == "triton" and x.is_cuda and isinstance(self.fc1, nn.Linear):
            rows = x.flatten(0, -2).to(self.fc1.weight.dtype)
            hidden = linear_gelu(rows, self.fc1.weight, self.fc1.bias, backend="cublaslt").unflatten(0, x.shape[:-1])
        else:
            hidden = gelu(linear(self.fc1, x))
        return linear(self.fc2, hidden)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form; without gradients x, which is contiguous, is overwritten.

    On a CPU as x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), the same function, in float32: torch's exp is three times
    faster than its tanh. In pieces that stay in a core's cache from the first step to the last.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return F.gelu(x, approximate="tanh")
    for piece in x.view(-1).split(CACHED * torch.get_num_threads()):
        exact = piece.float()
        inner = torch.addcmul(exact, exact * exact, exact, value=0.044715).mul_(2 * math.sqrt(2 / math.pi))
        torch.mul(exact, inner.sigmoid_(), out=exact)
        if exact is not piece:
            piece.copy_(exact)
    return x


def _ada_lin(width: int, vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, vectors * width))


class Block(nn.Module):
    """Attention and MLP, the class-wise modulation that goes before them, and their gates (see VAR.hidden)."""

    def __init__(self, c: VARConfig) -> None:
        super().__init__()
        self.attn, self.ffn = Attention(c), FeedForward(c)
        if c.shared_aln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, c.width))
        else:
            self.ada_lin = _ada_lin(c.width, 6)


class HeadNorm(nn.Module):
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
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
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
        """The blocks, with their type."""
        return cast("list[Block]", list(self.blocks))

    def set_precision(self, precision: Precision) -> VAR:
        """Run the linears of the blocks in this precision; norms, residual stream and class modulation stay float32.

        So does the head on a CPU, whose half-precision products round the logits. A GPU's do not, and it would spend
        a fifth of its time on the head in float32.

        Raises: UsageError for widths that it does not take.
        """
        self.precision = precision
        for block in self.layers:
            for name in ("q_bias", "v_bias"):
                bias = getattr(block.attn, name)
                bias.data = bias.data.to(precision.activations)
            for owner, name in ((block.attn, "mat_qkv"), (block.attn, "proj"), (block.ffn, "fc1"), (block.ffn, "fc2")):
                layer = getattr(owner, name)
                layer = quantized(layer, precision) if precision.quantized else layer.to(precision.product)
                setattr(owner, name, layer)
        if self.head.weight.is_cuda:
            self.head.to(precision.activations)
        return self

    def set_kernels(self, kernels: str) -> VAR:
        """Which implementation of its operations runs: "torch" or "triton"."""
        self.kernels = kernels
        for module in self.modules():
            if isinstance(module, QuantizedLinear):
                module.kernels = kernels
        return self

    def condition(self, class_id_N: Tensor) -> Condition:
        """Class modulation of these classes: the only place where the class enters but for the first scale."""
        c = self.class_emb(class_id_N)
        if self.config.shared_aln:
            shared = self.shared_ada_lin(c).unflatten(-1, (1, 6, -1))
            blocks = [block.ada_gss + shared for block in self.layers]
        else:
            blocks = [block.ada_lin(c).unflatten(-1, (1, 6, -1)) for block in self.layers]
        return Condition(blocks, self.head_nm.ada_lin(c).unflatten(-1, (1, 2, -1)))

    def place(self) -> Tensor:
        """What tells a position where it is: position plus scale embedding, (1, L, C)."""
        levels = zip(self.lvl_embed.weight, self.config.patch_nums, strict=True)
        return self.pos_1LC + torch.cat([level_C.expand(side * side, -1) for level_C, side in levels])

    def embed_start(self, class_id_P: Tensor) -> Tensor:
        """Input of the first scale, (P, p_1^2, C)."""
        start = self.class_emb(class_id_P)[:, None] + self.pos_start
        return start + self.place()[:, : self.pos_start.shape[1]]

    def embed_rest(self, teacher_BTZ: Tensor) -> Tensor:
        """Input of scales 2..K from the quantiser's teacher input; no class in it, (B, L - p_1^2, C)."""
        return self.word_embed(teacher_BTZ) + self.place()[:, self.pos_start.shape[1] :]

    def embed_scale(self, k: int, latents_BTZ: Tensor) -> Tensor:
        """Input of scale k >= 1 (0-based) alone, from the latents so far at its size, (B, p_k^2, C)."""
        return self.word_embed(latents_BTZ) + self.place()[:, self.config.ends[k - 1] : self.config.ends[k]]

    def hidden(
        self,
        x_PTC: Tensor,
        condition: Condition,
        ends: Sequence[int],
        past: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (P, T, C), modulated for the head.

        Args:
            x_PTC: embedded input of the scales at hand, float32.
            condition: of each pair.
            ends: end of each of these scales, counted in the T positions.
            past: keys and values of the scales before, (blocks, 2, P, H, positions, D); None at the start.
            kept: where to write those of the first positions, to go on from, of the same form with as many positions as
                are wanted; they are the largest part of the memory. It may begin with `past` itself.
        """
        run: dict[str, Any] = {"dtype": self.precision.activations, "backend": self.kernels}
        row_P = condition.row_P
        branch_PTC = adaln(x_PTC, *condition.before(0, 0), row_P, **run)
        for i, block in enumerate(self.layers):
            gates = condition.blocks[i][:, 0, 0], condition.blocks[i][:, 0, 1]
            prefixes = (None if prefix is None else prefix[i] for prefix in (past, kept))
            y = block.attn(branch_PTC, ends, *prefixes, self.precision.attention, self.kernels)
            x_PTC, branch_PTC = gated_residual_adaln(x_PTC, y, gates[0], *condition.before(i, 1), row_P, **run)
            y = block.ffn(branch_PTC, self.kernels)
            if i + 1 == len(self.blocks):
                run["dtype"] = self.head.weight.dtype
            x_PTC, branch_PTC = gated_residual_adaln(x_PTC, y, gates[1], *condition.before(i + 1, 0), row_P, **run)
        return branch_PTC

    def prefix_shape(self, pairs: int, positions: int) -> tuple[int, ...]:
        """Of `past` and `kept`."""
        c = self.config
        return (c.depth, 2, pairs, c.heads, positions, c.width // c.heads)
