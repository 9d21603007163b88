"""What `avarc bench` scores: a MaskGIT's weights and one image's tokens, for MaskGITLikelihood and the reference.

Shapes: P pairs of the image and a class, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli import product_library
from avarc_cli.layers.random_weights import random_weights
from avarc_cli.models.maskgit import reference, shapes
from avarc_cli.models.maskgit.bert import Bert
from avarc_cli.models.maskgit.config import MaskGITBertConfig, MaskGITConfig
from avarc_cli.models.maskgit.likelihood import MaskGITBertLikelihood, MaskGITLikelihood
from avarc_cli.models.maskgit.network import MaskedTransformer
from avarc_cli.models.maskgit.uvit import UViT

VOCABULARY = 4096
CLASSES = 1000


class MaskGITWorkload:
    """One image with random tokens; every model that it makes has the same weights, and scores in the default steps."""

    def __init__(self, transformer: MaskedTransformer, device: torch.device) -> None:
        self._kind, self._config, self._device = type(transformer), transformer.config, device
        self._likelihood = MaskGITBertLikelihood if isinstance(transformer, Bert) else MaskGITLikelihood
        model = self._likelihood(transformer)
        self.segment_ends, self.num_classes = model.segment_ends, model.num_classes
        self.flops = model.flops_per_token * self._config.num_tokens
        self._weights = {k: v.clone() for k, v in transformer.to(device).state_dict().items()}
        generator = torch.Generator().manual_seed(1)
        self.tokens_L = torch.randint(self._config.vocab_size, (self._config.num_tokens,), generator=generator)
        self.tokens_L = self.tokens_L.to(device)

    def reference(self, class_id_P: Tensor) -> Tensor:
        """Token log-probabilities by the reference implementation, (P, L)."""
        return reference.token_log_probs(
            self._weights, self.tokens_L, class_id_P, heads=self._config.heads, ends=self.segment_ends
        )

    def model(self, precision: str, kernels: str) -> MaskGITLikelihood:
        """The model in this precision and with these kernels. Raises: UsageError for an unavailable precision."""
        with torch.device("meta"):
            transformer = self._kind(self._config)
        transformer.load_state_dict(dict(self._weights), assign=True)
        transformer = transformer.eval().requires_grad_(False)
        return self._likelihood(
            transformer.set_precision(product_library.find(precision, self._device)).set_kernels(kernels)
        )


def random_workload(shape: str, scales: Sequence[int] | None, device: torch.device) -> MaskGITWorkload:
    """A MaskGIT of this shape (`shapes.parse`) with random weights, which preserve the size of a linear's input."""
    parsed = shapes.parse(shape, scales)
    config = (MaskGITBertConfig if parsed.bert else MaskGITConfig)(
        depth=parsed.depth,
        width=parsed.width,
        heads=parsed.heads,
        hidden=4 * parsed.width,
        num_classes=CLASSES,
        vocab_size=VOCABULARY,
        num_tokens=parsed.num_tokens,
    )
    return MaskGITWorkload(random_weights((Bert if parsed.bert else UViT)(config)), device)
