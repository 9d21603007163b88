"""A model with classes that were added later: each has its own embedding and low-rank changes, on one frozen base.

Nothing of the base is copied or written, and a class that was not added is scored by the base alone.

Shapes: P pairs, N classes, C channels of a class embedding, r rank; B token sequences, L tokens, T tokens of the
segments at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avarc_cli.errors import CheckpointError, UsageError
from avarc_cli.layers import low_rank
from avarc_cli.layers.low_rank import PREFIX, A, B, LowRank
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.settings import METHODS, check_method
from avarc_cli.trainable import TrainableModel

ROW = "class_emb"  # key of the embedding in the file of an added class; the other keys are PEFT's


class AddedClass(nn.Module):
    """What one added class consists of: the parameters that are trained and stored, and nothing of the base."""

    def __init__(self, row_C: Tensor, changes: Mapping[str, LowRank]) -> None:
        """row_C: the class embedding. changes: of the base's linears, by name, all of one scale."""
        super().__init__()
        self.row_C = nn.Parameter(row_C)
        self.names = tuple(changes)
        self.low_rank = nn.ModuleList(changes.values())

    @classmethod
    def new(cls, base: TrainableModel, start: int, method: str, *, rank: int, generator: torch.Generator) -> AddedClass:
        """A class that scores exactly as class `start` of the base: every B is zero.

        Raises: UsageError for an unknown method, and for one that the base has no linears for.
        """
        targets = targets_of(base, method)
        changes = {name: LowRank.new(shape, rank, generator) for name, shape in targets.items()}
        row_C = base.class_embedding(start)
        return cls(row_C.detach().float().clone(), changes).to(row_C.device)

    @classmethod
    def from_tensors(cls, base: TrainableModel, tensors: Mapping[str, Tensor], scale: float, source: str) -> AddedClass:
        """The class that `tensors` gave. Raises CheckpointError when they are none, or do not fit the base."""
        names = sorted(key.removeprefix(PREFIX).removesuffix(A) for key in tensors if key.endswith(A))
        factors = {n: (tensors[f"{PREFIX}{n}{A}"], tensors.get(f"{PREFIX}{n}{B}", torch.empty(0))) for n in names}
        shapes = {name: shape for method in METHODS[1:] for name, shape in base.low_rank_targets(method).items()}
        wrong = [
            name
            for name, (a, b) in factors.items()
            if name not in shapes or (b.shape[0], a.shape[-1]) != shapes[name] or b.shape[1:] != a.shape[:1]
        ]
        row, expected = tensors.get(ROW), base.class_embedding(0)
        if row is None or row.shape != expected.shape or wrong or len(tensors) != 1 + 2 * len(names):
            why = f"'{wrong[0]}' does not fit" if wrong else f"expected '{ROW}' {tuple(expected.shape)} and LoRA pairs"
            raise CheckpointError(f"{source} does not fit this model", why, "remove the class and add it again")
        changes = {name: LowRank(a.float(), b.float(), scale) for name, (a, b) in factors.items()}
        return cls(row.float(), changes).to(expected.device)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored: the embedding, and the factors under PEFT's names."""
        return {ROW: self.row_C.detach()} | low_rank.peft_tensors(self.changes)

    @property
    def changes(self) -> dict[str, LowRank]:
        """The low-rank changes, by the name of the linear."""
        return dict(zip(self.names, cast("list[LowRank]", list(self.low_rank)), strict=True))

    @property
    def scale(self) -> float:
        """Of the low-rank changes: alpha / rank."""
        return next((change.scale for change in self.changes.values()), 1.0)

    def attach(self, base: TrainableModel) -> TrainableModel:
        """A model of this class alone. It shares every tensor with `base` that the class does not change."""
        network = base.one_class_network(self.row_C)
        low_rank.attach(network, self.changes)
        return base.with_network(base.finish_network(network))


def targets_of(base: TrainableModel, method: str) -> dict[str, tuple[int, int]]:
    """Linears of the base that a method changes: name -> (out, in). Raises: as `AddedClass.new`."""
    check_method(method)
    targets = {} if method == "embedding" else base.low_rank_targets(method)
    if method != "embedding" and not targets:
        raise UsageError(
            f"method '{method}' does not apply to the family '{base.family}'",
            "it has no such linears",
            "use --method embedding",
        )
    return targets


@dataclass
class AddedState:
    """A state of one of the models."""

    adapter: int  # 0 is the base, i the i-th added class
    state: Any  # of that model


