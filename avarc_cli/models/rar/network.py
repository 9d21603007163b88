"""RAR's transformer (arXiv:2411.00776): p(token | tokens before it in some order, class).

Checkpoint-compatible with the published models. Written for scoring: any run of positions can be evaluated after a
cached prefix, and all logits are never stored.

Position 0 is a learned vector, position 1 the class, and position 2 + j the token that is scored j-th; the hidden state
of position 1 + j scores it. A position also gets a vector that says where the token to be predicted lies.

The transformer is a chain of branches, the attention and the MLP of each block in turn. Each adds to the residual
stream x:

    x = x + gate * branch(norm(x)),      norm(x) = (layer_norm(x) * gain + bias) * (1 + scale) + shift,

where gate, scale and shift depend on the class and the position, but not on the image (`modulation`). Adding a branch
and the norm before the next one are one operation, `gated_residual_adaln`, so the loop over branches is in
`RAR.hidden`. It multiplies by 1 + scale' and adds shift', so gain and bias are folded into these.

Shapes: P sequences (pairs of image and class), T positions that are evaluated, M = P T, L tokens, C width, H heads, D
head width, V codes, R rows of the tables of modulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.dropout import Dropout, attention
from avarc_cli.layers.gelu import linear_gelu
from avarc_cli.layers.kernels import use_kernels
from avarc_cli.layers.kv_cache import KVCache
from avarc_cli.layers.linears import convert_linears, linear
from avarc_cli.layers.precision import FP32, Precision
from avarc_cli.layers.state_dict import build
from avarc_cli.models.rar.config import PREFIX, SPARE_POSITIONS, SPARE_STEPS, TITLE, RARConfig
from avarc_kernels import adaln, causal_attention, gated_residual_adaln, head_layer_norm

NORM_EPS = 1e-6


class Modulation(NamedTuple):
    """Shift, scale and gate of every branch, and shift and scale before the head, for a run of positions.

    Tables are asked for block by block: together they are larger than the activations. They are those of the sequences
    one by one, so that nothing is copied, or one table of all, where one operation on all sequences is faster.
    """

    block: Callable[[int], list[Tensor]]
    """(T, 3, 2, C) for each sequence, or one (R, 3, 2, C), float32: shift, scale and gate of a block's two branches."""
    head: Callable[[], list[Tensor]]
    """(T, 2, C) for each sequence, or one (R, 2, C), float32: shift and scale. Asked for last."""
    row_M: Tensor | None
    """Row of each position of each sequence in the one table of all; None where each sequence has its own."""


