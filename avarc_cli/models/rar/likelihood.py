"""RAR behind the LikelihoodModel interface: the segments are runs of g tokens along an order.

Shapes: B token sequences, P pairs, L tokens, T tokens of the segments at hand, C width, g side of the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from avarc_cli.layers.class_rows import FirstRow, with_mean_rows
from avarc_cli.layers.joined import join_states
from avarc_cli.layers.kv_cache import KVCache, Workspace
from avarc_cli.layers.linears import log_prob_backend
from avarc_cli.layers.low_rank import finished
from avarc_cli.layers.precision import Precision, check_gradients, inference
from avarc_cli.layers.stored import plain_state, stored_bytes
from avarc_cli.layers.weight_decay import ONE_D_TOKENIZER, decays_unless_named
from avarc_cli.models.rar.config import RARConfig
from avarc_cli.models.rar.modulation import ModulationCache, SegmentModulation
from avarc_cli.models.rar.network import RAR
from avarc_cli.models.rar.sampling import Schedule, sample
from avarc_cli.objective import Draw, Objective
from avarc_cli.trainable import AutoregressiveModel
from avarc_kernels import linear_log_prob

TABLE = "embeddings.weight"  # of tokens, then of classes


@dataclass
class RARState:
    """Scoring up to some segment."""

    tokens_BL: Tensor
    """int64, in the order of scoring."""
    order_BL: Tensor
    """int64: where each of them lies."""
    class_id_P: Tensor
    """int64, on the host."""
    sequence_P: Tensor
    """Row of each pair in tokens_BL and order_BL."""
    kv_cache: KVCache
    """Of each pair."""
    segment: int = 0
    """Segments scored so far."""


class RARLikelihood(AutoregressiveModel):
    """log p(tokens of a segment | segments before, class), for any run of segments of any order."""

    family = "rar"
    uses_library = True
    trained_with = frozenset({"smoothing", "dropout"})
    any_order = True
    joins = True

    def __init__(self, network: RAR, workspace: Workspace | None = None, tables: ModulationCache | None = None) -> None:
        self.network = self.rar = network
        self.config: RARConfig = network.config
        self.workspace = workspace or Workspace()  # may be shared with models that never score at the same time
        self.tables = tables or ModulationCache()  # may be shared with any model of this shape
        self.modulation = SegmentModulation(network, self.tables)
        self.segment_ends = network.config.ends
        self.num_classes = network.config.num_classes
        self.unconditional: int | None = network.config.num_classes
        self.flops_per_token = network.config.flops // network.config.ends[-1]
        self.schedule = Schedule.of_width(network.config.width)
        self.default_guidance, self.sampler = self.schedule.guidance, self.schedule.settings
        self._keeps_modulation = True
        self._prepared: frozenset[int] = frozenset()

    def prepare(self, class_id_N: npt.NDArray[np.int64]) -> None:
        """Decide whether modulation is kept: where that of all classes fits, of which parts may follow.

        A cascade prepares fp32 for all candidates, and scores others of them for every image.
        """
        classes = frozenset(class_id_N.tolist())
        if not classes <= self._prepared:
            self._keeps_modulation, self._prepared = self.modulation.fits(len(classes)), classes

    @property
    def precision(self) -> Precision:
        """What the blocks compute in."""
        return self.rar.precision

    @inference
    def begin(
        self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None
    ) -> RARState:
        tokens_BL, order_BL = self._ordered(tokens_BL, order_BL)
        return RARState(
            tokens_BL=tokens_BL,
            order_BL=order_BL,
            class_id_P=class_id_P.cpu(),
            sequence_P=sequence_P.to(tokens_BL.device),
            kv_cache=KVCache(self.config.depth, self.workspace),
        )

    @inference
    def extend(self, state: RARState, stop: int, *, keep_cache_segments: int) -> Tensor:
        start, end, cached = self._position(state.segment), self._position(stop), state.kv_cache.length
        if end <= start or cached < start:
            raise ValueError(f"cannot extend from segment {state.segment} to {stop}: {cached} positions are cached")
        state.kv_cache.limit = self._position(keep_cache_segments)
        modulation = self.modulation.of(state.class_id_P.tolist(), start, end, keep=self._keeps_modulation)
        hidden_PTC = self.rar.hidden(self._inputs(state, start, end), modulation, state.kv_cache)
        hidden_PTC = hidden_PTC[:, 1:] if start == 0 else hidden_PTC  # nothing is scored at position 0
        target_PT = state.tokens_BL[state.sequence_P, max(start - 1, 0) : end - 1]
        state.segment = stop
        rows, head = hidden_PTC.flatten(0, 1), self.rar.lm_head
        backend = log_prob_backend(self.rar.kernels, rows)
        log_prob = linear_log_prob(rows, head.weight, head.bias, target_PT.flatten(), backend=backend)
        return log_prob.view_as(target_PT)

    def _inputs(self, state: RARState, start: int, end: int) -> Tensor:
        """Inputs of these positions: those of tokens are computed once for every sequence."""
        first = max(start - 2, 0)
        tokens_BT, order_BL = state.tokens_BL[:, first : end - 2], state.order_BL
        x = self.rar.embed_tokens(tokens_BT, order_BL[:, first : end - 2], order_BL[:, first + 1 : end - 1])
        x = x[state.sequence_P]
        if start:
            return x
        class_id_P = state.class_id_P.to(x.device)
        return torch.cat([self.rar.embed_prefix(class_id_P, order_BL[state.sequence_P, 0]), x], dim=1)

    @inference
    def select(self, state: RARState, keep_Q: Tensor) -> RARState:
        keep = keep_Q.to(state.sequence_P.device)
        return replace(
            state,
            class_id_P=state.class_id_P[keep_Q.cpu()],
            sequence_P=state.sequence_P[keep],
            kv_cache=state.kv_cache.select(keep),
        )

    @inference
    def join(self, states: Sequence[RARState]) -> RARState:
        return join_states(states)

    @inference
    def fork(
        self,
        state: RARState,
        keep_Q: Tensor,
        tokens_BL: Tensor,
        sequence_Q: Tensor,
        stop: int,
        order_BL: Tensor | None = None,
    ) -> RARState:
        tokens_BL, order_BL = self._ordered(tokens_BL, order_BL)
        return RARState(
            tokens_BL=tokens_BL,
            order_BL=order_BL,
            class_id_P=state.class_id_P[keep_Q.cpu()],
            sequence_P=sequence_Q.to(tokens_BL.device),
            kv_cache=state.kv_cache.select(keep_Q.to(tokens_BL.device), self._position(stop)),
            segment=stop,
        )

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
        return sample(self.rar, self.modulation, class_id_B, self.schedule, generators, guidance, top_k, top_p)

    def with_network(self, network: nn.Module) -> RARLikelihood:
        return RARLikelihood(cast("RAR", network), self.workspace, self.tables)

    def token_logits(
        self, tokens_BL: Tensor, class_id_B: Tensor, order_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        rar = self.rar
        check_gradients(rar.precision)
        tokens_BL, order_BL = self._ordered(tokens_BL, order_BL)
        class_id_B = class_id_B.to(tokens_BL.device)
        rest = rar.embed_tokens(tokens_BL[:, :-1], order_BL[:, :-1], order_BL[:, 1:])
        x = torch.cat([rar.embed_prefix(class_id_B, order_BL[:, 0]), rest], dim=1)
        # Our own kernels have no gradients. Torch's run here also without gradients, so that losses are comparable.
        hidden_BTC = rar.hidden(x, rar.modulation(class_id_B, x.shape[1]), kernels="torch")
        return rar.lm_head(hidden_BTC[:, 1:]), tokens_BL

    def decays(self, name: str, parameter: Tensor) -> bool:
        return decays_unless_named(name, parameter, ONE_D_TOKENIZER)

    def draw(self, count: int, objective: Objective, generator: torch.Generator) -> Draw:
        """Orders that are random with the probability `objective.permuted`, else raster."""
        if objective.permuted == 0:
            return Draw()
        length = self.segment_ends[-1]
        random_B1 = torch.rand(count, 1, generator=generator) < objective.permuted
        shuffled_BL = torch.rand(count, length, generator=generator).argsort(dim=1)
        return Draw(torch.where(random_B1, shuffled_BL, torch.arange(length)))

    def class_embedding(self, class_id: int) -> Tensor:
        return self.rar.embeddings.weight[self.config.first_class + class_id]

    def low_rank_targets(self, method: str) -> dict[str, tuple[int, int]]:
        shapes = linear_shapes(self.config)
        return {name: shape for name, shape in shapes.items() if ("adaLN" in name) == (method == "adaln")}

    def one_class_network(self, row_C: nn.Parameter) -> RAR:
        with torch.device("meta"):
            twin = RAR(replace(self.config, num_classes=1))
        tensors, first = self.rar.state_dict(), self.config.first_class
        tensors[TABLE] = torch.cat([tensors[TABLE][: first + 1], tensors[TABLE][-1:]])
        twin.load_state_dict(tensors, assign=True)
        twin.eval().requires_grad_(False)
        parametrize.register_parametrization(twin.embeddings, "weight", FirstRow(row_C, before=first))
        return twin

    def finish_network(self, network: nn.Module) -> RAR:
        return finished(cast("RAR", network), self.rar)

    def with_more_classes(self, count: int) -> RARLikelihood:
        tensors = plain_state(self.rar)
        of_tokens, of_classes = tensors[TABLE].tensor_split([self.config.first_class])
        tensors[TABLE] = torch.cat([of_tokens, with_mean_rows(of_classes, count)])
        grown = RAR(replace(self.config, num_classes=self.num_classes + count)).to(of_tokens.device)
        grown.load_state_dict(tensors)
        return self.with_network(grown)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        return plain_state(self.rar)

    def bytes_per_token(self, *, cached: bool) -> int:
        c = self.config
        if cached:
            return 2 * c.depth * c.width * self.precision.attention.itemsize
        item = self.precision.activations.itemsize
        # Residual stream and its sum, and three copies of the modulation of a block, in float32; normed input, queries,
        # keys and values with their norms, or twice the MLP's hidden vector.
        return (
            (2 + 3 * 6) * c.width * 4 + c.width * item + max(3 * c.width * item + 4 * c.width * 4, 2 * c.hidden * item)
        )

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights, and of the modulation that is kept."""
        return stored_bytes(self.rar) + self.modulation.bytes

    @property
    def group_cache_bytes(self) -> int:
        """As much as the weights in float32: images of a group share the modulation."""
        return 4 * sum(parameter.numel() for parameter in self.rar.parameters())

    def _ordered(self, tokens_BL: Tensor, order_BL: Tensor | None) -> tuple[Tensor, Tensor]:
        """Tokens in the order of scoring, and that order, on the model's device."""
        tokens_BL = tokens_BL.to(self.rar.pos_embed.device)
        if order_BL is None:
            return tokens_BL, torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
        order_BL = order_BL.to(tokens_BL.device)
        return tokens_BL.gather(1, order_BL), order_BL

    def _position(self, segment: int) -> int:
        """Positions of the segments before this one: that of token j, and one before the first."""
        return self.segment_ends[segment - 1] + 1 if segment else 0


def linear_shapes(config: RARConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear that a low-rank method may change: modulation, attention, MLP."""
    width, hidden = config.width, config.hidden
    of_block = {
        "adaLN_modulation.1": (6 * width, width),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    shapes = {"adaln_before_head.adaLN_modulation.1": (2 * width, width)}
    return shapes | {f"blocks.{i}.{name}": shape for i in range(config.depth) for name, shape in of_block.items()}