class AddedClassesModel(LikelihoodModel):
    """The base's classes, then the added ones; the unconditional class comes last and never collides with them.

    Adapter 0 is the base, adapter i the i-th added class. They never share a batch, so an old class is scored in the
    same batches, to the same bits, whatever was added.
    """

    def __init__(self, base: TrainableModel, added: Sequence[AddedClass]) -> None:
        self.base, self.added = base, tuple(added)
        self.models: list[TrainableModel] = [base, *(one.attach(base) for one in added)]
        self.segment_ends = base.segment_ends
        self.num_classes = base.num_classes + len(added)
        self.unconditional = None if base.unconditional is None else self.num_classes
        self.flops_per_token = base.flops_per_token
        self.any_order, self.default_orders = base.any_order, base.default_orders
        self.has_block_parallel = base.has_block_parallel
        self.has_summary = base.has_summary
        self.uses_library, self.joins = base.uses_library, base.joins
        self.default_guidance, self.sampler = base.default_guidance, base.sampler
        self.keeps_tokens, self.smooths = base.keeps_tokens, base.smooths
        self.channels, self.steps = base.channels, base.steps

    def adapter(self, class_id_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        added_N = np.maximum(class_id_N - self.base.num_classes + 1, 0)
        return np.where(class_id_N == self.num_classes, 0, added_N)

    @property
    def group_cache_bytes(self) -> int:
        return self.base.group_cache_bytes

    def prepare(self, class_id_N: npt.NDArray[np.int64]) -> None:
        own_N = class_id_N[self.adapter(class_id_N) == 0]
        self.base.prepare(np.where(own_N == self.num_classes, self.base.num_classes, own_N))

    def begin(
        self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None
    ) -> AddedState:
        adapter, own_P = self._of_one_adapter(class_id_P)
        return AddedState(adapter, self.models[adapter].begin(tokens_BL, sequence_P, own_P, order_BL))

    def extend(self, state: AddedState, stop: int, *, keep_cache_segments: int) -> Tensor:
        return self.models[state.adapter].extend(state.state, stop, keep_cache_segments=keep_cache_segments)

    def select(self, state: AddedState, keep_Q: Tensor) -> AddedState:
        return AddedState(state.adapter, self.models[state.adapter].select(state.state, keep_Q))

    def join(self, states: Sequence[AddedState]) -> AddedState:
        adapter = states[0].adapter
        return AddedState(adapter, self.models[adapter].join([state.state for state in states]))

    def fork(
        self,
        state: AddedState,
        keep_Q: Tensor,
        tokens_BL: Tensor,
        sequence_Q: Tensor,
        stop: int,
        order_BL: Tensor | None = None,
    ) -> AddedState:
        model = self.models[state.adapter]
        return AddedState(state.adapter, model.fork(state.state, keep_Q, tokens_BL, sequence_Q, stop, order_BL))

    def block_parallel(
        self,
        tokens_BL: Tensor,
        sequence_P: Tensor,
        class_id_P: Tensor,
        order_BL: Tensor | None = None,
        *,
        revealed: int,
    ) -> Tensor:
        adapter, own_P = self._of_one_adapter(class_id_P)
        return self.models[adapter].block_parallel(tokens_BL, sequence_P, own_P, order_BL, revealed=revealed)

    def summary(self, tokens_BL: Tensor) -> Tensor:
        return self.base.summary(tokens_BL)

    def sample(self, class_id_B: Tensor, *, generators: Sequence[torch.Generator], **options: Any) -> Tensor:
        return self._drawn(class_id_B, generators, lambda model: partial(model.sample, **options))

    def sample_latents(self, class_id_B: Tensor, *, generators: Sequence[torch.Generator], **options: Any) -> Tensor:
        return self._drawn(class_id_B, generators, lambda model: partial(model.sample_latents, **options))

    def _drawn(
        self,
        class_id_B: Tensor,
        generators: Sequence[torch.Generator],
        draws: Callable[[TrainableModel], Callable[..., Tensor]],
    ) -> Tensor:
        """What each class's own model draws, in the order of the classes."""
        adapter_B = self.adapter(class_id_B.cpu().numpy())
        rows, drawn = list[int](), list[Tensor]()
        for adapter in np.unique(adapter_B).tolist():
            own_rows = np.flatnonzero(adapter_B == adapter).tolist()
            own = self._own_class_ids(adapter, class_id_B[own_rows])
            own_generators = [generators[i] for i in own_rows]
            drawn.append(draws(self.models[adapter])(own, generators=own_generators))
            rows += own_rows
        return torch.cat(drawn)[torch.tensor(rows, device=class_id_B.device).argsort()]

    def _of_one_adapter(self, class_id_P: Tensor) -> tuple[int, Tensor]:
        """The adapter of these classes, and their ids as its model counts them."""
        adapters = np.unique(self.adapter(class_id_P.cpu().numpy()))
        if len(adapters) != 1:
            raise ValueError(f"pairs of adapters {adapters.tolist()} in one batch")
        adapter = int(adapters[0])
        return adapter, self._own_class_ids(adapter, class_id_P)

    def _own_class_ids(self, adapter: int, class_id_P: Tensor) -> Tensor:
        """The class ids as the model of that adapter counts them."""
        if adapter:
            return torch.zeros_like(class_id_P)
        return torch.where(class_id_P == self.num_classes, self.base.num_classes, class_id_P)

    def evaluated(self, tokens: int) -> int:
        return self.base.evaluated(tokens)

    def with_steps(self, steps: int, *, unsmooth: float = 0.0) -> AddedClassesModel:
        return AddedClassesModel(cast("TrainableModel", self.base.with_steps(steps, unsmooth=unsmooth)), self.added)

    @property
    def resident_bytes(self) -> int:
        """Memory of the base, so that batches do not depend on what was added.

        Added classes share all but their own small tensors, and in a quantized precision the weights that they change.
        """
        return self.base.resident_bytes

    def bytes_per_token(self, *, cached: bool) -> int:
        return self.base.bytes_per_token(cached=cached)


def base_of(model: LikelihoodModel) -> TrainableModel:
    """The model without added classes. Raises UsageError for a family that cannot be trained, or of captions."""
    base = model.base if isinstance(model, AddedClassesModel) else model
    if base.text is not None:
        why = "it gives log p(image | caption), and its candidates are captions"
        raise UsageError("classes cannot be added to a model of captions", why, "give it another caption: --captions")
    if not isinstance(base, TrainableModel):
        raise UsageError(
            "this model cannot be trained, nor can classes be added to it", f"it is a {type(base).__name__}"
        )
    return base
