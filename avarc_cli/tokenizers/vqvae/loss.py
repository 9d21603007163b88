"""Training of the multi-scale VQ-VAE (arXiv:2404.02905, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_cli.layers.loss_weights import Adversary, LossWeights
from avarc_cli.layers.vq_loss import Quantized, ReconstructionLoss, codebook_loss
from avarc_cli.tokenizers.vqvae.network import VQVAE


class VQVAELoss(ReconstructionLoss):
    """The loss of a VQ-VAE; the codebook's is averaged over scales."""

    published = LossWeights(  # VAR's authors have not published theirs; this is their trainer vaex's
        absolute=0.2,
        squared=1.0,
        lpips=1.0,
        lpips_from=48,
        adversary=Adversary(
            kind="dino",
            weight=0.4,
            start=0.2,
            ramp=0.02,
            halved=False,
            adaptive=(0.015, 1e4),
            adaptive_epsilon=1e-6,
            consistency=8.0,
            augmented=True,
            betas=(0.5, 0.9),
            weight_decay=5e-4,
            clip=10.0,
        ),
    )

    def __init__(self, network: VQVAE) -> None:
        super().__init__(network.quantize.embedding.weight)
        self.network = network

    def encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images)

    def quantize(self, latents: Tensor) -> Quantized:
        with torch.no_grad():
            tokens_BL = self.network.tokenize(latents)
        losses = []
        f_hat = latents
        for f_hat in self.network.quantize.accumulate(tokens_BL):
            losses.append(codebook_loss(latents, f_hat, self.commitment))
        return Quantized(latents, f_hat, torch.stack(losses).mean(), tokens_BL.flatten())

    def vectors(self, latents: Tensor) -> Tensor:
        """The residuals that the scales had to quantize, (M, Z)."""
        quantizer, r, residuals = self.network.quantize, latents, []
        for k, index_Bpp in enumerate(quantizer.split(self.network.tokenize(latents))):
            residuals.append(quantizer.residual(k, r))
            r = r - quantizer.contribution(k, index_Bpp)
        return torch.cat(residuals)

    def decode(self, codes: Tensor) -> Tensor:
        return self.network.decode(codes)

    @property
    def last_weight(self) -> Tensor:
        return self.network.decoder.conv_out.weight
