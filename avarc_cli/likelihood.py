"""The interfaces between scoring, training and encoding on one side, and model families on the other.

A family of generators is a `GeneratorFamily`, which builds a `LikelihoodModel` from a checkpoint; a family of
tokenizers is a `TokenizerFamily`, which builds a `TokenizerNetwork`. `families` finds them by name or by their tensors.
Code above this module never imports a network.

Shapes: B token sequences, L tokens, P pairs of (sequence, class), T tokens of the segments at hand, N classes,
C channels of a class embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avarc_cli.errors import UsageError
from avarc_cli.layers.config_sources import ConfigSources
from avarc_cli.layers.precision import Precision
from avarc_cli.layout import TokenLayout


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
    onednn: bool = False
    """Whether oneDNN multiplies float32 matrices on CPUs where it is faster than the library that PyTorch uses."""
    default_guidance: float = 1.5
    """Strength of guidance with which `sample` is meant to be used."""

    @abstractmethod
    def begin(self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor, order_BL: Tensor | None = None) -> Any:
        """A state with nothing scored: pair i is sequence `sequence_P[i]` under class `class_id_P[i]`.

        Args:
            tokens_BL: at their own positions, whatever the order.
            order_BL: of each sequence, int64: element j is the position that is scored j-th. None for the order of the
                positions, the only one of a model without `any_order`.
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
        `keep_Q[i]`. The new state stands at
        segment `stop`; `state` must have the keys and values before it, and is left as it was.
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

    @abstractmethod
    def bytes_per_token(self, *, cached: bool) -> int:
        """Estimated memory for one token of one pair while it is scored or, with `cached`, in the KV cache."""

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights and tables that scoring always needs."""
        return 0

    def adapter(self, class_id_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The adapter that each class is scored with, (N,); pairs of different adapters never share a batch."""
        return np.zeros_like(class_id_N)


class TrainableModel(LikelihoodModel):
    """A likelihood model whose weights can be trained, and to which classes can be added."""

    family: ClassVar[str]
    """Name of its family."""
    config: GeneratorConfig
    """Its shape; equal shapes have equal texts."""
    network: nn.Module
    """The weights. Class id `num_classes` is the unconditional class."""

    @abstractmethod
    def with_network(self, network: nn.Module) -> TrainableModel:
        """The same model with another network of this family, such as a copy or one of `one_class_network`."""

    @abstractmethod
    def token_log_prob(self, tokens_BL: Tensor, class_id_B: Tensor, order_BL: Tensor | None = None) -> Tensor:
        """log p(token | before, class) in nats, (B, L), in one pass and with gradients.

        Args:
            order_BL: as for `begin`. The result is in the order of scoring.
        """

    def training_order(self, count: int, done: float, generator: torch.Generator) -> Tensor | None:
        """The orders in which a batch of `count` sequences is trained, (count, L) int64; None for the only one.

        Args:
            done: fraction of the training's steps before this one, in [0, 1). generator: the step's own, on the CPU.
        """
        return None

    @abstractmethod
    def class_embedding(self, class_id: int) -> Tensor:
        """A class's row (C,) in the table of class embeddings."""

    @abstractmethod
    def low_rank_targets(self, method: str) -> dict[str, tuple[int, int]]:
        """Linears of the network that a low-rank method changes: name -> (out, in).

        Args:
            method: "adaln", the linears that turn a class into a modulation; "lora", those of attention and MLP.
        """

    @abstractmethod
    def one_class_network(self, row_C: nn.Parameter) -> nn.Module:
        """A network with the one class 0, whose embedding is `row_C`. It shares every other tensor with this one."""

    @abstractmethod
    def finish_network(self, network: nn.Module) -> nn.Module:
        """Give a network of `one_class_network`, once its linears have changed, this model's precision and kernels."""

    @abstractmethod
    def with_more_classes(self, count: int) -> TrainableModel:
        """A copy with classes added before the unconditional one; each starts as the mean of the old embeddings."""

    @abstractmethod
    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, under the published keys."""

    def checkpoint_metadata(self) -> dict[str, str]:
        """What a checkpoint must state beside the tensors; by default nothing."""
        return {}


class TokenizerNetwork(nn.Module, ABC):
    """A tokenizer's network. Images are (B, 3, H, H) float32 in [-1, 1]."""

    layout: TokenLayout
    """Where the L tokens lie."""
    image_size: int
    """H, pixels."""
    vocab_size: int
    """Tokens are below it."""
    inferred: Mapping[str, str]
    """Values of the configuration that no file states: name -> what was assumed, and why."""
    config: object
    """Its shape, if it can be trained; equal shapes have equal texts."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Latents before quantization, (B, Z, h, w) float32."""

    @abstractmethod
    def tokenize(self, latents: Tensor) -> Tensor:
        """Tokens (B, L), int64."""

    @abstractmethod
    def reconstruct(self, tokens_BL: Tensor) -> Tensor:
        """Images (B, 3, H, H) float32 in [-1, 1]."""

    @abstractmethod
    def checkpoint_metadata(self) -> dict[str, str]:
        """What a checkpoint must state beside the tensors."""

    def speed_up(self) -> None:
        """Prepare for fast inference on a CPU, after which gradients are no longer available; by default nothing."""
        return None


