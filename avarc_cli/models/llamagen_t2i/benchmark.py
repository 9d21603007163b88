"""What `avarc bench` scores: a text-conditional LlamaGen's weights, one image's tokens, captions of random features.

Shapes: P pairs of the image and a caption, L tokens, R captions, T positions of captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.llamagen.benchmark import LlamaGenWorkload
from avarc_cli.models.llamagen.network import LlamaGen
from avarc_cli.models.llamagen_t2i import reference
from avarc_cli.models.llamagen_t2i.config import CaptionLlamaGenConfig
from avarc_cli.models.llamagen_t2i.likelihood import CaptionLlamaGenLikelihood
from avarc_cli.models.llamagen_t2i.network import CaptionLlamaGen
from avarc_cli.models.llamagen_t2i.shapes import SIZES
from avarc_cli.text.features import CaptionFeatures

CAPTIONS = 8
LENGTHS = (12, 20)  # positions of the shortest and the longest caption: "a photo of a golden retriever" has about ten


class CaptionLlamaGenWorkload(LlamaGenWorkload):
    """One image with random tokens, and a few captions; the model has evaluated them before it is timed."""

    network = CaptionLlamaGen
    likelihood = CaptionLlamaGenLikelihood
    config = CaptionLlamaGenConfig
    condition: ClassVar[Mapping[str, Any]] = {"num_classes": 0, "caption_width": 2048, "positions": 120}
    sizes = SIZES

    def __init__(self, gpt: LlamaGen, device: torch.device) -> None:
        super().__init__(gpt, device)
        self.num_classes = CAPTIONS
        config = gpt.config
        assert isinstance(config, CaptionLlamaGenConfig)
        self._positions, generator = config.positions, torch.Generator().manual_seed(2)
        length_R = torch.linspace(*LENGTHS, CAPTIONS).long().clamp(max=config.positions)
        sequence_RTD = torch.randn(CAPTIONS, int(length_R.max()), config.caption_width, generator=generator)
        names = tuple(f"caption {i}" for i in range(CAPTIONS))
        self._features = CaptionFeatures(
            captions=names, sequence_RTD=sequence_RTD.to(device), length_R=length_R.to(device)
        )

    def reference(self, class_id_P: Tensor) -> Tensor:
        length_P = self._features.length_R[class_id_P]
        padded = reference.padded_left(self._features.sequence_RTD[class_id_P], length_P, self._positions)
        return reference.token_log_probs(self._weights, self.tokens_L, padded, length_P, heads=self._config.heads)

    def model(self, precision: str, kernels: str) -> LikelihoodModel:
        return super().model(precision, kernels).with_captions(self._features)
