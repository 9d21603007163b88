"""MaskGen's transformer: a stream of tokens and a stream of the caption, which attend to each other (arXiv:2403.03206).

Both streams of a block have their own weights; keys and values are shared, without a mask. The pooled vector of the
caption and the aesthetic score modulate every norm (AdaLN). Attention is bidirectional and mixes the streams, so
nothing can be cached from pass to pass. But what depends on the caption alone is the same in every pass: `Captions`.

Shapes: R captions, P sequences (pairs of image and caption), L tokens, T positions of a caption, D channels of its
features, E of its pooled vector, C width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.gelu import linear_gelu
from avarc_cli.layers.kernels import use_kernels
from avarc_cli.layers.linears import convert_linears, linear
from avarc_cli.layers.precision import FP32, Precision
from avarc_cli.models.masked.attention import attend
from avarc_cli.models.maskgen.config import JointConfig
from avarc_kernels import adaln, gated_residual_adaln

SHIFT, SCALE, GATE, MLP_SHIFT, MLP_SCALE, MLP_GATE = range(6)  # rows of a block's modulation
LAST_SCALE, LAST_SHIFT = range(2)  # of a norm that no gated branch follows
Network = TypeVar("Network", bound="JointTransformer")


class ContextQKV(NamedTuple):
    """Queries, keys and values of captions in one block."""

    q_RTC: Tensor | None
    """None in the last block, which asks nothing for the caption."""
    k_RTC: Tensor
    v_RTC: Tensor

    def of(self, row_P: Tensor) -> ContextQKV:
        """Those of pairs of these captions."""
        q = None if self.q_RTC is None else self.q_RTC[row_P]
        return ContextQKV(q, self.k_RTC[row_P], self.v_RTC[row_P])


class Captions(NamedTuple):
    """Everything that depends on captions alone, in the dtype of activations but for the stream."""

    context_RTC: Tensor
    """The caption's stream before the first block, not rounded."""
    first: ContextQKV
    """In the first block."""
    modulation: tuple[tuple[Tensor, Tensor], ...]
    """Of tokens (R, 6, C) and caption (R, 6, C) in each block; (R, 2, C) of the caption in the last."""
    last_R2C: Tensor
    """Scale and shift of the norm after the last block."""

    def tensors(self) -> list[Tensor]:
        """All of them, with one row for each caption."""
        first = [x for x in self.first if x is not None]
        return [self.context_RTC, self.last_R2C, *(x for pair in self.modulation for x in pair), *first]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Captions:
        """The same with these in place of its `tensors`."""
        (context, last), modulation, first = tensors[:2], tensors[2 : 2 + 2 * len(self.modulation)], tensors[-2:]
        q = None if self.first.q_RTC is None else tensors[-3]
        pairs = tuple(zip(modulation[::2], modulation[1::2], strict=True))
        return Captions(context, ContextQKV(q, *first), pairs, last)


@dataclass(frozen=True)
class Pass:
    """What a block needs to know about the forward pass."""

    row_P: Tensor
    """Caption of each pair."""
    precision: Precision
    kernels: str


class AdaLN(nn.Module):
    """The weights of a norm's modulation."""

    def __init__(self, width: int, vectors: int) -> None:
        super().__init__()
        self.vectors = vectors
        self.linear = nn.Linear(width, vectors * width)

    def forward(self, condition_RC: Tensor) -> Tensor:
        """(R, vectors, C)."""
        return linear(self.linear, F.silu(condition_RC)).unflatten(-1, (self.vectors, -1))


class JointAttention(nn.Module):
    def __init__(self, width: int, *, last: bool) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        # Published files have add_q_proj in the last block too, where nothing uses it.
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = None if last else nn.Linear(width, width)


