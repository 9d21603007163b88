"""MaskGIT behind the LikelihoodModel interface: the segments are blocks of an order, each scored in one pass.

log p(x | class) = sum over blocks of log p(tokens of the block | tokens of the blocks before, class), where the tokens
of a block are independent of each other. This is the exact likelihood of the model that draws a block at a time; with
one token a block it is that of an autoregressive model. Shapes: B token sequences, P pairs, L tokens, T tokens of the
segments at hand, C width, V codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from avarc_cli.errors import UsageError
from avarc_cli.layers.class_rows import FirstRow, stored_bytes, with_mean_rows
from avarc_cli.layers.precision import Precision, check_gradients, inference, linear, log_prob_backend
from avarc_cli.likelihood import TrainableModel
from avarc_cli.models.maskgit.config import MaskGITConfig
from avarc_cli.models.maskgit.loss import masked_cross_entropy, random_masks
from avarc_cli.models.maskgit.network import MaskedTransformer
from avarc_cli.models.maskgit.sampling import Schedule, sample
from avarc_cli.words import counted
from avarc_kernels import linear_log_prob

DEFAULT_STEPS = 8  # as many as the published samplers of 32 and 64 tokens take


@dataclass
class MaskGITState:
    """Scoring up to some segment. Nothing is cached: a token that becomes visible changes all activations."""

    tokens_BL: Tensor
    """int64, at their own positions."""
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


class MaskGITLikelihood(TrainableModel):
    """log p(tokens of a block | tokens of the blocks before, class), for any order cut into `steps` blocks."""

    family = "maskgit"
    onednn = True
    any_order = True
    default_orders = 1

    def __init__(self, network: MaskedTransformer, steps: int | None = None, *, unsmooth: float = 0.0) -> None:
        """Score this network.

        Args:
            steps: passes that an order is cut into; None for `DEFAULT_STEPS`, or fewer where there are fewer tokens.
            unsmooth: label smoothing that is undone (`undo_smoothing`).
        """
        self.unsmooth = unsmooth
        self.network = self.transformer = network
        self.config: MaskGITConfig = network.config
        length = self.config.num_tokens
        self.steps = min(DEFAULT_STEPS, length) if steps is None else steps
        if not 1 <= self.steps <= length:
            raise UsageError(
                f"{counted(length, 'token')} cannot be scored in {counted(self.steps, 'step')}",
                "each step scores at least one token",
                f"write --steps 1 to {length}",
            )
        self.segment_ends = tuple((step + 1) * length // self.steps for step in range(self.steps))
        self.num_classes = self.config.num_classes
        self.unconditional: int | None = self.config.num_classes
        head = 2 * self.config.width * self.config.vocab_size
        self.flops_per_token = self.steps * self.config.pass_flops // length + head
        self.schedule = Schedule.of_length(length)
        self.default_guidance = self.schedule.guidance

    @property
    def precision(self) -> Precision:
        """What the blocks compute in."""
        return self.transformer.precision

    def with_steps(self, steps: int, *, unsmooth: float = 0.0) -> MaskGITLikelihood:
        return type(self)(self.transformer, steps, unsmooth=unsmooth)

    def evaluated(self, tokens: int) -> int:
        """All positions, whatever is scored."""
        return self.config.positions

    @inference
    def begin(
        self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None
    ) -> MaskGITState:
        tokens_BL, order_BL, weight_BL = self._placed(tokens_BL, order_BL)
        device = tokens_BL.device
        return MaskGITState(tokens_BL, order_BL, weight_BL, class_id_P.to(device), sequence_P.to(device))

    @inference
    def extend(self, state: MaskGITState, stop: int, *, keep_cache_segments: int) -> Tensor:
        if stop <= state.segment:
            raise ValueError(f"cannot extend from segment {state.segment} to {stop}")
        blocks = [self._score_block(state, segment) for segment in range(state.segment, stop)]
        state.segment = stop
        return torch.cat(blocks, dim=1)

    def _score_block(self, state: MaskGITState, segment: int) -> Tensor:
        """log p of the tokens of one segment, (P, T) float32, in the order of scoring."""
        start, end = (0, *self.segment_ends)[segment : segment + 2]
        asked_BT = state.order_BL[:, start:end]
        ids_BL = self._visible(state.tokens_BL, state.order_BL, start, state.weight_BL)
        hidden_PLC = self.transformer.hidden(state.class_id_P, ids_BL[state.sequence_P])
        asked_PT = asked_BT[state.sequence_P]
        hidden_PTC = hidden_PLC.gather(1, asked_PT[..., None].expand(-1, -1, hidden_PLC.shape[-1]))
        target_PT = state.tokens_BL.gather(1, asked_BT)[state.sequence_P]
        log_prob_PT = self._log_prob(hidden_PTC.flatten(0, 1), target_PT.flatten()).view_as(target_PT)
        return log_prob_PT if state.weight_BL is None else log_prob_PT * state.weight_BL[state.sequence_P, start:end]

    def _visible(self, tokens_BL: Tensor, order_BL: Tensor, start: int, weight_BL: Tensor | None = None) -> Tensor:
        """What the transformer reads: tokens scored before the `start`-th and given ones, or the mask."""
        known_BL = torch.zeros_like(order_BL, dtype=torch.bool)
        known_BL[:, :start] = True
        if weight_BL is not None:
            known_BL |= weight_BL == 0
        return tokens_BL.where(torch.empty_like(known_BL).scatter(1, order_BL, known_BL), self.config.mask)

    def _log_prob(self, rows_NC: Tensor, target_N: Tensor) -> Tensor:
        """log p of a code at each hidden state, (N,) float32."""
        head = self.transformer.head
        rows_NC = rows_NC.to(head.weight.dtype)
        if self.unsmooth:
            return undo_smoothing(linear(head, rows_NC).float(), self.unsmooth).gather(1, target_N[:, None])[:, 0]
        backend = log_prob_backend(self.transformer.kernels, rows_NC)
        return linear_log_prob(rows_NC, head.weight, head.bias, target_N, backend=backend)

    @inference
    def select(self, state: MaskGITState, keep_Q: Tensor) -> MaskGITState:
        keep = keep_Q.to(state.sequence_P.device)
        return replace(state, class_id_P=state.class_id_P[keep], sequence_P=state.sequence_P[keep])

    @inference
    def fork(
        self,
        state: MaskGITState,
        keep_Q: Tensor,
        tokens_BL: Tensor,
        sequence_Q: Tensor,
        stop: int,
        order_BL: Tensor | None = None,
    ) -> MaskGITState:
        tokens_BL, order_BL, weight_BL = self._placed(tokens_BL, order_BL)
        device = tokens_BL.device
        class_id_Q = state.class_id_P[keep_Q.to(device)]
        return MaskGITState(tokens_BL, order_BL, weight_BL, class_id_Q, sequence_Q.to(device), stop)

    @inference
    def sample(
        self,
        class_id_B: Tensor,
        *,
        generators: Sequence[torch.Generator],
        guidance: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
    ) -> Tensor:
        """As `LikelihoodModel.sample`, by the reference's sampler, which is not p(x | class) even without guidance."""
        return sample(self.transformer, class_id_B, self.schedule, generators, guidance, top_k, top_p)

    def with_network(self, network: nn.Module) -> MaskGITLikelihood:
        return type(self)(cast("MaskedTransformer", network), self.steps, unsmooth=self.unsmooth)

    def token_log_prob(self, tokens_BL: Tensor, class_id_B: Tensor, order_BL: Tensor | None = None) -> Tensor:
        """log p(token | tokens of the blocks before, class) in nats, (B, L), with gradients, in the order of scoring.

        Raises: UsageError for a model in 8 bits, whose products have no gradients.
        """
        check_gradients(self.precision)
        tokens_BL, order_BL, _ = self._placed(tokens_BL, order_BL)
        class_id_B = class_id_B.to(tokens_BL.device)
        blocks, start = [], 0
        for end in self.segment_ends:
            asked_BT = order_BL[:, start:end]
            logits_BLV = self.transformer.logits(class_id_B, self._visible(tokens_BL, order_BL, start))
            logits_BTV = logits_BLV.gather(1, asked_BT[..., None].expand(-1, -1, logits_BLV.shape[-1]))
            target_BT = tokens_BL.gather(1, asked_BT)
            blocks.append(-F.cross_entropy(logits_BTV.transpose(1, 2), target_BT, reduction="none"))
            start = end
        return torch.cat(blocks, dim=1)

    def training_loss(self, tokens_BL: Tensor, class_id_B: Tensor, done: float, generator: torch.Generator) -> Tensor:
        hidden_BL = random_masks(len(tokens_BL), tokens_BL.shape[1], generator).to(tokens_BL.device)
        logits_BLV = self.transformer.logits(class_id_B, tokens_BL.masked_fill(hidden_BL, self.config.mask))
        return masked_cross_entropy(logits_BLV, tokens_BL, hidden_BL)

    def class_embedding(self, class_id: int) -> Tensor:
        return self.transformer.words.weight[self.config.first_class + class_id]

    def low_rank_targets(self, method: str) -> dict[str, tuple[int, int]]:
        """The linears of attention and MLP; a class is an input here, and modulates nothing."""
        if method == "adaln":
            return {}
        shapes = {}
        for name, block in self.transformer.blocks():
            for linear_name in self.transformer.linears:
                weight = cast("nn.Linear", block.get_submodule(linear_name)).weight
                shapes[f"{name}.{linear_name}"] = (weight.shape[0], weight.shape[1])
        return shapes

    def one_class_network(self, row_C: nn.Parameter) -> MaskedTransformer:
        with torch.device("meta"):
            twin = type(self.transformer)(replace(self.config, num_classes=1))
        tensors, first, table = self.transformer.state_dict(), self.config.first_class, self.transformer.table
        tensors[table] = torch.cat([tensors[table][: first + 1], tensors[table][-1:]])
        twin.load_state_dict(tensors, assign=True)
        twin.eval().requires_grad_(False)
        parametrize.register_parametrization(twin.words, "weight", FirstRow(row_C, before=first))
        return twin

    def finish_network(self, network: nn.Module) -> MaskedTransformer:
        twin = cast("MaskedTransformer", network)
        twin.precision = self.precision
        if self.precision.quantized:  # from the changed weights
            twin.set_precision(self.precision)
        return twin.set_kernels(self.transformer.kernels)

    def with_more_classes(self, count: int) -> MaskGITLikelihood:
        tensors = {key: value.clone() for key, value in self.transformer.state_dict().items()}
        table = self.transformer.table
        of_tokens, of_classes = tensors[table].tensor_split([self.config.first_class])
        tensors[table] = torch.cat([of_tokens, with_mean_rows(of_classes, count)])
        grown = type(self.transformer)(replace(self.config, num_classes=self.num_classes + count))
        grown.to(of_tokens.device).load_state_dict(tensors)
        return self.with_network(grown)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        return {f"{self.transformer.prefix}{key}": value for key, value in self.transformer.state_dict().items()}

    def checkpoint_metadata(self) -> dict[str, str]:
        """The number of attention heads, which the tensors do not tell."""
        return {"num_attention_heads": str(self.config.heads)}

    def bytes_per_token(self, *, cached: bool) -> int:
        if cached:
            return 0
        c, item = self.config, self.precision.activations.itemsize
        # Residual stream, its sum and the outputs that a UViT keeps for its second half, in float32; normed input,
        # queries, keys and values, or twice the MLP's hidden vector.
        stream = (3 + c.depth // 2) * c.width * 4
        return stream + c.width * item + max(4 * c.width * item, 2 * c.hidden * item)

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights."""
        return stored_bytes(self.transformer)

    def _placed(self, tokens_BL: Tensor, order_BL: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens, their order, and what they count (`MaskGITState.weight_BL`), on the model's device."""
        tokens_BL = tokens_BL.to(self.transformer.head.weight.device)
        if order_BL is None:
            order_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
        order_BL = order_BL.to(tokens_BL.device)
        given_BL = order_BL < 0
        if not given_BL.any():
            return tokens_BL, order_BL, None
        if self.steps != 1:
            raise ValueError(f"tokens are given, which is for one pass, not for {self.steps}")
        scored_B1 = (~given_BL).sum(1, keepdim=True)
        weight_BL = (order_BL.shape[1] / scored_B1).float().expand_as(order_BL).masked_fill(given_BL, 0.0)
        return tokens_BL, order_BL.where(~given_BL, ~order_BL), weight_BL


def undo_smoothing(logits_NV: Tensor, smoothing: float) -> Tensor:
    """log p (N, V) of the distribution whose mixture with the uniform one a network was trained to give.

    At the optimum of a cross-entropy with label smoothing s, the network gives q = (1 - s) p + s / V. So p is
    proportional to q - s / V. Where q is not above it, p is a hundredth of s / V; this floor is a choice.
    """
    uniform = smoothing / logits_NV.shape[1]
    excess_NV = (logits_NV.softmax(-1) - uniform).clamp_min(uniform / 100)
    return excess_NV.log() - excess_NV.sum(-1, keepdim=True).log()


class MaskGITBertLikelihood(MaskGITLikelihood):
    """The same of a MaskGIT whose transformer is a BERT."""

    family = "maskgit-bert"
