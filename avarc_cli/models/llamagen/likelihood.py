"""LlamaGen behind the LikelihoodModel interface: the segments are the rows of the grid.

Shapes: B token sequences, P pairs, L tokens, T tokens of the rows at hand, C width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

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
from avarc_cli.likelihood import NetworkModel
from avarc_cli.models.llamagen.config import CLASS_TABLE, LlamaGenConfig
from avarc_cli.models.llamagen.network import Inputs, LlamaGen
from avarc_cli.models.llamagen.sampling import sample
from avarc_cli.trainable import AutoregressiveModel
from avarc_kernels import linear_log_prob


@dataclass
class LlamaGenState:
    """Scoring up to some segment."""

    tokens_BL: Tensor
    """int64, in the order of scoring."""
    order_BL: Tensor | None
    """Position of each; None for the order of the positions."""
    class_id_P: Tensor
    """int64."""
    sequence_P: Tensor
    """Row of each pair in tokens_BL."""
    kv_cache: KVCache
    """Of each pair."""
    scored: int = 0
    """Segments scored so far."""


class RowLikelihood(NetworkModel):
    """log p(tokens of a row | rows before, class), for any run of rows, whatever a class is."""

    uses_library = True
    joins = True
    trained_with = frozenset({"smoothing", "dropout"})

    def __init__(self, network: LlamaGen, workspace: Workspace | None = None) -> None:
        self.network = self.gpt = network
        self.config: LlamaGenConfig = network.config
        self.workspace = workspace or Workspace()  # may be shared with models that never score at the same time
        self.segment_ends = network.config.ends
        self.flops_per_token = network.config.flops // network.config.ends[-1]

    @property
    def precision(self) -> Precision:
        """What the blocks compute in."""
        return self.gpt.precision

    @inference
    def begin(
        self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None
    ) -> LlamaGenState:
        device = self.gpt.table_LJ2.device
        return LlamaGenState(
            tokens_BL=in_order(tokens_BL, order_BL).to(device),
            order_BL=None if order_BL is None else order_BL.to(device),
            class_id_P=class_id_P.to(device),
            sequence_P=sequence_P.to(device),
            kv_cache=KVCache(self.config.depth, self.workspace),
        )

    @inference
    def extend(self, state: LlamaGenState, stop: int, *, keep_cache_segments: int) -> Tensor:
        start, end, cached = self._position(state.scored), self._position(stop), state.kv_cache.length
        if end <= start or cached < start * self.config.inputs_per_token:
            raise ValueError(f"cannot extend from segment {state.scored} to {stop}: {cached} positions are cached")
        state.kv_cache.limit = self._position(keep_cache_segments) * self.config.inputs_per_token
        hidden_PTC = self._hidden(state, start, end)
        state.scored = stop
        return self._log_prob(hidden_PTC, state.tokens_BL[state.sequence_P, start:end])

    @abstractmethod
    def _hidden(self, state: LlamaGenState, start: int, end: int) -> Tensor:
        """The hidden states that score tokens start .. end - 1, (P, T, C); extends the state's KV cache."""

    def _log_prob(self, hidden_PTC: Tensor, target_PT: Tensor) -> Tensor:
        rows, weight = hidden_PTC.flatten(0, 1), self.gpt.output.weight
        backend = log_prob_backend(self.gpt.kernels, rows)
        log_prob = linear_log_prob(rows, weight, None, target_PT.flatten(), backend=backend)
        return log_prob.view_as(target_PT)

    def _token_inputs(
        self, tokens_BL: Tensor, order_BL: Tensor | None, start: int, end: int, *, kernels: str | None = None
    ) -> Inputs:
        """Of all positions that score tokens start .. end - 1, the class's excepted: the same for every class.

        Args:
            tokens_BL: in the order of scoring. order_BL: the position of each, or None.
        """
        assert order_BL is None, "the model has one order"
        first = max(start, 1)
        return self.gpt.token_inputs(tokens_BL[:, first - 1 : end - 1], first, kernels=kernels)

    @inference
    def select(self, state: LlamaGenState, keep_Q: Tensor) -> LlamaGenState:
        keep_Q = keep_Q.to(state.class_id_P.device)
        return replace(
            state,
            class_id_P=state.class_id_P[keep_Q],
            sequence_P=state.sequence_P[keep_Q],
            kv_cache=state.kv_cache.select(keep_Q),
        )

    @inference
    def join(self, states: Sequence[LlamaGenState]) -> LlamaGenState:
        return join_states(states)

    @inference
    def fork(
        self,
        state: LlamaGenState,
        keep_Q: Tensor,
        tokens_BL: Tensor,
        sequence_Q: Tensor,
        stop: int,
        order_BL: Tensor | None = None,
    ) -> LlamaGenState:
        device = state.class_id_P.device
        keep_Q = keep_Q.to(device)
        return LlamaGenState(
            tokens_BL=in_order(tokens_BL, order_BL).to(device),
            order_BL=None if order_BL is None else order_BL.to(device),
            class_id_P=state.class_id_P[keep_Q],
            sequence_P=sequence_Q.to(device),
            kv_cache=state.kv_cache.select(keep_Q, self._position(stop) * self.config.inputs_per_token),
            scored=stop,
        )

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        return plain_state(self.gpt)

    def checkpoint_metadata(self) -> dict[str, str]:
        """Heads and grid, under the reference's names."""
        return {"n_head": str(self.config.heads), "block_size": str(self.segment_ends[-1])}

    def bytes_per_token(self, *, cached: bool) -> int:
        c = self.config
        if cached:
            return (
                self.config.inputs_per_token
                * 2
                * c.depth
                * c.kv_heads
                * c.head_width
                * self.precision.attention.itemsize
            )
        item = self.precision.activations.itemsize
        # Residual stream and its sum in float32; normed input, queries, keys and values, or the three hidden vectors.
        return self.config.inputs_per_token * (3 * c.width * 4 + (2 * c.width + max(3 * c.width, 3 * c.ffn)) * item)

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights."""
        return stored_bytes(self.gpt)

    def _position(self, segment: int) -> int:
        return self.segment_ends[segment - 1] if segment else 0


class LlamaGenLikelihood(RowLikelihood, AutoregressiveModel):
    """A model of classes; class id `num_classes` is the unconditional class."""

    family = "llamagen"
    config: LlamaGenConfig
    network: LlamaGen

    def __init__(self, network: LlamaGen, workspace: Workspace | None = None) -> None:
        super().__init__(network, workspace)
        self.num_classes = network.config.num_classes
        self.unconditional: int | None = network.config.num_classes

    def _hidden(self, state: LlamaGenState, start: int, end: int) -> Tensor:
        inputs = self._token_inputs(state.tokens_BL, state.order_BL, start, end).rows(state.sequence_P)
        if start == 0:
            inputs = inputs.after(self.gpt.class_inputs(state.class_id_P))
        return self.gpt.hidden(inputs, state.kv_cache, returned=self._scoring)

    @property
    def _scoring(self) -> slice:
        """Which of the positions that are evaluated score a token: the last of those for each."""
        return slice(self.config.inputs_per_token - 1, None, self.config.inputs_per_token)

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
        return sample(self.gpt, class_id_B, generators=generators, guidance=guidance, top_k=top_k, top_p=top_p)

    def with_network(self, network: nn.Module) -> LlamaGenLikelihood:
        return type(self)(cast("LlamaGen", network), self.workspace)

    def token_logits(
        self, tokens_BL: Tensor, class_id_B: Tensor, order_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        gpt = self.gpt
        check_gradients(gpt.precision)
        tokens_BL = in_order(tokens_BL, order_BL)
        # Our own kernels have no gradients. Torch's run here also without gradients, so that losses are comparable.
        inputs = self._token_inputs(tokens_BL, order_BL, 0, tokens_BL.shape[1], kernels="torch")
        inputs = inputs.after(gpt.class_inputs(class_id_B, kernels="torch"))
        return gpt.output(gpt.hidden(inputs, kernels="torch", returned=self._scoring)), tokens_BL

    def class_embedding(self, class_id: int) -> Tensor:
        return self.gpt.cls_embedding.embedding_table.weight[class_id]

    def low_rank_targets(self, method: str) -> dict[str, tuple[int, int]]:
        return linear_shapes(self.config) if method == "lora" else {}  # the class modulates nothing

    def one_class_network(self, row_C: nn.Parameter) -> LlamaGen:
        with torch.device("meta"):
            twin = type(self.gpt)(replace(self.config, num_classes=1))
        tensors = self.gpt.state_dict()
        tensors[CLASS_TABLE] = tensors[CLASS_TABLE][[0, -1]]
        twin.load_state_dict(tensors, assign=True)
        twin.table_LJ2 = self.gpt.table_LJ2
        twin.eval().requires_grad_(False)
        parametrize.register_parametrization(twin.cls_embedding.embedding_table, "weight", FirstRow(row_C))
        return twin

    def finish_network(self, network: nn.Module) -> LlamaGen:
        return finished(cast("LlamaGen", network), self.gpt)

    def with_more_classes(self, count: int) -> LlamaGenLikelihood:
        tensors = plain_state(self.gpt)
        table = tensors[CLASS_TABLE] = with_mean_rows(tensors[CLASS_TABLE], count)
        grown = type(self.gpt)(replace(self.config, num_classes=self.num_classes + count)).to(table.device)
        grown.load_state_dict(tensors)
        return self.with_network(grown)


def in_order(tokens_BL: Tensor, order_BL: Tensor | None) -> Tensor:
    """The tokens in the order of scoring."""
    return tokens_BL if order_BL is None else tokens_BL.gather(1, order_BL)


def linear_shapes(config: LlamaGenConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear that a low-rank method may change: attention and feed-forward."""
    width, ffn = config.width, config.ffn
    of_block = {
        "attention.wqkv": ((config.heads + 2 * config.kv_heads) * config.head_width, width),
        "attention.wo": (width, width),
        "feed_forward.w1": (ffn, width),
        "feed_forward.w2": (width, ffn),
        "feed_forward.w3": (ffn, width),
    }
    return {f"layers.{i}.{name}": shape for i in range(config.depth) for name, shape in of_block.items()}
