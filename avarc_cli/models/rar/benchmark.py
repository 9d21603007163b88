"""What `avarc bench` scores: a RAR's weights and one image's tokens, for RARLikelihood and the reference.

Shapes: P pairs of the image and a class, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli import product_library
from avarc_cli.layers.random_weights import random_weights
from avarc_cli.models.rar import reference, shapes
from avarc_cli.models.rar.config import RARConfig
from avarc_cli.models.rar.likelihood import RARLikelihood
from avarc_cli.models.rar.network import RAR

SIDE = 16  # of the token grid of a 256-pixel image
VOCABULARY = 1024


class RARWorkload:
    """One image with random tokens; every model that it makes has the same weights."""

    def __init__(self, rar: RAR, device: torch.device) -> None:
        config = self._config = rar.config
        self.segment_ends, self.num_classes, self.flops = config.ends, config.num_classes, config.flops
        self._device = device
        self._weights = {k: v.clone() for k, v in rar.to(device).state_dict().items()}
        generator = torch.Generator().manual_seed(1)
        self.tokens_L = torch.randint(config.vocab_size, (config.ends[-1],), generator=generator).to(device)

    def reference(self, class_id_P: Tensor) -> Tensor:
        """Token log-probabilities by the reference implementation, (P, L)."""
        return reference.token_log_probs(self._weights, self.tokens_L, class_id_P)

    def model(self, precision: str, kernels: str) -> RARLikelihood:
        """The model in this precision and with these kernels. Raises: UsageError for an unavailable precision."""
        with torch.device("meta"):
            rar = RAR(self._config)
        rar.load_state_dict(dict(self._weights), assign=True)
        rar = rar.eval().requires_grad_(False)
        return RARLikelihood(rar.set_precision(product_library.find(precision, self._device)).set_kernels(kernels))


def random_workload(shape: str, scales: Sequence[int] | None, device: torch.device) -> RARWorkload:
    """A RAR of this shape (`parse_shape`) with random weights; `scales` is the side of its grid alone."""
    return RARWorkload(random_weights(RAR(parse_shape(shape, scales))), device)


def parse_shape(text: str, scales: Sequence[int] | None = None) -> RARConfig:
    """The configuration of a shape, as in `shapes.parse`. Raises: UsageError."""
    depth, width, heads, hidden = shapes.parse(text, scales)
    return RARConfig(
        depth=depth,
        width=width,
        heads=heads,
        hidden=hidden,
        num_classes=1000,
        vocab_size=VOCABULARY,
        side=scales[0] if scales else SIDE,
    )
