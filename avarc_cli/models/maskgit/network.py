"""What MaskGIT's transformers share: p(hidden tokens | visible tokens, class), all hidden ones at once.

Those of the published generators of TiTok's tokens are a `bert.Bert` or, in the largest, a `uvit.UViT`. Position 0 is
the class, position p >= 1 token p - 1 or the mask. Attention is bidirectional, so a token that becomes visible changes
all activations, and nothing can be cached.

Shapes: P sequences (pairs of image and class), L tokens, T = L + 1 positions, C width, H heads, D head width, F hidden
width, V codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from avarc_cli.layers.kernels import use_kernels
from avarc_cli.layers.linears import convert_linears, linear
from avarc_cli.layers.precision import FP32, Precision
from avarc_cli.layers.state_dict import build
from avarc_cli.models.maskgit.config import MaskGITConfig

OLD_BUFFER = "embeddings.position_ids"  # in files of old versions of transformers
Network = TypeVar("Network", bound="MaskedTransformer")


class MaskedTransformer(nn.Module, ABC):
    """What both transformers share. Class id `num_classes` is the unconditional class."""

    linears: ClassVar[tuple[str, ...]]
    """Names of the linears of attention and MLP inside a block."""
    table: ClassVar[str]
    """Key of the embeddings: of tokens, the mask, and the classes."""
    prefix: ClassVar[str] = ""
    """Before every key in published files; reading a checkpoint removes it."""

    def __init__(self, config: MaskGITConfig) -> None:
        super().__init__()
        self.config = config
        self.precision, self.kernels = FP32, "torch"

    @classmethod
    def from_state_dict(
        cls: type[Network], config: MaskGITConfig, tensors: Mapping[str, Tensor], *, source: str
    ) -> Network:
        """A transformer of this shape with these tensors.

        Raises: CheckpointError naming `source` and the first few offending keys.
        """
        tensors = {key: value for key, value in tensors.items() if key != OLD_BUFFER}
        return build(lambda: cls(config), tensors, source=source, expected=config.title)

    @property
    @abstractmethod
    def words(self) -> nn.Embedding:
        """The embeddings of tokens, the mask, and the classes."""

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """From hidden states to logits over V."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """The blocks with the names that their keys begin with."""

    @abstractmethod
    def hidden(self, class_id_P: Tensor, ids_PL: Tensor) -> Tensor:
        """Last hidden states of the tokens' positions, (P, L, C) float32.

        Args:
            ids_PL: tokens, or `config.mask` where they are hidden.
        """

    def ids(self, class_id_P: Tensor, ids_PL: Tensor) -> Tensor:
        """What the transformer reads, (P, T): the class's id, then those of the tokens."""
        return torch.cat([self.config.first_class + class_id_P[:, None], ids_PL], dim=1)

    def logits(self, class_id_P: Tensor, ids_PL: Tensor) -> Tensor:
        """Of every position, (P, L, V) float32; those of visible tokens mean nothing."""
        return linear(self.head, self.hidden(class_id_P, ids_PL)).float()

    def set_precision(self: Network, precision: Precision) -> Network:
        """Run the linears of attention and MLP in this precision; norms and residual stream stay float32.

        The head stays float32 on a CPU; on a GPU it runs as the activations do.
        Raises: UsageError for widths that the precision does not support.
        """
        self.precision = precision
        for _, block in self.blocks():
            convert_linears(block, self.linears, precision)
        if self.head.weight.is_cuda and self.head.weight.dtype != precision.activations:
            self.head.to(precision.activations)
        return self

    def set_kernels(self: Network, kernels: str) -> Network:
        """Set the implementation of the operations. Raises: as `use_kernels`."""
        self.kernels = kernels
        use_kernels(self, kernels, head_width=None)
        return self
