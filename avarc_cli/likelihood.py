"""The interfaces between scoring and training on one side, and generators on the other: `LikelihoodModel` and below.

Those of tokenizers are in `tokenizer`; what builds both from a checkpoint is in `family`. Code above this module never
imports a network.

Shapes: B token sequences, L tokens, P pairs of (sequence, class), T tokens of the segments at hand, N classes,
C channels of a class embedding.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avarc_cli.errors import UsageError
from avarc_cli.layers.weight_decay import decays_unless_named
from avarc_cli.layout import TokenLayout
from avarc_cli.objective import Draw, Objective
from avarc_cli.text.features import CaptionFeatures, TextInput


@dataclass(frozen=True, eq=False)
class Known:
    """Tokens of an image that are kept while the others are drawn."""

    tokens_L: npt.NDArray[np.int64]
    """The image's own."""
    kept_L: npt.NDArray[np.bool_]
    """Which of them are kept."""

    @property
    def digest(self) -> str:
        """sha256 of both."""
        return hashlib.sha256(self.tokens_L.astype("<i8").tobytes() + self.kept_L.tobytes()).hexdigest()

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens (L,) int64, and which are kept, (L,) bool."""
        return torch.from_numpy(self.tokens_L).to(device), torch.from_numpy(self.kept_L).to(device)


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """What `LikelihoodModel.sample` has built in, as presets of published settings state it."""

    schedule: str = "constant"
    """How guidance changes from the first tokens to the last, in words."""
    temperature: float = 1.0
    """Of logits, or of the noise in a masked model's choices at its first step."""
    steps: int | None = None
    """Passes of a sampler that draws several tokens at a time; None for others."""