class Tokenizer(Protocol):
    """A loaded tokenizer as the encoder sees it. Images are (B, 3, H, H) float32 in [-1, 1]."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def layout(self) -> TokenLayout: ...
    @property
    def image_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def precision(self) -> str:
        """Of the encoder: "fp32" or "bf16"."""
        ...

    @property
    def preprocess(self) -> str:
        """Default preprocessing mode (data.preprocess)."""
        ...

    @property
    def inferred(self) -> Mapping[str, str]:
        """Values that its checkpoint does not state: name -> how they were inferred. Token caches record them."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Latents before quantization, (B, Z, h, w) float32."""
        ...

    def quantize(self, latents: Tensor) -> Tensor:
        """Tokens (B, L), int64."""
        ...

    def decode(self, tokens_BL: Tensor) -> Tensor:
        """The images that tokens (B, L) int64 stand for, (B, 3, H, H) float32 in [-1, 1]."""
        ...


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


class GeneratorFamily(ABC):
    """Generators of one architecture."""

    name: ClassVar[str]
    """In cards, checkpoint metadata and commands: "var"."""
    title: ClassVar[str]
    """In messages: "VAR transformer"."""
    signature: ClassVar[tuple[str, ...]]
    """Keys of tensors that every checkpoint of the family has. Together no other family has them, except one whose own
    signature contains these and more."""

    @abstractmethod
    def read_config(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> GeneratorConfig:
        """The configuration of a checkpoint.

        Args:
            tensors: under the published keys. stated: what files say beside them, for what tensors cannot tell.
            source: the checkpoint, for messages.
        Raises: CheckpointError when the tensors are none of the family.
        """

    @abstractmethod
    def build(
        self,
        config: Any,
        tensors: Mapping[str, Tensor],
        tokenizer: TokenizerNetwork,
        *,
        precision: Precision,
        kernels: str,
        device: torch.device,
        source: str,
    ) -> LikelihoodModel:
        """The model of a checkpoint, ready to score.

        Args:
            config: from `read_config`. tokenizer: the one that the generator was trained with.
            kernels: "torch" or "triton".
        Raises: CheckpointError when the tensors are incomplete, or tokenizer and generator do not fit.
        """

    def new(self, tokenizer: TokenizerNetwork, num_classes: int, **shape: Any) -> TrainableModel:
        """An initialized model to train, on the tokenizer's device; `shape` is the family's own. Uses torch's seed."""
        raise UsageError(f"a {self.title} cannot be trained here", "training is not implemented for this family")

    def random_workload(self, shape: str, scales: Sequence[int] | None, device: torch.device) -> BenchWorkload:
        """A model of this shape with random weights, beside a plain PyTorch implementation, for `avarc bench`."""
        raise UsageError(f"a {self.title} cannot be benchmarked", "this family has no reference implementation")

    def model_workload(self, model: LikelihoodModel, device: torch.device) -> BenchWorkload:
        """The same with the weights of a loaded model."""
        raise UsageError(f"a {self.title} cannot be benchmarked", "this family has no reference implementation")


class BenchWorkload(Protocol):
    """One image's tokens, and models with the same weights to score them with."""

    segment_ends: tuple[int, ...]
    """End position of each segment; the last is L."""

    num_classes: int
    """Of the models."""

    flops: int
    """Floating-point operations to score one pair, only the necessary ones."""

    tokens_L: Tensor
    """int64."""

    def reference(self, class_id_P: Tensor) -> Tensor:
        """Token log-probabilities by a straightforward float32 implementation in plain PyTorch, (P, L)."""
        ...

    def model(self, precision: str, kernels: str) -> LikelihoodModel:
        """The family's model. Raises: UsageError for a precision that is not available."""
        ...


class TokenizerFamily(ABC):
    """Image tokenizers of one architecture; name, title and signature as of a `GeneratorFamily`."""

    name: ClassVar[str]
    title: ClassVar[str]
    signature: ClassVar[tuple[str, ...]]
    generator: ClassVar[str] = ""
    """Name of the family of generators that a small model of its tokens is made of; "" where none can be trained."""

    @abstractmethod
    def build(self, tensors: Mapping[str, Tensor], stated: ConfigSources, source: str) -> TokenizerNetwork:
        """The network of a checkpoint, in evaluation mode, on the CPU.

        Raises: CheckpointError when the tensors are incomplete, or something that they cannot tell is stated nowhere.
        """

    def new(self, **shape: Any) -> TokenizerNetwork:
        """An initialized network to train, on the CPU; `shape` is the family's own. Uses torch's seed.

        Raises: UsageError for a shape that does not fit together.
        """
        raise UsageError(f"a {self.title} cannot be trained here", "training is not implemented for this family")

    def training_loss(self, network: TokenizerNetwork) -> TokenizerLoss:
        """The loss that trains a network of `new`."""
        raise UsageError(f"a {self.title} cannot be trained here", "training is not implemented for this family")


class TokenizerLoss(Protocol):
    """A training loss; it may keep statistics from step to step."""

    def __call__(
        self, images: Tensor, step: int, steps: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, and numbers to show.

        Args:
            images: (B, 3, H, H) float32 in [-1, 1]. step: from 0, of this many `steps` of the training.
            generator: the step's own, on the CPU.
        """
        ...
