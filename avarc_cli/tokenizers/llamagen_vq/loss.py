"""Training of a LlamaGen tokenizer (arXiv:2406.06525, section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.layers.loss_weights import VQGAN
from avarc_cli.layers.vq_loss import Quantized, ReconstructionLoss, codebook_loss, entropy_loss, nearest
from avarc_cli.tokenizers.llamagen_vq.network import LlamaGenVQ


class LlamaGenVQLoss(ReconstructionLoss):
    """The loss of a LlamaGen tokenizer, whose latents and codes have length one."""

    published = VQGAN

    def __init__(self, network: LlamaGenVQ, entropy_weight: float = 0.0) -> None:
        """entropy_weight: of `entropy_loss`, 0 in the published recipe."""
        super().__init__(network.quantize.embedding.weight)
        self.network, self.entropy_weight = network, entropy_weight

    def encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images)

    def quantize(self, latents: Tensor) -> Quantized:
        with torch.no_grad():
            tokens_BL = self.network.tokenize(latents)
        z, codes = F.normalize(latents, dim=1), self.network.quantize.lookup(tokens_BL, latents.shape[-1])
        loss = codebook_loss(z, codes, self.commitment)
        if self.entropy_weight:
            vectors_NZ = z.permute(0, 2, 3, 1).flatten(0, 2)
            loss = loss + self.entropy_weight * entropy_loss(vectors_NZ, self.network.quantize.codes())
        return Quantized(z, codes, loss, tokens_BL.flatten())

    def codes_of(self, tokens_BL: Tensor) -> Tensor:
        return self.network.quantize.lookup(tokens_BL, self.network.config.side)

    def near(self, latents: Tensor, count: int) -> Tensor:
        return nearest(self.vectors(latents), self.network.quantize.codes(), count).unflatten(0, (len(latents), -1))

    def vectors(self, latents: Tensor) -> Tensor:
        """The latents of every cell at length one, (M, Z)."""
        return F.normalize(latents, dim=1).permute(0, 2, 3, 1).flatten(0, 2)

    def decode(self, codes: Tensor) -> Tensor:
        return self.network.decode(codes)

    @property
    def last_weight(self) -> Tensor:
        return self.network.decoder.conv_out.weight