class LikelihoodModel(ABC):
    """A generator as the scoring engine sees it: token log-probabilities, segment by segment.

    A segment's activations depend on the segment and what came before, never on what follows. So scoring can stop
    after any segment, drop pairs, and go on. States belong to the model that made them; the engine only passes them.
    """

    segment_ends: tuple[int, ...]
    """End position of each segment; the last is L."""
    num_classes: int
    """Classes 0 .. num_classes - 1."""
    unconditional: int | None
    """Class id under which the model gives p(x); None when it cannot."""
    flops_per_token: int
    """Floating-point operations to score one token of one pair, on average; for estimates of time."""
    any_order: bool = False
    """Whether the tokens may be scored in any order. Segments are then runs of positions along the order."""
    default_orders: int = 0
    """Random orders that scores are averaged over unless the user says; 0 for the one raster order."""
    has_block_parallel: bool = False
    """Whether there is a cheap estimate of an order's log-probabilities, `block_parallel`."""
    has_summary: bool = False
    """Whether there is a `summary` of an image's tokens."""
    keeps_tokens: bool = False
    """Whether `sample` takes `known` tokens as well: a `Known`, or None. The others are drawn given these."""
    joins: bool = False
    """Whether there is `join`: the few survivors of several batches are scored faster as one."""
    smooths: bool = False
    """Whether there is `sample_latents`."""
    uses_library: bool = False
    """Whether float32 matrices are multiplied on a CPU by the library that was chosen (`Precision.library`)."""
    default_guidance: float = 1.5
    """Strength of guidance with which `sample` is meant to be used."""
    sampler: SamplerSettings = SamplerSettings()
    """What `sample` has built in; some of it may follow from the network's shape."""
    channels: int = 0
    """Z of the continuous tokens that it reads, (B, L, Z) float32 instead of (B, L); 0 for the codes of a codebook."""
    steps: int | None = None
    """Passes that an order is cut into, each a segment, for a model of hidden tokens; None where segments are fixed."""
    is_bound: bool = False
    """Whether what it gives for log p(token | before, class) is itself an estimate of a lower bound."""
    text: TextInput | None = None
    """What it reads of captions; None for a model of classes. A model of captions has no classes before
    `with_captions`."""

    @abstractmethod
    def begin(self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None) -> Any:
        """A state with nothing scored: pair i is sequence `sequence_P[i]` under class `class_id_P[i]`.

        Args:
            tokens_BL: at their own positions, whatever the order. Continuous tokens are (B, L, Z), here as in every
                other method.
            order_BL: of each sequence, int64: element j is the position that is scored j-th. None for the order of the
                positions, the only one of a model without `any_order`. To a model of hidden tokens in one pass, ~p
                says that the token at p is given: it counts 0, and the sum over the others is scaled to all tokens.
        """

    @abstractmethod
    def extend(self, state: Any, stop: int, *, keep_cache_segments: int) -> Tensor:
        """Score the segments after those that the state has scored, up to (not including) segment `stop`.

        Args:
            keep_cache_segments: segments, from the first, whose keys and values stay in the KV cache: `stop` if the
                state is to be extended again, fewer if only `fork` needs them, 0 if nothing does.
        Returns: log p(token | before, class) in nats, (P, T) float32, in the order of scoring. The state is updated in
            place.
        """

    @abstractmethod
    def select(self, state: Any, keep_Q: Tensor) -> Any:
        """The state of these pairs only, in this order."""

    def join(self, states: Sequence[Any]) -> Any:
        """A state of the pairs of all these, one after the other; only of a model that `joins`.

        Args:
            states: of pairs of one `adapter`, with the same segments scored and cached. The engine does not use them
                again, so that the new state may share their memory.
        """
        raise NotImplementedError(f"{type(self).__name__} does not join states")

    @abstractmethod
    def fork(
        self,
        state: Any,
        keep_Q: Tensor,
        tokens_BL: Tensor,
        sequence_Q: Tensor,
        stop: int,
        order_BL: Tensor | None = None,
    ) -> Any:
        """A state of these pairs' classes with other sequences that begin with the same `stop` segments.

        Pair i is sequence `sequence_Q[i]` of tokens_BL, in the order of that row of order_BL, under the class of pair
        `keep_Q[i]`. The new state stands at segment `stop`; `state` must have the keys and values before it, and is
        left as it was.
        """

    def block_parallel(
        self,
        tokens_BL: Tensor,
        sequence_P: Tensor,
        class_id_P: Tensor,
        order_BL: Tensor | None = None,
        *,
        revealed: int,
    ) -> Tensor:
        """Score an order in one short pass: its first tokens exactly, each of the others as if it came next.

        Args:
            tokens_BL, sequence_P, class_id_P, order_BL: as for `begin`.
            revealed: b, tokens from the first on that the others are conditioned on, in [0, L - 1].
        Returns: (P, L) float32, in the order of scoring and in nats: of token t < b log p(token | t before, class), as
            `extend` gives it, of the others log p(token | the first b, class). The sum of the others times L / (L - b)
            estimates log p of the whole.
        """
        raise NotImplementedError(f"{type(self).__name__} has no block-parallel estimate")

    def summary(self, tokens_BL: Tensor) -> Tensor:
        """What the images of these tokens look like as a whole, (B, D) float32, without any class.

        It takes little time compared with scoring. Images that look alike have summaries that are close.
        """
        raise NotImplementedError(f"{type(self).__name__} has no summary of an image")

    @abstractmethod
    def sample(
        self,
        class_id_B: Tensor,
        *,
        generators: Sequence[torch.Generator],
        guidance: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
    ) -> Tensor:
        """Tokens (B, L) int64 drawn from p(x | class).

        Args:
            generators: one for each image, on the model's device, so that an image does not depend on the others.
            guidance: strength of classifier-free guidance; 0 samples from p(x | class) itself.
            top_k: draw only from this many of the likeliest codes; 0 for all.
            top_p: draw only from the likeliest codes that together hold this probability; 0 for all.
        """

    def sample_latents(
        self,
        class_id_B: Tensor,
        *,
        generators: Sequence[torch.Generator],
        guidance: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
        known: Known | None = None,
    ) -> Tensor:
        """Latents (B, Z, h, h), drawn as by `sample`, but of mixtures of codes: no draws from p(x | class).

        `TokenizerNetwork.decode_latents` reads them.
        """
        raise NotImplementedError(f"{type(self).__name__} draws single codes only")

    @abstractmethod
    def bytes_per_token(self, *, cached: bool) -> int:
        """Estimated memory for one token of one pair while it is scored or, with `cached`, in the KV cache."""

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights and tables that scoring always needs."""
        return 0

    @property
    def group_cache_bytes(self) -> int:
        """Memory that keys and values of a group of images may take where a forward pass takes less; 0: none.

        Of a model that computes much that depends on the class alone. Its pairs are scored class by class, so that
        images of a group share that work.
        """
        return 0

    def evaluated(self, tokens: int) -> int:
        """Positions of one pair that a pass evaluates at once to score this many tokens after those it has scored."""
        return tokens

    def with_steps(self, steps: int, *, unsmooth: float = 0.0) -> LikelihoodModel:
        """The same model with orders cut into this many passes.

        Args:
            unsmooth: label smoothing of the training that is undone, in [0, 1).
        Raises: UsageError where segments are fixed, or for more passes than tokens.
        """
        raise UsageError("--steps cuts an order into passes", "this model scores its tokens in fixed segments")

    def with_captions(self, features: CaptionFeatures, *, aesthetic_score: float | None = None) -> LikelihoodModel:
        """The same model with these captions for classes: class id r is caption r.

        What depends on the captions only is computed here, once. `unconditional` is the empty caption as the model's
        reference defines it; None where that takes features that are not there.

        Args:
            features: that `features.check(self.text, ...)` has accepted.
            aesthetic_score: of the images that the captions describe, for models that are given one; None for their
                default.
        Raises: UsageError for a model of classes, and for a score where the model is given none.
        """
        raise UsageError("captions are for models of captions", "this model was trained on classes")

    def prepare(self, class_id_N: npt.NDArray[np.int64]) -> None:  # noqa: B027 - most models have nothing to prepare
        """Called before pairs of these classes are scored: what depends on a class alone may be computed here, once."""

    def adapter(self, class_id_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The adapter that each class is scored with, (N,); pairs of different adapters never share a batch."""
        return np.zeros_like(class_id_N)


class NetworkModel(LikelihoodModel):
    """A likelihood model that is one network, whose checkpoint can be written."""

    family: ClassVar[str]
    """Name of its family."""
    config: GeneratorConfig
    """Its shape; equal shapes have equal texts."""
    network: nn.Module
    """The weights."""
    trained_with: frozenset[str] = frozenset({"smoothing"})
    """The fields of `Objective` that its training heeds; all models that score in any order heed `permuted`."""

    def decays(self, name: str, parameter: Tensor) -> bool:
        """Whether the published training applies weight decay to a parameter of the network."""
        return decays_unless_named(name, parameter)

    def draw(self, count: int, objective: Objective, generator: torch.Generator) -> Draw:
        """What is random in the loss of a step of `count` sequences.

        Args:
            generator: the step's own, on the CPU.
        """
        return Draw()

    @abstractmethod
    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, under the published keys."""

    def checkpoint_metadata(self) -> dict[str, str]:
        """What a checkpoint must state beside the tensors; by default nothing."""
        return {}


class GeneratorConfig(Protocol):
    """The configuration of a generator, as its family read it."""

    @property
    def layout(self) -> TokenLayout | None:
        """Of the tokens that the generator models; None where neither tensors nor files tell: the tokenizer's."""
        ...

    @property
    def inferred(self) -> Mapping[str, str]:
        """Values that no file states: name -> what was assumed, and why."""
        ...
