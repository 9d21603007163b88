"""VAR with classes that were added later: each has its own row and low-rank changes, on top of one frozen base.

A weight W that an addition changes is read as W + scale B A (LoRA, arXiv:2106.09685). Nothing of the base is copied or
written, and a class that was not added is scored by the base alone.

Shapes: P pairs, N classes, C width, r rank; B token sequences, L tokens, T tokens of the scales at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.models.var.likelihood import VARLikelihood, VARState
from avarc_cli.models.var.network import VAR, VARConfig

METHODS = ("embedding", "adaln", "lora")
ROW = "class_emb"  # key of the row in an addition's file
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # as PEFT names the rest


class LowRank(nn.Module):
    """W (out, in) -> W + scale B A, in the dtype of W; B is (out, r), A is (r, in)."""

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    def forward(self, weight: Tensor) -> Tensor:
        return (weight.float() + self.scale * (self.b @ self.a)).to(weight.dtype)


class _FirstRow(nn.Module):
    """A table of embeddings (2, C) whose first row is the added class; the second is "unconditional"."""

    def __init__(self, row_C: nn.Parameter) -> None:
        super().__init__()
        self.row_C = row_C

    def forward(self, table_2C: Tensor) -> Tensor:
        return torch.stack([self.row_C, table_2C[1]])


class AddedClass(nn.Module):
    """What one added class consists of: the parameters that are trained and stored, and nothing of the base."""

    def __init__(self, row_C: Tensor, factors: Mapping[str, tuple[Tensor, Tensor]], scale: float = 1.0) -> None:
        """row_C: the class embedding. factors: name of an adapted linear -> (A, B)."""
        super().__init__()
        self.row_C = nn.Parameter(row_C)
        self.names, self.scale = tuple(factors), scale
        self.low_rank = nn.ModuleList(LowRank(a, b, scale) for a, b in factors.values())

    @classmethod
    def new(cls, config: VARConfig, start_C: Tensor, method: str, rank: int, generator: torch.Generator) -> AddedClass:
        """An addition that scores exactly as the class whose row it starts from: every B is zero."""
        factors = {}
        for name in adapted_linears(config, method):
            rows, columns = linear_shapes(config)[name]
            a = torch.randn(rank, columns, generator=generator) / columns**0.5
            factors[name] = (a, torch.zeros(rows, rank))
        return cls(start_C.detach().float().clone(), factors).to(start_C.device)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], scale: float, config: VARConfig, source: str) -> AddedClass:
        """The addition that `tensors` gave. Raises CheckpointError when it is none, or not of a model of this shape."""
        names = sorted(key.removeprefix(PREFIX).removesuffix(A) for key in tensors if key.endswith(A))
        factors = {n: (tensors[f"{PREFIX}{n}{A}"], tensors.get(f"{PREFIX}{n}{B}", torch.empty(0))) for n in names}
        shapes = linear_shapes(config)
        wrong = [
            name
            for name, (a, b) in factors.items()
            if name not in shapes or (b.shape[0], a.shape[-1]) != shapes[name] or b.shape[1:] != a.shape[:1]
        ]
        row = tensors.get(ROW)
        if row is None or row.shape != (config.width,) or wrong or len(tensors) != 1 + 2 * len(names):
            why = f"'{wrong[0]}' does not fit" if wrong else f"expected is '{ROW}' ({config.width},) and LoRA pairs"
            raise CheckpointError(f"{source} does not fit this model", why, "remove the class, and add it again")
        return cls(row.float(), {name: (a.float(), b.float()) for name, (a, b) in factors.items()}, scale)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored: the row, and the factors under PEFT's names."""
        stored = {ROW: self.row_C.detach()}
        for name, low_rank in zip(self.names, self._low_rank, strict=True):
            stored |= {f"{PREFIX}{name}{A}": low_rank.a.detach(), f"{PREFIX}{name}{B}": low_rank.b.detach()}
        return stored

    def attach(self, var: VAR) -> VAR:
        """`var` as this class sees it, a VAR of one class: it shares every tensor with `var`, and changes none."""
        with torch.device("meta"):
            twin = VAR(replace(var.config, num_classes=1))
        tensors = var.state_dict()
        tensors["class_emb.weight"] = tensors["class_emb.weight"][[0, -1]]
        twin.load_state_dict(tensors, assign=True)
        twin.eval().requires_grad_(False)
        parametrize.register_parametrization(twin.class_emb, "weight", _FirstRow(self.row_C))
        for name, low_rank in zip(self.names, self._low_rank, strict=True):
            parametrize.register_parametrization(twin.get_submodule(name), "weight", low_rank)
        twin.precision = var.precision
        if var.precision.quantized:  # from the changed weights
            twin.set_precision(var.precision)
        return twin.set_kernels(var.kernels)

    @property
    def _low_rank(self) -> list[LowRank]:
        return cast("list[LowRank]", list(self.low_rank))


