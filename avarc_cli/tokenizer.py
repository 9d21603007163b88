"""The interfaces between encoding and training on one side, and tokenizers on the other.

Code above this module never imports a network. What builds one from a checkpoint is in `family`.
Shapes: B images, H side of an image, L tokens, Z channels of latents or of continuous tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from avarc_cli.errors import UsageError
from avarc_cli.layout import TokenLayout


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

    def decode_latents(self, latents: Tensor) -> Tensor:
        """As `reconstruct`, from latents after quantization, (B, Z, h, w), whatever they were made of."""
        raise NotImplementedError(f"a {type(self).__name__} decodes tokens only")

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
