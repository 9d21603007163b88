"""VAR behind the LikelihoodModel interface: the segments are the scales.

Shapes: B token sequences, P pairs, N distinct classes, L tokens, T tokens of the scales at hand, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from avarc_cli.layers.class_rows import FirstRow, with_mean_rows
from avarc_cli.layers.joined import join_states
from avarc_cli.layers.kv_cache import KVCache, Workspace
from avarc_cli.layers.linears import log_prob_backend
from avarc_cli.layers.low_rank import finished
from avarc_cli.layers.precision import Precision, inference
from avarc_cli.layers.stored import plain_state, stored_bytes
from avarc_cli.layers.weight_decay import decays_unless_named
from avarc_cli.likelihood import Known, SamplerSettings
from avarc_cli.models.var.class_table import ClassTable, to_device
from avarc_cli.models.var.config import VARConfig
from avarc_cli.models.var.loss import UNDECAYED, kept_branches, token_logits, training_loss
from avarc_cli.models.var.network import VAR, Condition
from avarc_cli.models.var.sampling import draw_scales, sample
from avarc_cli.objective import Draw, Objective, StepLoss
from avarc_cli.tokenizers.vqvae.network import MultiScaleQuantizer
from avarc_cli.trainable import AutoregressiveModel
from avarc_kernels import linear_log_prob

SUMMARY_SIDE = 8  # cells of a summary along a side, at most; each is the mean of the latents in it


@dataclass
class VARState:
    """Scoring up to some scale: tensors per sequence and per class where possible, per pair only where they differ."""

    tokens_BL: Tensor
    """int64."""
    rest_BLC: Tensor
    """Embedded teacher input of scales 2..K."""
    condition: Condition
    """Class modulation of each pair."""
    class_id_P: Tensor
    """int64."""
    sequence_P: Tensor
    """Row of each pair in tokens_BL and rest_BLC."""
    kv_cache: KVCache
    """Of each pair."""
    scale: int = 0
    """Scales scored so far."""


class VARLikelihood(AutoregressiveModel):
    """log p(tokens of a scale | coarser scales, class), for any run of scales."""

    family = "var"
    has_summary = True
    keeps_tokens = True
    smooths = True
    sampler = SamplerSettings(schedule="linear over the scales, from 0")
    uses_library = True
    joins = True
    trained_with = frozenset({"smoothing", "drop_path", "stage"})
    config: VARConfig

    def __init__(self, var: VAR, quantizer: MultiScaleQuantizer, workspace: Workspace | None = None) -> None:
        self.network = self.var = var
        self.config = var.config
        self.quantizer = quantizer
        self.workspace = workspace or Workspace()  # may be shared with models that never score at the same time
        self.segment_ends = var.config.ends
        self.num_classes = var.config.num_classes
        self.unconditional: int | None = var.config.num_classes
        self.flops_per_token = var.config.flops // var.config.ends[-1]
        self.classes = ClassTable(var)

    @property
    def precision(self) -> Precision:
        """What the blocks compute in."""
        return self.var.precision

    @inference
    def summary(self, tokens_BL: Tensor) -> Tensor:
        *_, latents_BZhh = self.quantizer.accumulate(to_device(tokens_BL, self.var.pos_1LC.device))
        side = min(SUMMARY_SIDE, latents_BZhh.shape[-1])
        return F.adaptive_avg_pool2d(latents_BZhh, side).flatten(1)

    @inference
    def prepare(self, class_id_N: npt.NDArray[np.int64]) -> None:
        self.classes.prepare(torch.from_numpy(class_id_N))

    @inference
    def begin(
        self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None
    ) -> VARState:
        device = self.var.pos_1LC.device
        tokens_BL = to_device(tokens_BL, device)
        return VARState(
            tokens_BL=tokens_BL,
            rest_BLC=self.var.embed_rest(self.quantizer.teacher_input(tokens_BL)),
            condition=self.classes.of(class_id_P),
            class_id_P=to_device(class_id_P, device),
            sequence_P=to_device(sequence_P, device),
            kv_cache=KVCache(self.var.config.depth, self.workspace),
        )

    @inference
    def extend(self, state: VARState, stop: int, *, keep_cache_segments: int) -> Tensor:
        start, first = self._position(state.scale), self.segment_ends[0]
        end, cached = self._position(stop), state.kv_cache.length
        if end <= start or cached < start:
            raise ValueError(f"cannot extend from scale {state.scale} to {stop}: {cached} positions are cached")
        x = state.rest_BLC[:, max(start - first, 0) : end - first][state.sequence_P]
        if start == 0:
            x = torch.cat([self.var.embed_start(state.class_id_P), x], dim=1)
        ends = [self.segment_ends[k] - start for k in range(state.scale, stop)]
        state.kv_cache.limit = self._position(keep_cache_segments)
        hidden_PTC = self.var.hidden(x, state.condition, ends, state.kv_cache)
        state.scale = stop
        target_PT = state.tokens_BL[state.sequence_P, start:end]
        head, rows = self.var.head, hidden_PTC.flatten(0, 1)
        backend = log_prob_backend(self.var.kernels, rows)
        log_prob = linear_log_prob(rows, head.weight, head.bias, target_PT.flatten(), backend=backend)
        return log_prob.view_as(target_PT)

    @inference
    def select(self, state: VARState, keep_Q: Tensor) -> VARState:
        keep_Q = to_device(keep_Q, state.class_id_P.device)
        return replace(
            state,
            class_id_P=state.class_id_P[keep_Q],
            condition=state.condition.select(keep_Q),
            sequence_P=state.sequence_P[keep_Q],
            kv_cache=state.kv_cache.select(keep_Q),
        )

    @inference
    def join(self, states: Sequence[VARState]) -> VARState:
        joined = join_states(states)
        return replace(joined, condition=self.classes.of(joined.class_id_P))

    @inference
    def fork(
        self,
        state: VARState,
        keep_Q: Tensor,
        tokens_BL: Tensor,
        sequence_Q: Tensor,
        stop: int,
        order_BL: Tensor | None = None,
    ) -> VARState:
        device = self.var.pos_1LC.device
        keep_Q, tokens_BL = to_device(keep_Q, device), to_device(tokens_BL, device)
        return VARState(
            tokens_BL=tokens_BL,
            rest_BLC=self.var.embed_rest(self.quantizer.teacher_input(tokens_BL)),
            condition=state.condition.select(keep_Q),
            class_id_P=state.class_id_P[keep_Q],
            sequence_P=to_device(sequence_Q, device),
            kv_cache=state.kv_cache.select(keep_Q, self._position(stop)),
            scale=stop,
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
        known: Known | None = None,
    ) -> Tensor:
        return sample(
            self.var,
            self.quantizer,
            class_id_B,
            generators=generators,
            guidance=guidance,
            top_k=top_k,
            top_p=top_p,
            known=known,
        )

    @inference
    def sample_latents(self, class_id_B: Tensor, *, generators: Sequence[torch.Generator], **options: Any) -> Tensor:
        drawn = draw_scales(self.var, self.quantizer, class_id_B, generators=generators, smooth=True, **options)
        return drawn[1]

    def with_network(self, network: nn.Module) -> VARLikelihood:
        return VARLikelihood(cast("VAR", network), self.quantizer, self.workspace)

    def token_logits(
        self, tokens_BL: Tensor, class_id_B: Tensor, order_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return token_logits(self.var, self.quantizer, tokens_BL, class_id_B), tokens_BL

    def decays(self, name: str, parameter: Tensor) -> bool:
        return decays_unless_named(name, parameter, UNDECAYED)

    def draw(self, count: int, objective: Objective, generator: torch.Generator) -> Draw:
        """The branches that each sequence takes."""
        return Draw(kept_D2B=kept_branches(self.config.depth, count, objective.drop_path, generator))

    def training_loss(self, tokens_BL: Tensor, class_id_B: Tensor, objective: Objective, draw: Draw) -> StepLoss:
        return training_loss(self.var, self.quantizer, tokens_BL, class_id_B, objective, draw)

    def class_embedding(self, class_id: int) -> Tensor:
        return self.var.class_emb.weight[class_id]

    def low_rank_targets(self, method: str) -> dict[str, tuple[int, int]]:
        shapes = linear_shapes(self.var.config)
        return {name: shape for name, shape in shapes.items() if ("ada_lin" in name) == (method == "adaln")}

    def one_class_network(self, row_C: nn.Parameter) -> VAR:
        with torch.device("meta"):
            twin = VAR(replace(self.var.config, num_classes=1))
        tensors = self.var.state_dict()
        tensors["class_emb.weight"] = tensors["class_emb.weight"][[0, -1]]
        twin.load_state_dict(tensors, assign=True)
        twin.eval().requires_grad_(False)
        parametrize.register_parametrization(twin.class_emb, "weight", FirstRow(row_C))
        return twin

    def finish_network(self, network: nn.Module) -> VAR:
        return finished(cast("VAR", network), self.var)

    def with_more_classes(self, count: int) -> VARLikelihood:
        tensors = plain_state(self.var)
        table = tensors["class_emb.weight"] = with_mean_rows(tensors["class_emb.weight"], count)
        grown = VAR(replace(self.var.config, num_classes=self.num_classes + count)).to(table.device)
        grown.load_state_dict(tensors)
        return self.with_network(grown)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        return plain_state(self.var) | {"lvl_1L": self.var.levels()}

    def bytes_per_token(self, *, cached: bool) -> int:
        c = self.var.config
        if cached:
            return 2 * c.depth * c.width * self.precision.attention.itemsize
        item = self.precision.activations.itemsize
        stream, branch = 4 * c.width * 4, (4 + 2 * c.mlp_ratio) * c.width * item  # float32 residual; qkv, MLP in `item`
        return int(stream + branch)

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights and of the table of class modulation, whatever is scored."""
        return stored_bytes(self.var) + self.classes.bytes

    def _position(self, scale: int) -> int:
        return self.segment_ends[scale - 1] if scale else 0


def linear_shapes(config: VARConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear that a low-rank method may change: class modulation, attention, MLP."""
    width, hidden = config.width, round(config.width * config.mlp_ratio)
    of_block = {
        "attn.mat_qkv": (3 * width, width),
        "attn.proj": (width, width),
        "ffn.fc1": (hidden, width),
        "ffn.fc2": (width, hidden),
    }
    shapes = {"head_nm.ada_lin.1": (2 * width, width)}
    if config.shared_aln:
        shapes["shared_ada_lin.1"] = (6 * width, width)
    else:
        of_block["ada_lin.1"] = (6 * width, width)
    return shapes | {f"blocks.{i}.{name}": shape for i in range(config.depth) for name, shape in of_block.items()}
