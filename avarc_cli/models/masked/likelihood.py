"""Models of hidden tokens behind the LikelihoodModel interface: segments are blocks of an order, scored in a pass each.

log p(x | class) = sum over blocks of log p(tokens of the block | tokens of the blocks before, class), where the tokens
of a block are independent of each other. This is the exact likelihood of the model that draws a block at a time; with
one token a block it is that of an autoregressive model. Shapes: B token sequences, P pairs, L tokens, T tokens of the
segments at hand, Z channels of a token, C width, V codes.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from avarc_cli.errors import UsageError
from avarc_cli.layers.linears import log_prob_backend
from avarc_cli.layers.precision import Precision, inference, product_backend
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.words import counted
from avarc_kernels import linear_log_prob
from avarc_kernels.linear import linear as product


@dataclass
class MaskedState:
    """Scoring up to some segment. Nothing is cached: a token that becomes visible changes all activations."""

    tokens_BL: Tensor
    """At their own positions: int64, or (B, L, Z) float32."""
    order_BL: Tensor
    """int64: the position that is scored j-th."""
    weight_BL: Tensor | None
    """What the log-probabilities count, in the order of scoring: 0 of tokens that are given; None for 1 everywhere."""
    class_id_P: Tensor
    """int64."""
    sequence_P: Tensor
    """Row of each pair in tokens_BL and order_BL."""
    segment: int = 0
    """Segments scored so far."""

    def visible(self, start: int) -> Tensor:
        """Which positions a pass sees that scores from the `start`-th token on, (B, L) bool."""
        return visible(self.order_BL, start, self.weight_BL)

    def given_order(self) -> Tensor:
        """The order as `LikelihoodModel.begin` is given it: ~p for a token at p that is given."""
        return self.order_BL if self.weight_BL is None else self.order_BL.where(self.weight_BL != 0, ~self.order_BL)


def visible(order_BL: Tensor, start: int, weight_BL: Tensor | None = None) -> Tensor:
    """Positions of the first `start` tokens of each order, and of those that count 0, (B, L) bool."""
    known_BL = torch.zeros_like(order_BL, dtype=torch.bool)
    known_BL[:, :start] = True
    if weight_BL is not None:
        known_BL |= weight_BL == 0
    return torch.empty_like(known_BL).scatter(1, order_BL, known_BL)


class MaskedLikelihood(LikelihoodModel):
    """Orders cut into `steps` blocks. A subclass scores the tokens of one block."""

    any_order = True
    default_orders = 1
    steps: int

    def cut(self, length: int, steps: int) -> None:
        """Set the segments. Raises: UsageError for more passes than tokens."""
        if not 1 <= steps <= length:
            raise UsageError(
                f"{counted(length, 'token')} cannot be scored in {counted(steps, 'step')}",
                "each step scores at least one token",
                f"write --steps 1 to {length}",
            )
        self.steps = steps
        self.segment_ends = tuple((step + 1) * length // steps for step in range(steps))

    @property
    @abstractmethod
    def precision(self) -> Precision:
        """What the blocks compute in."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Of the weights."""

    @abstractmethod
    def score_block(self, state: MaskedState, start: int, end: int) -> Tensor:
        """log p of the tokens that are scored start-th to before end-th, (P, T) float32, in the order of scoring.

        All of them are hidden, and every position that is not `state.visible(start)`.
        """

    @inference
    def begin(
        self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None
    ) -> MaskedState:
        placed = self.placed(tokens_BL, order_BL)
        return MaskedState(*placed, class_id_P.to(self.device), sequence_P.to(self.device))

    @inference
    def extend(self, state: MaskedState, stop: int, *, keep_cache_segments: int) -> Tensor:
        if stop <= state.segment:
            raise ValueError(f"cannot extend from segment {state.segment} to {stop}")
        ends, blocks = (0, *self.segment_ends), []
        for start, end in zip(ends[state.segment : stop], ends[state.segment + 1 : stop + 1], strict=True):
            block_PT = self.score_block(state, start, end)
            weight_BL = state.weight_BL
            blocks.append(block_PT if weight_BL is None else block_PT * weight_BL[state.sequence_P, start:end])
        state.segment = stop
        return torch.cat(blocks, dim=1)

    @inference
    def select(self, state: MaskedState, keep_Q: Tensor) -> MaskedState:
        keep = keep_Q.to(state.sequence_P.device)
        return replace(state, class_id_P=state.class_id_P[keep], sequence_P=state.sequence_P[keep])

    @inference
    def fork(
        self,
        state: MaskedState,
        keep_Q: Tensor,
        tokens_BL: Tensor,
        sequence_Q: Tensor,
        stop: int,
        order_BL: Tensor | None = None,
    ) -> MaskedState:
        class_id_Q = state.class_id_P[keep_Q.to(self.device)]
        return MaskedState(*self.placed(tokens_BL, order_BL), class_id_Q, sequence_Q.to(self.device), stop)

    def placed(self, tokens_BL: Tensor, order_BL: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, their order, and what they count (`MaskedState.weight_BL`), on the model's device."""
        tokens_BL = tokens_BL.to(self.device)
        if order_BL is None:
            order_BL = torch.arange(tokens_BL.shape[1], device=self.device).expand(tokens_BL.shape[:2])
        order_BL = order_BL.to(self.device)
        given_BL = order_BL < 0
        if not given_BL.any():
            return tokens_BL, order_BL, None
        if self.steps != 1:
            raise ValueError(f"tokens are given, which is for one pass, not for {self.steps}")
        scored_B1 = (~given_BL).sum(1, keepdim=True)
        weight_BL = (order_BL.shape[1] / scored_B1).float().expand_as(order_BL).masked_fill(given_BL, 0.0)
        return tokens_BL, order_BL.where(~given_BL, ~order_BL), weight_BL

    def bytes_per_token(self, *, cached: bool) -> int:
        return 0 if cached else self.pass_bytes_per_position

    @property
    @abstractmethod
    def pass_bytes_per_position(self) -> int:
        """Estimated memory for one position of one pair during a pass."""


class MaskedCodes(MaskedLikelihood):
    """Tokens are codes, and a linear head gives their distribution at each position."""

    unsmooth: float
    """Label smoothing that is undone (`undo_smoothing`); 0 for none."""
    mask: int
    """The id that stands for a hidden token."""

    @property
    @abstractmethod
    def kernels(self) -> str:
        """The implementation of the operations."""

    @abstractmethod
    def hidden(self, class_id_P: Tensor, ids_PL: Tensor) -> Tensor:
        """Last hidden states of the tokens' positions, (P, L, C); ids_PL: tokens, or the mask."""

    @property
    @abstractmethod
    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight (V, C) and bias (V,) of the head."""

    @property
    def device(self) -> torch.device:
        return self.head[0].device

    def score_block(self, state: MaskedState, start: int, end: int) -> Tensor:
        asked_BT = state.order_BL[:, start:end]
        ids_BL = state.tokens_BL.where(state.visible(start), self.mask)
        hidden_PLC = self.hidden(state.class_id_P, ids_BL[state.sequence_P])
        asked_PT = asked_BT[state.sequence_P]
        hidden_PTC = hidden_PLC.gather(1, asked_PT[..., None].expand(-1, -1, hidden_PLC.shape[-1]))
        target_PT = state.tokens_BL.gather(1, asked_BT)[state.sequence_P]
        return self._log_prob(hidden_PTC.flatten(0, 1), target_PT.flatten()).view_as(target_PT)

    def _log_prob(self, rows_NC: Tensor, target_N: Tensor) -> Tensor:
        """log p of a code at each hidden state, (N,) float32."""
        weight_VC, bias_V = self.head
        rows_NC = rows_NC.to(weight_VC.dtype)
        if not self.unsmooth:
            backend = log_prob_backend(self.kernels, rows_NC)
            return linear_log_prob(rows_NC, weight_VC, bias_V, target_N, backend=backend)
        logits_NV = product(rows_NC, weight_VC, bias_V, backend=product_backend(rows_NC)).float()
        return undo_smoothing(logits_NV, self.unsmooth).gather(1, target_N[:, None])[:, 0]


def undo_smoothing(logits_NV: Tensor, smoothing: float) -> Tensor:
    """log p (N, V) of the distribution whose mixture with the uniform one a network was trained to give.

    At the optimum of a cross-entropy with label smoothing s, the network gives q = (1 - s) p + s / V. So p is
    proportional to q - s / V. Where q is not above it, p is a hundredth of s / V; this floor is a choice.
    """
    uniform = smoothing / logits_NV.shape[1]
    excess_NV = (logits_NV.softmax(-1) - uniform).clamp_min(uniform / 100)
    return excess_NV.log() - excess_NV.sum(-1, keepdim=True).log()