def adapted_linears(config: VARConfig, method: str) -> list[str]:
    """Names of the linears that a method changes. Raises UsageError for an unknown method."""
    if method not in METHODS:
        raise UsageError(f"no method '{method}'", f"there are {', '.join(METHODS)}")
    names = [] if method == "embedding" else linear_shapes(config)
    return [name for name in names if ("ada_lin" in name) == (method == "adaln")]


def linear_shapes(config: VARConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear that an addition may change: class modulation, attention, MLP."""
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


@dataclass
class AddedState:
    """A state of the base (adapter 0) or of one added class."""

    adapter: int
    state: VARState


class VARAdded:
    """The base's classes, then the added ones; "unconditional" comes last, so it never collides with an added class.

    Adapter 0 is the base, adapter i the i-th added class: they never share a batch, and so an old class is scored in
    the same batches, to the same bits, whatever was added.
    """

    def __init__(self, base: VARLikelihood, additions: Sequence[AddedClass]) -> None:
        self.base, self.additions = base, tuple(additions)
        twins = (added.attach(base.var) for added in additions)
        self.models = [base, *(VARLikelihood(twin, base.quantizer, base.workspace) for twin in twins)]
        self.segment_ends = base.segment_ends
        self.num_classes = base.num_classes + len(additions)
        self.unconditional: int | None = self.num_classes
        self.flops_per_token = base.flops_per_token

    def adapter(self, class_id_N: np.ndarray) -> np.ndarray:
        """Who scores each class (N,): 0 the base, i the i-th added class."""
        added_N = np.maximum(class_id_N - self.base.num_classes + 1, 0)
        return np.where(class_id_N == self.unconditional, 0, added_N)

    def begin(self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor) -> AddedState:
        adapters = np.unique(self.adapter(class_id_P.cpu().numpy()))
        if len(adapters) != 1:
            raise ValueError(f"pairs of adapters {adapters.tolist()} in one batch")
        adapter = int(adapters[0])
        return AddedState(adapter, self.models[adapter].begin(tokens_BL, sequence_P, self._own(adapter, class_id_P)))

    def extend(self, state: AddedState, stop: int, *, keep_cache_segments: int) -> Tensor:
        return self.models[state.adapter].extend(state.state, stop, keep_cache_segments=keep_cache_segments)

    def select(self, state: AddedState, keep_Q: Tensor) -> AddedState:
        return AddedState(state.adapter, self.models[state.adapter].select(state.state, keep_Q))

    def fork(self, state: AddedState, keep_Q: Tensor, tokens_BL: Tensor, sequence_Q: Tensor, stop: int) -> AddedState:
        model = self.models[state.adapter]
        return AddedState(state.adapter, model.fork(state.state, keep_Q, tokens_BL, sequence_Q, stop))

    def sample(self, class_id_B: Tensor, **how: Any) -> Tensor:
        """Tokens (B, L) drawn from p(x | class), each class by its own model; `models.var_sampling.sample` says how."""
        adapter_B = self.adapter(class_id_B.cpu().numpy())
        tokens_BL = torch.empty(len(class_id_B), self.segment_ends[-1], dtype=torch.int64, device=class_id_B.device)
        for adapter in np.unique(adapter_B).tolist():
            rows = np.flatnonzero(adapter_B == adapter).tolist()
            own = self._own(adapter, class_id_B[rows])
            streams = [how["generators"][i] for i in rows]
            tokens_BL[rows] = self.models[adapter].sample(own, **(how | {"generators": streams}))
        return tokens_BL

    def _own(self, adapter: int, class_id_P: Tensor) -> Tensor:
        """The class ids as the model of that adapter counts them."""
        if adapter:
            return torch.zeros_like(class_id_P)
        return torch.where(class_id_P == self.num_classes, self.base.num_classes, class_id_P)

    @property
    def resident_bytes(self) -> int:
        """Memory of the base's weights; additions share all but their own small tensors."""
        return self.base.resident_bytes

    def bytes_per_token(self, *, cached: bool) -> int:
        return self.base.bytes_per_token(cached=cached)


def add(base: object, additions: Sequence[AddedClass]) -> VARAdded:
    """The model with these classes added, in this order."""
    ours = base_of(base)
    return VARAdded(ours, [added.to(ours.var.pos_1LC.device) for added in additions])


def base_of(model: object) -> VARLikelihood:
    """The model without its additions. Raises UsageError for one of another family."""
    base = model.base if isinstance(model, VARAdded) else model
    if not isinstance(base, VARLikelihood):
        raise UsageError("classes can be added to VARs only", f"this model is a {type(base).__name__}")
    return base
