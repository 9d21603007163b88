"""The interfaces between scoring, training and encoding on one side, and model families on the other.

Generators are `LikelihoodModel`s, tokenizers `TokenizerNetwork`s. What builds them from a checkpoint is in `family`.
Code above this module never imports a network.

Shapes: B token sequences, L tokens, P pairs of (sequence, class), T tokens of the segments at hand, N classes,
C channels of a class embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from avarc_cli.errors import UsageError
from avarc_cli.layers.rows import Rows
from avarc_cli.layout import TokenLayout
from avarc_cli.text.features import CaptionFeatures, TextInput


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

    @abstractmethod
    def bytes_per_token(self, *, cached: bool) -> int:
        """Estimated memory for one token of one pair while it is scored or, with `cached`, in the KV cache."""

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights and tables that scoring always needs."""
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

    @abstractmethod
    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, under the published keys."""

    def checkpoint_metadata(self) -> dict[str, str]:
        """What a checkpoint must state beside the tensors; by default nothing."""
        return {}


class CaptionTrainableModel(NetworkModel):
    """A likelihood model of captions whose weights can be trained."""

    @abstractmethod
    def caption_loss(
        self, tokens_BL: Tensor, features: CaptionFeatures, dropped_B: Tensor, generator: torch.Generator
    ) -> Tensor:
        """What a step of training minimizes, in nats a token, with gradients.

        Args:
            features: of one caption for each image.
            dropped_B: bool, the images that are trained on as unconditional.
            generator: the step's own, on the CPU.
        """


class TrainableModel(NetworkModel):
    """A likelihood model of classes whose weights can be trained, and to which classes can be added.

    In its network, class id `num_classes` is the unconditional class.
    """

    @abstractmethod
    def with_network(self, network: nn.Module) -> TrainableModel:
        """The same model with another network of this family, such as a copy or one of `one_class_network`."""

    @abstractmethod
    def token_log_prob(self, tokens_BL: Tensor, class_id_B: Tensor, order_BL: Tensor | None = None) -> Tensor:
        """log p(token | before, class) in nats, (B, L), in one pass and with gradients.

        Args:
            order_BL: as for `begin`. The result is in the order of scoring.
        """

    def training_loss(
        self,
        tokens_BL: Tensor,
        class_id_B: Tensor,
        done: float,
        generator: torch.Generator,
        rows: Rows | None = None,
    ) -> Tensor:
        """What a step of training minimizes, in nats a token, with gradients: the mean of -log p(token | before).

        The mean over parts of a batch, weighted by their rows, is the loss of the batch.

        Args:
            done, generator: as for `training_order`.
            rows: which of the step's batch these are; None for all.
        """
        rows = rows or Rows.whole(len(tokens_BL))
        orders = self.training_order(rows.of, done, generator)
        order_BL = None if orders is None else rows.take(orders).to(tokens_BL.device)
        return -self.token_log_prob(tokens_BL, class_id_B, order_BL).mean()

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


class TokenizerNetwork(nn.Module, ABC):
    """A tokenizer's network. Images are (B, 3, H, H) float32 in [-1, 1]."""

    layout: TokenLayout
    """Where the L tokens lie."""
    image_size: int
    """H, pixels."""
    vocab_size: int
    """Tokens are below it; 0 where they are continuous."""
    channels: int = 0
    """Z of continuous tokens, which are (B, L, Z) float32 instead of (B, L) int64; 0 for the codes of a codebook."""
    guidance: str | None = None
    """The text features that the decoder needs, such as "clip-vit-l-14-336:guidance"; None where it needs none."""
    inferred: Mapping[str, str]
    """Values of the configuration that no file states: name -> what was assumed, and why."""
    config: object
    """Its shape, if it can be trained; equal shapes have equal texts."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Latents before quantization, (B, Z, h, w) float32."""

    @abstractmethod
    def tokenize(self, latents: Tensor) -> Tensor:
        """Tokens (B, L), int64; of continuous tokens the means of their distributions, (B, L, Z) float32."""

    def draw(self, latents: Tensor, noise_BLZ: Tensor) -> Tensor:
        """Continuous tokens drawn from their distributions, (B, L, Z), given standard normal noise."""
        raise NotImplementedError(f"the tokens of a {type(self).__name__} are codes")

    @abstractmethod
    def reconstruct(self, tokens_BL: Tensor) -> Tensor:
        """Images (B, 3, H, H) float32 in [-1, 1].

        Raises: UsageError for a decoder that needs text features (`guidance`) and was given none.
        """

    def with_guidance(self, features: Tensor) -> TokenizerNetwork:
        """This network with the text features that `reconstruct` and `footprints` use; it shares the weights.

        Args:
            features: (T, D), the same for all images, or (B, T, D) float32, one for each; as `guidance` names them.
        Raises: ValueError for another shape; UsageError for a decoder that reads no text.
        """
        raise UsageError("this tokenizer decodes without a caption", f"it is a {type(self).__name__}")

    @abstractmethod
    def checkpoint_metadata(self) -> dict[str, str]:
        """What a checkpoint must state beside the tensors."""

    def footprints(self, tokens_L: Tensor) -> Tensor | None:
        """Where each token shows in the decoded image, (L, rows, columns) float32, each summing to 1.

        None for tokens that lie on grids. Otherwise it is the change of the decoded pixels, in absolute value and
        summed over cells, when the token's code is replaced by the mean of all codes, a continuous token by 0.
        """
        return None

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
    def channels(self) -> int: ...
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
        """Tokens (B, L), int64; continuous ones without noise, (B, L, Z) float32."""
        ...

    def draw(self, latents: Tensor, noise_BLZ: Tensor) -> Tensor:
        """Continuous tokens drawn from their distributions, (B, L, Z) float32, given standard normal noise."""
        ...

    def decode(self, tokens_BL: Tensor) -> Tensor:
        """The images that tokens (B, L) int64, or (B, L, Z) float32, stand for, (B, 3, H, H) float32 in [-1, 1].

        Raises: UsageError for a decoder that needs a caption.
        """
        ...

    def loader(self) -> Callable[[str], Tokenizer]:
        """Loads this tokenizer in another process, on the device that it is called with. Picklable."""
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
