"""VAR, the visual autoregressive transformer (arXiv:2404.02905): p(tokens of a scale | all coarser scales, class).

Checkpoint-compatible with the published d16 to d36. Written for scoring: any run of scales can be evaluated after a
prefix whose keys and values are kept, and no attention mask exists (a scale sees itself and what came before).

Shapes: P sequences (pairs of image and class), T positions of the scales at hand, L = sum p_k^2 positions in all,
C width, H heads, D head width, V codes, Z latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.errors import CheckpointError
from avarc_cli.models.loading import build, take
from avarc_kernels import segment_attention

EXPECTED = "VAR transformer"
BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")  # in published files; we compute what they hold
HEAD_WIDTH = 64  # of a model without QK-norm, whose file does not tell
MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True, kw_only=True)
class VARConfig:
    """Shape of a VAR: depth blocks of `width` channels and `heads` heads; patch_nums are the scales' sides."""

    depth: int
    width: int
    heads: int
    num_classes: int
    patch_nums: tuple[int, ...]
    vocab_size: int
    z_channels: int
    shared_aln: bool = False
    qk_norm: bool = True
    mlp_ratio: float = 4.0

    @property
    def ends(self) -> tuple[int, ...]:
        """End position of each scale; the last is L."""
        return tuple(accumulate(p * p for p in self.patch_nums))

    @property
    def flops(self) -> int:
        """Operations to score one pair: linears, attention without masked tiles, head; a multiply-add counts as 2."""
        linears = (8 + 4 * self.mlp_ratio) * self.width**2 * self.depth * self.ends[-1]
        attention = (
            4 * self.width * self.depth * sum(p * p * e for p, e in zip(self.patch_nums, self.ends, strict=True))
        )
        return round(linears + attention + 2 * self.width * self.vocab_size * self.ends[-1])


class KeyValue(NamedTuple):
    """A prefix's keys and values in one block, each (P, H, positions, D)."""

    k: Tensor
    v: Tensor


class Condition(NamedTuple):
    """Class modulation of N classes: (N, 1, 6, C) for each block, (N, 1, 2, C) for the head.

    row_P is each pair's row in these tables; None when pair i has row i. A block's rows are looked up when the block
    runs: for all pairs and blocks at once they would be larger than the activations.
    """

    blocks: list[Tensor]
    head: Tensor
    row_P: Tensor | None = None

    def of(self, table: Tensor) -> Tensor:
        """The table's row of each pair."""
        return table if self.row_P is None else table[self.row_P]

    def select(self, keep_Q: Tensor) -> Condition:
        """The conditions of these pairs, with the tables cut to the classes they need."""
        row_Q = keep_Q if self.row_P is None else self.row_P[keep_Q]
        used, row_Q = row_Q.unique(return_inverse=True)
        return Condition([table[used] for table in self.blocks], self.head[used], row_Q)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in its own dtype, whatever the activations' is."""
    return layer(x.to(layer.weight.dtype))


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class Attention(nn.Module):
    def __init__(self, c: VARConfig) -> None:
        super().__init__()
        self.heads, self.qk_norm = c.heads, c.qk_norm
        self.mat_qkv, self.proj = nn.Linear(c.width, 3 * c.width, bias=False), nn.Linear(c.width, c.width)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(c.width)), nn.Parameter(torch.zeros(c.width))
        if c.qk_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, c.heads, 1, 1), math.log(4)))

    def forward(self, x_PTC: Tensor, ends: Sequence[int], past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        dtype = self.mat_qkv.weight.dtype
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_PTC.to(dtype), self.mat_qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scale = 0.25 / math.sqrt(q.shape[-1])
        if self.qk_norm:
            gain = self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()
            q, k = (F.normalize(q.float(), dim=-1) * gain).to(dtype), F.normalize(k.float(), dim=-1).to(dtype)
            scale = 1.0
        if past is not None:
            k, v = torch.cat([past.k, k], dim=2), torch.cat([past.v, v], dim=2)
        out = segment_attention(q, k, v, ends, scale)
        return self.proj(out.transpose(1, 2).flatten(2)), KeyValue(k, v)


class FeedForward(nn.Module):
    def __init__(self, c: VARConfig) -> None:
        super().__init__()
        hidden = round(c.width * c.mlp_ratio)
        self.fc1, self.fc2 = nn.Linear(c.width, hidden), nn.Linear(hidden, c.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(_linear(self.fc1, x), approximate="tanh"))


def _ada_lin(width: int, vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, vectors * width))


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a class-wise scale, shift and gate. The residual stream is float32."""

    def __init__(self, c: VARConfig) -> None:
        super().__init__()
        self.attn, self.ffn = Attention(c), FeedForward(c)
        if c.shared_aln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, c.width))
        else:
            self.ada_lin = _ada_lin(c.width, 6)

    def forward(
        self, x_PTC: Tensor, modulation: Tensor, ends: Sequence[int], past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation.unbind(2)
        y, present = self.attn(_modulate(x_PTC, scale1, shift1), ends, past)
        x_PTC = torch.addcmul(x_PTC, gamma1, y.float())
        y = self.ffn(_modulate(x_PTC, scale2, shift2))
        return torch.addcmul(x_PTC, gamma2, y.float()), present


class HeadNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = _ada_lin(width, 2)


class VAR(nn.Module):
    """The transformer. Class id `num_classes` is the unconditional class."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = c = config
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
    def from_state_dict(cls, tensors: Mapping[str, Tensor], *, source: str = "the state dict") -> VAR:
        """A VAR with these tensors, its configuration read off them.

        Raises: CheckpointError naming `source` and the first few offending keys.
        """
        config = read_config(tensors, source)
        weights = {k: v for k, v in tensors.items() if k.rpartition(".")[2] not in BUFFERS}
        return build(lambda: cls(config), weights, source=source, expected=EXPECTED)

    @property
    def layers(self) -> list[Block]:
        """The blocks, with their type."""
        return cast("list[Block]", list(self.blocks))

    def set_precision(self, dtype: torch.dtype) -> VAR:
        """Run the linears of the blocks in `dtype`; norms, residual stream, class modulation and head stay float32."""
        for block in self.layers:
            for part in (block.attn.mat_qkv, block.attn.proj, block.ffn):
                part.to(dtype)
            for name in ("q_bias", "v_bias"):
                bias = getattr(block.attn, name)
                bias.data = bias.data.to(dtype)
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
        counts = torch.tensor([p * p for p in self.config.patch_nums], device=self.pos_1LC.device)
        level_L = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        return self.pos_1LC + self.lvl_embed(level_L)

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
        past: Sequence[KeyValue] | None = None,
        *,
        keep: bool = False,
    ) -> tuple[Tensor, list[KeyValue] | None]:
        """Last hidden states (P, T, C), modulated for the head, and, to go on from, every block's keys and values.

        Args:
            x_PTC: embedded input of the scales at hand, float32.
            condition: of each pair.
            ends: end of each of these scales, counted in the T positions.
            past: keys and values of the scales before, one entry a block; None at the start.
            keep: whether to return keys and values; they are the largest part of the memory.
        """
        present: list[KeyValue] = []
        for i, block in enumerate(self.layers):
            x_PTC, kv = block(x_PTC, condition.of(condition.blocks[i]), ends, past[i] if past else None)
            if keep:
                present.append(KeyValue(kv.k.contiguous(), kv.v.contiguous()))  # views would keep all of qkv alive
        scale, shift = condition.of(condition.head).unbind(2)
        return _modulate(x_PTC, scale, shift), present if keep else None


