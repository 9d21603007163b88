"""Training of a single-stage TiTok on its pixels, without the perceptual and adversarial losses (arXiv:2501.07730)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from avarc_cli.layers.vq_loss import Quantized, ReconstructionLoss, codebook_loss
from avarc_cli.tokenizers.titok.network import Codebook, TiTok


class TiTokLoss(ReconstructionLoss):
    """The loss of a single-stage TiTok."""

    def __init__(self, network: TiTok) -> None:
        self.codebook = cast("Codebook", network.quantize)
        super().__init__(self.codebook.embedding.weight)
        self.network = network

    def encode(self, images: Tensor) -> Tensor:
        return self.network.encoder((images + 1) / 2, self.network.latent_tokens)

    def quantize(self, latents: Tensor) -> Quantized:
        with torch.no_grad():
            tokens_BL = self.network.tokenize(latents)
        codes = self.codebook.lookup(tokens_BL)
        return Quantized(latents, codes, codebook_loss(latents, codes), tokens_BL.flatten())

    def vectors(self, latents: Tensor) -> Tensor:
        """The latents of every token, (M, Z)."""
        return latents[:, :, 0].transpose(1, 2).flatten(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.network.decode(codes)
