"""Training of a MaskGIT-VQGAN (arXiv:2202.04200, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_cli.layers.loss_weights import VQGAN
from avarc_cli.layers.vq_loss import Quantized, ReconstructionLoss, codebook_loss, nearest
from avarc_cli.tokenizers.maskgit_vqgan.network import MaskGITVQGAN


class MaskGITVQGANLoss(ReconstructionLoss):
    """The loss of a MaskGIT-VQGAN."""

    published = VQGAN  # how the published one was trained is not public

    def __init__(self, network: MaskGITVQGAN) -> None:
        super().__init__(network.quantize.embedding.weight)
        self.network = network

    def encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images)

    def quantize(self, latents: Tensor) -> Quantized:
        with torch.no_grad():
            tokens_BL = self.network.tokenize(latents)
        codes = self.network.quantize.lookup(tokens_BL, latents.shape[-1])
        return Quantized(latents, codes, codebook_loss(latents, codes, self.commitment), tokens_BL.flatten())

    def codes_of(self, tokens_BL: Tensor) -> Tensor:
        return self.network.quantize.lookup(tokens_BL, self.network.config.side)

    def near(self, latents: Tensor, count: int) -> Tensor:
        return nearest(self.vectors(latents), self.codebook_VZ, count).unflatten(0, (len(latents), -1))

    def vectors(self, latents: Tensor) -> Tensor:
        """The latents of every cell, (M, Z)."""
        return latents.permute(0, 2, 3, 1).flatten(0, 2)

    def decode(self, codes: Tensor) -> Tensor:
        return self.network.decode(codes)

    @property
    def last_weight(self) -> Tensor:
        return self.network.decoder.conv_out.weight
