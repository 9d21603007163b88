"""What `avarc bench` scores: a MaskGen VQ's weights, one image's tokens, captions of random features.

Shapes: P pairs of the image and a caption, L tokens, R captions, D channels of their features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli import product_library
from avarc_cli.layers.random_weights import random_weights
from avarc_cli.models.maskgen import reference, shapes
from avarc_cli.models.maskgen.config import DEFAULT_CLASSES, DEFAULT_SCORE, TEXT_POSITIONS, MaskGenConfig
from avarc_cli.models.maskgen.likelihood import MaskGenLikelihood
from avarc_cli.models.maskgen.network import MaskGen
from avarc_cli.text.features import CaptionFeatures

VOCABULARY = 8192
TEXT_WIDTH, SCORE_WIDTH = 768, 256
CAPTIONS = 8


class MaskGenWorkload:
    """One image with random tokens, and a few captions, which the model has read before it is timed.

    Every model that it makes has the same weights, and scores in the default steps.
    """

    def __init__(self, network: MaskGen, device: torch.device) -> None:
        self._config, self._device = network.config, device
        model = MaskGenLikelihood(network)
        self.segment_ends, self.num_classes = model.segment_ends, CAPTIONS
        self.flops = model.flops_per_token * self._config.num_tokens
        self._weights = {key: value.clone() for key, value in network.to(device).state_dict().items()}
        generator = torch.Generator().manual_seed(1)
        tokens_L = torch.randint(self._config.vocab_size, (self._config.num_tokens,), generator=generator)
        self.tokens_L = tokens_L.to(device)
        text, width = self._config.text, self._config.text_width
        self._features = CaptionFeatures(
            captions=tuple(f"caption {i}" for i in range(CAPTIONS)),
            sequence_RTD=torch.randn(CAPTIONS, text.positions, width, generator=generator).to(device),
            length_R=torch.full((CAPTIONS,), text.positions),
            pooled_RE=torch.randn(CAPTIONS, width, generator=generator).to(device),
        )

    def reference(self, class_id_P: Tensor) -> Tensor:
        """Token log-probabilities by the reference implementation, (P, L)."""
        pooled_RE = self._features.pooled_RE
        assert pooled_RE is not None
        return reference.token_log_probs(
            self._weights,
            self.tokens_L,
            self._features.sequence_RTD[class_id_P],
            pooled_RE[class_id_P],
            self._config.aesthetic_score,
            heads=self._config.heads,
            codes=self._config.vocab_size,
            ends=self.segment_ends,
        )

    def model(self, precision: str, kernels: str) -> MaskGenLikelihood:
        """The model in this precision and with these kernels. Raises: UsageError for an unavailable precision."""
        network = MaskGen.from_state_dict(self._config, self._weights, source="the bench")
        network = network.set_precision(product_library.find(precision, self._device)).set_kernels(kernels)
        return MaskGenLikelihood(network).with_captions(self._features)


def random_workload(shape: str, scales: Sequence[int] | None, device: torch.device) -> MaskGenWorkload:
    """A MaskGen VQ of this shape (`shapes.parse`) with random weights, which preserve the size of a linear's input."""
    parsed = shapes.parse(shape, scales)
    config = MaskGenConfig(
        **parsed._asdict(),
        hidden=4 * parsed.width,
        text_width=TEXT_WIDTH,
        text_positions=TEXT_POSITIONS,
        score_width=SCORE_WIDTH,
        aesthetic_score=DEFAULT_SCORE,
        vocab_size=VOCABULARY,
        rows=VOCABULARY + DEFAULT_CLASSES + 2,
    )
    return MaskGenWorkload(random_weights(MaskGen(config)), device)
