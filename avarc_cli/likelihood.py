"""The interfaces that generators and tokenizers offer to scoring and encoding; `loading` makes both from files.

Shapes: B token sequences, L tokens, P pairs of (sequence, class), T tokens of the segments at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from avarc_cli.layout import TokenLayout


class LikelihoodModel(Protocol):
    """A generator as the scoring engine sees it: token log-probabilities, segment by segment.

    A segment's activations depend on the segment and what came before, never on what follows. So scoring can stop
    after any segment, drop pairs, and go on. States belong to the model that made them; the engine only passes them.

    A model may also have `adapter(class_id_N int64) -> (N,) int64`: pairs whose classes have different adapters never
    share a batch. Without it, every class has adapter 0.
    """

    segment_ends: tuple[int, ...]
    """End position of each segment; the last is L."""
    num_classes: int
    """Classes 0 .. num_classes - 1."""
    unconditional: int | None
    """Class id under which the model gives p(x); None when it cannot."""
    flops_per_token: int
    """Floating-point operations to score one token of one pair, on average; for estimates of time."""

    def begin(self, tokens_BL: Tensor, sequence_P: Tensor, class_id_P: Tensor) -> Any:
        """A state with nothing scored: pair i is sequence `sequence_P[i]` under class `class_id_P[i]`."""
        ...

    def extend(self, state: Any, stop: int, *, hold: int) -> Tensor:
        """Score the segments from where the state stands up to (not including) segment `stop`.

        Args:
            hold: of how many segments, from the first, the state holds keys and values afterwards: `stop` when it is
                to be extended again, fewer when only `fork` needs them, 0 when nobody does.
        Returns: log p(token | before, class) in nats, (P, T) float32. The state moves on.
        """
        ...

    def select(self, state: Any, keep_Q: Tensor) -> Any:
        """The state of these pairs only, in this order."""
        ...

    def fork(self, state: Any, keep_Q: Tensor, tokens_BL: Tensor, sequence_Q: Tensor, stop: int) -> Any:
        """A state of these pairs' classes with other sequences that begin with the same `stop` segments.

        Pair i is sequence `sequence_Q[i]` of tokens_BL under the class of pair `keep_Q[i]`. The new state stands at
        segment `stop`, whose keys and values `state` must hold; it is left as it was.
        """
        ...

    def sample(self, class_id_B: Tensor, **how: Any) -> Tensor:
        """Tokens (B, L) int64 drawn from p(x | class). How: guidance, top_k, top_p, generators (one an image)."""
        ...

    def bytes_per_token(self, *, kept: bool) -> int:
        """Estimate of the memory a token of a pair needs while it is scored, or (kept) afterwards as prefix."""
        ...


class Tokenizer(Protocol):
    """An image tokenizer as the encoder sees it. Images are (B, 3, H, H) float32 in [-1, 1]."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def layout(self) -> TokenLayout: ...
    @property
    def patch_nums(self) -> tuple[int, ...]: ...
    @property
    def image_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
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
        """Values that its checkpoint does not state: name -> how they were inferred. Token caches record them.

        Optional; a tokenizer without it inferred nothing.
        """
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Latents before quantisation, (B, Z, h, h)."""
        ...

    def quantize(self, latents: Tensor) -> Tensor:
        """Tokens (B, L), int64."""
        ...

    def decode(self, tokens_BL: Tensor) -> Tensor:
        """The images that tokens (B, L) int64 stand for, (B, 3, H, H) float32 in [-1, 1]."""
        ...
