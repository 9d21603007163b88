"""VAR behind the LikelihoodModel interface: the segments are the scales.

Shapes: B token sequences, P pairs, N distinct classes, L tokens, T tokens of the scales at hand, C width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from avarc_cli.errors import CheckpointError
from avarc_cli.layers.kv_cache import KVCache, Workspace
from avarc_cli.layers.precision import Precision, inference
from avarc_cli.models.var.class_table import ClassTable, to_device
from avarc_cli.models.var.config import read_config
from avarc_cli.models.var.network import VAR, Condition
from avarc_cli.models.var.sampling import sample
from avarc_cli.tokenizers.vqvae import VQVAE, MultiScaleQuantizer
from avarc_kernels import linear_log_prob


def build(
    tensors: Mapping[str, Tensor],
    tokenizer: VQVAE,
    *,
    precision: Precision,
    kernels: str = "torch",
    device: torch.device,
    source: str,
) -> VARLikelihood:
    """What `loading.FAMILIES` asks for. Raises CheckpointError when generator and tokenizer do not fit."""
    var = VAR.from_state_dict(tensors, source=source)
    ours, theirs = var.config, tokenizer.config
    if (ours.vocab_size, ours.z_channels) != (theirs.vocab_size, theirs.z_channels):
        raise CheckpointError(
            f"{source} reads the tokens of another tokenizer",
            f"it has {ours.vocab_size} codes of {ours.z_channels} channels, "
            f"the tokenizer {theirs.vocab_size} of {theirs.z_channels}",
            "pass the tokenizer that it was trained with",
        )
    return VARLikelihood(var.to(device).set_precision(precision).set_kernels(kernels), tokenizer.quantize)


def scales(tensors: Mapping[str, Tensor], source: str) -> tuple[int, ...]:
    """p_1..p_K of the tokens that the generator reads. Raises CheckpointError when these tensors are no VAR."""
    return read_config(tensors, source).patch_nums


@dataclass
class VARState:
    """Scoring up to some scale: tensors per sequence and per class where possible, per pair only where they differ."""

    tokens_BL: Tensor
    rest_BLC: Tensor
    """Embedded teacher input of scales 2..K."""
    condition: Condition
    class_id_P: Tensor
    sequence_P: Tensor
    """Row of each pair in tokens_BL and rest_BLC."""
    kv_cache: KVCache
    scale: int = 0
    """Scales scored so far."""


class VARLikelihood:
    """log p(tokens of a scale | coarser scales, class), for any run of scales."""

    def __init__(self, var: VAR, quantizer: MultiScaleQuantizer, workspace: Workspace | None = None) -> None:
        self.var, self.quantizer = var, quantizer
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
    def begin(self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor) -> VARState:
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
        log_prob = linear_log_prob(rows, head.weight, head.bias, target_PT.flatten(), backend=self.var.kernels)
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
    def fork(self, state: VARState, keep_Q: Tensor, tokens_BL: Tensor, sequence_Q: Tensor, stop: int) -> VARState:
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
    def sample(self, class_id_B: Tensor, **how: Any) -> Tensor:
        """Tokens (B, L) drawn from p(x | class); `models.var.sampling.sample` has the options."""
        return sample(self.var, self.quantizer, class_id_B, **how)

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
        tensors = {t.data_ptr(): t.nbytes for t in [*self.var.parameters(), *self.var.buffers()] if not t.is_mkldnn}
        return sum(tensors.values()) + self.classes.bytes

    def _position(self, scale: int) -> int:
        return self.segment_ends[scale - 1] if scale else 0