def read_config(tensors: Mapping[str, Tensor], source: str) -> VARConfig:
    """The shape of the VAR that these tensors make up. Raises CheckpointError when they do not."""

    def shape(key: str, ndim: int) -> torch.Size:
        found = take(tensors, key, source=source, expected=EXPECTED).shape
        if len(found) != ndim:
            raise CheckpointError(f"{source} does not fit a {EXPECTED}", f"'{key}' has shape {tuple(found)}")
        return found

    depth = 0
    while f"blocks.{depth}.attn.mat_qkv.weight" in tensors:
        depth += 1
    rows, width = shape("class_emb.weight", 2)
    qk_norm = "blocks.0.attn.scale_mul_1H11" in tensors
    heads = shape("blocks.0.attn.scale_mul_1H11", 4)[1] if qk_norm else max(width // HEAD_WIDTH, 1)
    return VARConfig(
        depth=depth,
        width=width,
        heads=heads,
        num_classes=rows - 1,
        patch_nums=_read_patch_nums(tensors, source, first=shape("pos_start", 3)[1], total=shape("pos_1LC", 3)[1]),
        vocab_size=shape("head.weight", 2)[0],
        z_channels=shape("word_embed.weight", 2)[1],
        shared_aln="shared_ada_lin.1.weight" in tensors,
        qk_norm=qk_norm,
        mlp_ratio=shape("blocks.0.ffn.fc1.weight", 2)[0] / width,
    )


def _read_patch_nums(tensors: Mapping[str, Tensor], source: str, first: int, total: int) -> tuple[int, ...]:
    level_L = take(tensors, "lvl_1L", source=source, expected=EXPECTED).flatten().long()
    counts = level_L.bincount().tolist() if len(level_L) and level_L.min() >= 0 else []
    sides = tuple(math.isqrt(n) for n in counts)
    in_order = bool((level_L.diff() >= 0).all())
    if not in_order or [p * p for p in sides] != counts or counts[:1] != [first] or sum(counts) != total:
        raise CheckpointError(
            f"{source} does not fit a {EXPECTED}",
            f"'lvl_1L' gives scales of {counts[:12]} positions; expected squares, {first} first, {total} in all",
            "the file is damaged: download it again",
        )
    return sides
