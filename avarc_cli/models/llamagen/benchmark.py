"""What `avarc bench` scores: a LlamaGen's weights and one image's tokens, for LlamaGenLikelihood and the reference.

Shapes: P pairs of the image and a class, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from avarc_cli import product_library
from avarc_cli.layers.random_weights import random_weights
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.llamagen import reference, shapes
from avarc_cli.models.llamagen.config import HEAD_WIDTH, LlamaGenConfig, ffn_width
from avarc_cli.models.llamagen.likelihood import LlamaGenLikelihood, RowLikelihood
from avarc_cli.models.llamagen.network import LlamaGen

SIDE = 16  # of the token grid of a 256-pixel image
VOCABULARY = 16384

Workload = TypeVar("Workload", bound="LlamaGenWorkload")


class LlamaGenWorkload:
    """One image with random tokens; every model that it makes has the same weights."""

    network: ClassVar[type[LlamaGen]] = LlamaGen
    likelihood: ClassVar[type[RowLikelihood]] = LlamaGenLikelihood
    config: ClassVar[type[LlamaGenConfig]] = LlamaGenConfig
    condition: ClassVar[Mapping[str, Any]] = {"num_classes": 1000}
    """The fields of the configuration that say what the model is conditioned on."""
    sizes: ClassVar[tuple[str, ...]] = tuple(shapes.SHAPES)
    """Of published sizes."""
    reference_log_probs: ClassVar[Callable[..., Tensor]] = staticmethod(reference.token_log_probs)

    def __init__(self, gpt: LlamaGen, device: torch.device) -> None:
        config = self._config = gpt.config
        self.segment_ends, self.num_classes, self.flops = config.ends, config.num_classes, config.flops
        self._device = device
        self._weights = {k: v.clone() for k, v in gpt.to(device).state_dict().items()}
        self._table = gpt.table_LJ2
        generator = torch.Generator().manual_seed(1)
        self.tokens_L = torch.randint(config.vocab_size, (config.ends[-1],), generator=generator).to(device)

    @classmethod
    def random(cls: type[Workload], shape: str, scales: Sequence[int] | None, device: torch.device) -> Workload:
        """A model of this shape (`parse_shape`) with random weights; `scales` is the side of its grid alone."""
        return cls(random_weights(cls.network(cls.parse_shape(shape, scales))), device)

    @classmethod
    def parse_shape(cls, text: str, scales: Sequence[int] | None = None) -> LlamaGenConfig:
        """The configuration of a published size, such as "l", or of "DEPTH:WIDTH:HEADS".

        Raises: UsageError for anything else.
        """
        depth, width, heads = shapes.parse(text, scales, family=cls.likelihood.family, sizes=cls.sizes)
        return cls.config(
            **cls.condition,
            depth=depth,
            width=width,
            heads=heads,
            kv_heads=heads,
            ffn=ffn_width(width),
            vocab_size=VOCABULARY if width >= HEAD_WIDTH * 8 else 512,
            side=scales[0] if scales else SIDE,
        )

    def reference(self, class_id_P: Tensor) -> Tensor:
        """Token log-probabilities by the reference implementation, (P, L)."""
        return self.reference_log_probs(self._weights, self.tokens_L, class_id_P, heads=self._config.heads)

    def model(self, precision: str, kernels: str) -> LikelihoodModel:
        """The model in this precision and with these kernels. Raises: UsageError for an unavailable precision."""
        with torch.device("meta"):
            gpt = self.network(self._config)
        gpt.load_state_dict(dict(self._weights), assign=True)
        gpt.table_LJ2 = self._table
        gpt = gpt.eval().requires_grad_(False)
        return self.likelihood(gpt.set_precision(product_library.find(precision, self._device)).set_kernels(kernels))