class Streams:
    """The residual stream, in the parts that a modulation has tables for; every part is (M, 1, C)."""

    def __init__(self, x_PTC: Tensor, modulation: Modulation, kernels: str) -> None:
        self.shape, self.row_M, self.kernels = x_PTC.shape, modulation.row_M, kernels
        self.parts = self._parts(x_PTC)

    def _parts(self, x_PTC: Tensor) -> list[Tensor]:
        rows = self.shape[1] if self.row_M is None else self.shape[0] * self.shape[1]
        return list(x_PTC.reshape(-1, 1, self.shape[2]).split(rows))

    def norm(self, tables: list[Tensor], branch: int, dtype: torch.dtype) -> Tensor:
        """The norm before a block's branch, (P, T, C)."""
        normed = [
            adaln(x, t[:, 1, branch], t[:, 0, branch], self.row_M, dtype=dtype, backend=self.kernels)
            for x, t in zip(self.parts, tables, strict=True)
        ]
        return self._joined(normed)

    def add(self, y_PTC: Tensor, gates: list[Tensor], norms: list[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
        """Add a branch's output times its gate, and return the norm with these scales and shifts, (P, T, C)."""
        normed = []
        for i, (y, gate, norm) in enumerate(zip(self._parts(y_PTC), gates, norms, strict=True)):
            self.parts[i], part = gated_residual_adaln(
                self.parts[i], y, gate, *norm, self.row_M, dtype=dtype, backend=self.kernels
            )
            normed.append(part)
        return self._joined(normed)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(self.shape)


class Attention(nn.Module):
    def __init__(self, c: RARConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.qkv, self.proj = nn.Linear(c.width, 3 * c.width), nn.Linear(c.width, c.width)
        self.q_norm, self.k_norm = (nn.LayerNorm(c.head_width, NORM_EPS) for _ in range(2))
        self.drop = Dropout()

    def forward(self, x_PTC: Tensor, layer: int, kv_cache: KVCache | None, dtype: torch.dtype, kernels: str) -> Tensor:
        """The branch's output, (P, T, C); queries, keys and values are in `dtype`."""
        q, k, v = linear(self.qkv, x_PTC).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = (
            head_layer_norm(x, norm.weight, norm.bias, eps=NORM_EPS, dtype=dtype, backend=kernels)
            for x, norm in ((q, self.q_norm), (k, self.k_norm))
        )
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.to(dtype).transpose(1, 2)
        if kv_cache is not None:
            k, v = kv_cache.append(layer, k, v)
        scale = q.shape[-1] ** -0.5
        if self.drop.drops:  # of the weights of attention too
            out = attention(q, k, v, self.drop, is_causal=True, scale=scale)
        else:
            out = causal_attention(q, k, v, scale=scale, backend=kernels)
        return self.drop(linear(self.proj, out.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    def __init__(self, c: RARConfig) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c.width, c.hidden), nn.Linear(c.hidden, c.width)
        self.drop = Dropout()

    def forward(self, x: Tensor) -> Tensor:
        """The branch's output, in the shape of x."""
        return self.drop(linear(self.fc2, self.drop(linear_gelu(self.fc1, x, approximate="none"))))


def _ada_ln(width: int, vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, vectors * width))


class Block(nn.Module):
    """The weights of two branches, of the norms before them and of their modulation."""

    def __init__(self, c: RARConfig) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(c), FeedForward(c)
        self.norm1, self.norm2 = (nn.LayerNorm(c.width, NORM_EPS) for _ in range(2))
        self.adaLN_modulation = _ada_ln(c.width, 6)

    def modulation(self, activated_RC: Tensor) -> Tensor:
        """The block's table, (R, 3, 2, C) float32, with the norms' gains and biases; for SiLU of the conditions."""
        six = linear(self.adaLN_modulation[1], activated_RC).float().unflatten(-1, (2, 3, -1))
        shift, scale, gate = six.unbind(2)  # (R, 2, C) each
        gain_2C = torch.stack([self.norm1.weight, self.norm2.weight])
        bias_2C = torch.stack([self.norm1.bias, self.norm2.bias])
        shift, scale = torch.addcmul(shift + bias_2C, bias_2C, scale), torch.addcmul(gain_2C - 1, gain_2C, scale)
        return torch.stack([shift, scale, gate], dim=1)


class HeadNorm(nn.Module):
    """The weights of the modulation before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.adaLN_modulation = _ada_ln(width, 2)

    def modulation(self, activated_RC: Tensor) -> Tensor:
        """Shift and scale, (R, 2, C) float32. The linear gives them in the other order, unlike those of the blocks."""
        return linear(self.adaLN_modulation[1], activated_RC).float().unflatten(-1, (2, -1)).flip(1)


class RAR(nn.Module):
    """The transformer. Class id `num_classes` is the unconditional class."""

    def __init__(self, config: RARConfig) -> None:
        super().__init__()
        self.config = c = config
        self.precision, self.kernels = FP32, "torch"
        positions, steps = c.ends[-1] + SPARE_POSITIONS, c.ends[-1] + SPARE_STEPS
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, c.width))
        self.target_aware_pos_embed = nn.Parameter(torch.zeros(1, positions, c.width))
        self.timesteps_embeddings = nn.Parameter(torch.zeros(1, steps, c.width))
        self.embeddings = nn.Embedding(c.first_class + c.num_classes + 1, c.width)  # of tokens, then of classes
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.adaln_before_head = HeadNorm(c.width)
        self.lm_head = nn.Linear(c.width, c.vocab_size)

    @classmethod
    def from_state_dict(cls, config: RARConfig, tensors: Mapping[str, Tensor], *, source: str) -> RAR:
        """A RAR of this shape with these tensors.

        Raises: CheckpointError naming `source` and the first few offending keys.
        """
        return build(lambda: cls(config), tensors, source=source, expected=TITLE)

    @property
    def layers(self) -> list[Block]:
        """The blocks, typed."""
        return cast("list[Block]", list(self.blocks))

    @property
    def modulation_linears(self) -> list[nn.Linear]:
        """The linears that turn a condition into the modulation of each block, and of the head's norm."""
        of_blocks = [block.adaLN_modulation for block in self.layers]
        return [cast("nn.Linear", each[1]) for each in (*of_blocks, self.adaln_before_head.adaLN_modulation)]

    def set_precision(self, precision: Precision) -> RAR:
        """Run the linears of attention and MLP in this precision; norms and residual stream stay float32.

        The linears of the modulation run as the activations do, and so does the head on a GPU; on a CPU it stays
        float32.

        Raises: UsageError for widths that the precision does not support.
        """
        self.precision = precision
        unquantized = replace(precision, product=precision.activations)
        for block in self.layers:
            convert_linears(block, ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"), precision)
            convert_linears(block, ("adaLN_modulation.1",), unquantized)
        convert_linears(self.adaln_before_head, ("adaLN_modulation.1",), unquantized)
        if self.lm_head.weight.is_cuda:
            self.lm_head.to(precision.activations)
        return self

    def set_kernels(self, kernels: str) -> RAR:
        """Set the implementation of the operations. Raises: as `use_kernels`."""
        self.kernels = kernels
        use_kernels(self, kernels, head_width=self.config.head_width)
        return self

    def embed_prefix(self, class_id_P: Tensor, first_P: Tensor) -> Tensor:
        """Inputs of positions 0 and 1, (P, 2, C); `first_P` is where the token that is scored first lies."""
        start = self.cls_token[0] + self.pos_embed[0, :1]
        of_class = self.embeddings(self.config.first_class + class_id_P) + self.pos_embed[0, 1]
        of_class = of_class + self.target_aware_pos_embed[0, PREFIX + first_P]
        return torch.stack([start.expand_as(of_class), of_class], dim=1)

    def embed_tokens(self, tokens_BT: Tensor, place_BT: Tensor, next_BT: Tensor) -> Tensor:
        """Inputs of the positions of these tokens, (B, T, C).

        Args:
            place_BT: where they lie. next_BT: where the tokens lie that are scored after each of them.
        """
        here, ahead = self.pos_embed[0, PREFIX + place_BT], self.target_aware_pos_embed[0, PREFIX + next_BT]
        embedded: Tensor = self.embeddings(tokens_BT)
        return embedded + here + ahead

    def activated(self, class_id_N: Tensor, place_T: Tensor) -> Tensor:
        """SiLU of the condition vectors of positions, counted along the order, under each class, (N, T, C)."""
        of_class = self.embeddings(self.config.first_class + class_id_N)[:, None]
        return F.silu(of_class + self.timesteps_embeddings[0, place_T])

    def modulation(self, class_id_P: Tensor, positions: int) -> Modulation:
        """The modulation of the first `positions` positions, computed for each different class when asked for."""
        class_id_N, row_P = class_id_P.unique(return_inverse=True)
        place_T = torch.arange(positions, device=class_id_P.device)
        activated_RC = self.activated(class_id_N, place_T).flatten(0, 1)
        return Modulation(
            lambda layer: [self.layers[layer].modulation(activated_RC)],
            lambda: [self.adaln_before_head.modulation(activated_RC)],
            (row_P[:, None] * positions + place_T).flatten(),
        )

    def hidden(
        self,
        x_PTC: Tensor,
        modulation: Modulation,
        kv_cache: KVCache | None = None,
        *,
        kernels: str | None = None,
    ) -> Tensor:
        """Last hidden states after the head's norm, (P, T, C), in the head's dtype.

        Args:
            x_PTC: inputs of a run of positions, float32.
            modulation: of these positions.
            kv_cache: keys and values of the positions before; stores those of the new ones (KVCache.limit). None if
                these are the first positions and nothing is to be stored.
            kernels: None for the model's own. With gradients it must be "torch".
        """
        stream = Streams(x_PTC, modulation, kernels or self.kernels)
        dtype, tables = self.precision.activations, modulation.block(0)
        normed = stream.norm(tables, 0, dtype)
        for layer, block in enumerate(self.layers):
            y = block.attn(normed, layer, kv_cache, self.precision.attention, stream.kernels)
            norms = [(t[:, 1, 1], t[:, 0, 1]) for t in tables]
            normed = stream.add(y, [t[:, 2, 0] for t in tables], norms, dtype)
            y, gates = block.mlp(normed), [t[:, 2, 1] for t in tables]
            if layer + 1 < len(self.layers):
                tables = modulation.block(layer + 1)
                norms = [(t[:, 1, 0], t[:, 0, 0]) for t in tables]
            else:
                dtype = self.lm_head.weight.dtype
                norms = [(t[:, 1], t[:, 0]) for t in modulation.head()]
            normed = stream.add(y, gates, norms, dtype)
        return normed