class Projection(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        # The published names count an activation and a dropout, which have no weights.
        self.net = nn.ModuleList([Projection(width, hidden), nn.Identity(), nn.Linear(hidden, width)])

    def forward(self, x: Tensor) -> Tensor:
        """The branch's output, in the shape of x."""
        return linear(self.net[2], linear_gelu(cast("Projection", self.net[0]).proj, x))


class JointBlock(nn.Module):
    """One block. The last leaves the caption's stream as it is, as nothing reads it afterwards."""

    def __init__(self, c: JointConfig, *, last: bool) -> None:
        super().__init__()
        self.heads, self.last = c.heads, last
        self.norm1, self.norm1_context = AdaLN(c.width, 6), AdaLN(c.width, 2 if last else 6)
        self.attn = JointAttention(c.width, last=last)
        self.ff, self.ff_context = FeedForward(c.width, c.hidden), None if last else FeedForward(c.width, c.hidden)

    @property
    def linears(self) -> list[str]:
        """Names of the linears that a pass uses."""
        attention = ["to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0"]
        attention += [] if self.last else ["add_q_proj", "to_add_out"]
        mlps = ["ff"] if self.last else ["ff", "ff_context"]
        return [f"attn.{name}" for name in attention] + [f"{ff}.net.{i}" for ff in mlps for i in ("0.proj", "2")]

    def context_qkv(self, context_PTC: Tensor, modulation: Tensor, run: Pass) -> ContextQKV:
        """Of the caption's stream; modulation: (R, 6, C), or (R, 2, C) in the last block."""
        scale, shift = (LAST_SCALE, LAST_SHIFT) if self.last else (SCALE, SHIFT)
        normed = _norm(context_PTC, modulation, scale, shift, run)
        q = None if self.last else linear(self.attn.add_q_proj, normed)
        return ContextQKV(q, linear(self.attn.add_k_proj, normed), linear(self.attn.add_v_proj, normed))

    def forward(
        self, x_PLC: Tensor, context_PTC: Tensor, of_context: ContextQKV, modulation: tuple[Tensor, Tensor], run: Pass
    ) -> tuple[Tensor, Tensor]:
        """Both streams after the block, float32; of_context: `context_qkv` of the caption's stream."""
        of_tokens, of_caption = modulation
        normed = _norm(x_PLC, of_tokens, SCALE, SHIFT, run)
        q, k, v = (linear(layer, normed) for layer in (self.attn.to_q, self.attn.to_k, self.attn.to_v))
        if of_context.q_RTC is not None:
            q = torch.cat([q, of_context.q_RTC], dim=1)
        k, v = torch.cat([k, of_context.k_RTC], dim=1), torch.cat([v, of_context.v_RTC], dim=1)
        attended = attend(q, k, v, self.heads, run.precision)
        length = x_PLC.shape[1]
        x_PLC = _finish(x_PLC, linear(self.attn.to_out[0], attended[:, :length].contiguous()), self.ff, of_tokens, run)
        if self.attn.to_add_out is None or self.ff_context is None:
            return x_PLC, context_PTC
        y = linear(self.attn.to_add_out, attended[:, length:].contiguous())
        return x_PLC, _finish(context_PTC, y, self.ff_context, of_caption, run)


def _norm(x: Tensor, modulation: Tensor, scale: int, shift: int, run: Pass) -> Tensor:
    """The modulated norm of a stream, in the dtype of activations."""
    dtype = run.precision.activations
    return adaln(x, modulation[:, scale], modulation[:, shift], run.row_P, dtype=dtype, backend=run.kernels)


def _finish(x: Tensor, attended: Tensor, mlp: FeedForward, modulation: Tensor, run: Pass) -> Tensor:
    """A stream after the attention's output has been added to it, and the MLP's."""
    gate, scale, shift = (modulation[:, i] for i in (GATE, MLP_SCALE, MLP_SHIFT))
    dtype = run.precision.activations
    x, normed = gated_residual_adaln(x, attended, gate, scale, shift, run.row_P, dtype=dtype, backend=run.kernels)
    return torch.addcmul(x, modulation[run.row_P, MLP_GATE][:, None].to(x.dtype), mlp(normed).to(x.dtype))


class JointTransformer(nn.Module, ABC):
    """What both kinds of MaskGen share."""

    block_list: ClassVar[str]
    """Name of the list of blocks in published files."""

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.config = config
        self.precision, self.kernels = FP32, "torch"
        last = config.depth - 1
        self.add_module(self.block_list, nn.ModuleList(JointBlock(config, last=i == last) for i in range(config.depth)))

    @property
    @abstractmethod
    def of_sequence(self) -> nn.Linear:
        """Reads the features of a caption's positions."""

    @property
    @abstractmethod
    def of_pooled(self) -> nn.Linear:
        """Reads the pooled vector of a caption and the aesthetic score."""

    @property
    @abstractmethod
    def last_norm(self) -> AdaLN:
        """Modulates the norm after the last block: scale, shift."""

    @staticmethod
    @abstractmethod
    def score_embedding(score_R: Tensor, width: int) -> Tensor:
        """Sinusoids of aesthetic scores, (R, width) float32."""

    @property
    def layers(self) -> list[JointBlock]:
        """The blocks, typed."""
        return cast("list[JointBlock]", list(cast("nn.ModuleList", getattr(self, self.block_list))))

    def unread(self) -> list[nn.Parameter]:
        """The weights that published files have and no pass uses."""
        return list(self.layers[-1].attn.add_q_proj.parameters())

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.of_sequence.weight.device

    def captions(self, sequence_RTD: Tensor, pooled_RE: Tensor, score_R: Tensor) -> Captions:
        """What depends on captions alone, with gradients if the weights have them."""
        context_RTC = linear(self.of_sequence, sequence_RTD)
        scores = [self.score_embedding(score_R, self.config.score_width)] if self.config.score_width else []
        condition_RC = linear(self.of_pooled, torch.cat([pooled_RE, *scores], dim=-1))
        dtype, layers = self.precision.activations, self.layers
        modulation = tuple(
            (block.norm1(condition_RC).to(dtype), block.norm1_context(condition_RC).to(dtype)) for block in layers
        )
        run = Pass(torch.arange(len(pooled_RE), device=pooled_RE.device), self.precision, self.kernels)
        first = layers[0].context_qkv(context_RTC, modulation[0][1], run)
        return Captions(context_RTC, first, modulation, self.last_norm(condition_RC).to(dtype))

    def stream(self, x_PLC: Tensor, captions: Captions, row_P: Tensor) -> Tensor:
        """The tokens' stream after the last norm, (P, L, C) float32.

        Args:
            x_PLC: embedded tokens, float32. row_P: caption of each pair.
        """
        run = Pass(row_P, self.precision, self.kernels)
        context_PTC = captions.context_RTC[row_P].to(x_PLC.dtype)
        for i, (block, modulation) in enumerate(zip(self.layers, captions.modulation, strict=True)):
            of_context = block.context_qkv(context_PTC, modulation[1], run) if i else captions.first.of(row_P)
            x_PLC, context_PTC = block(x_PLC, context_PTC, of_context, modulation, run)
        last = captions.last_R2C
        return adaln(x_PLC, last[:, LAST_SCALE], last[:, LAST_SHIFT], row_P, backend=self.kernels)

    def set_precision(self: Network, precision: Precision) -> Network:
        """Run the linears of attention and MLPs in this precision; norms and residual streams stay float32.

        Raises: UsageError for widths that the precision does not support.
        """
        self.precision = precision
        for block in self.layers:
            convert_linears(block, block.linears, precision)
        return self

    def set_kernels(self: Network, kernels: str) -> Network:
        """Set the implementation of the operations. Raises: as `use_kernels`."""
        self.kernels = kernels
        use_kernels(self, kernels, head_width=None)
        return self
