"""Training of the multi-scale VQ-VAE (arXiv:2404.02905, section 3.2, without the perceptual and adversarial losses)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.tokenizers.vqvae.network import VQVAE

COMMITMENT = 0.25  # weight of pulling the latents to the codes; pulling the codes to the latents weighs 1
REVIVE_EVERY = 100  # steps between replacements of unused codes
REVIVE_UNTIL = 0.6  # fraction of the steps after which codes are left to settle


class ReconstructionLoss:
    """Absolute and squared error of the pixels, and the codebook loss. Codes that fall out of use are replaced."""

    def __init__(self, network: VQVAE) -> None:
        self.network = network
        self.used_V = torch.zeros(network.config.vocab_size, device=network.quantize.embedding.weight.device)

    def __call__(
        self, images: Tensor, step: int, steps: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        f = self.network.encode(images)
        f_hat, vq_loss, index_N = _quantize_with_loss(self.network, f)
        self.used_V.add_(index_N.bincount(minlength=len(self.used_V)))
        if step % REVIVE_EVERY == REVIVE_EVERY - 1:
            if step < REVIVE_UNTIL * steps:
                _revive(self.network, f.detach(), self.used_V, generator)
            self.used_V.zero_()
        # Straight through: the decoder sees the quantized latents, the gradient goes to the encoder's.
        decoded = self.network.decoder(self.network.post_quant_conv(f + (f_hat - f).detach()))
        error = F.mse_loss(decoded, images)
        loss = F.l1_loss(decoded, images) + error + vq_loss
        return loss, {"rmse": error.item() ** 0.5, "vq": vq_loss.item()}


def _quantize_with_loss(model: VQVAE, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantized latents, the codebook loss averaged over scales, and the chosen codes (all scales, flat)."""
    with torch.no_grad():
        tokens_BL = model.tokenize(f)
    losses = []
    f_hat = f
    for f_hat in model.quantize.accumulate(tokens_BL):
        losses.append(F.mse_loss(f_hat, f.detach()) + COMMITMENT * F.mse_loss(f, f_hat.detach()))
    return f_hat, torch.stack(losses).mean(), tokens_BL.flatten()


@torch.no_grad()
def _revive(model: VQVAE, f: Tensor, used_V: Tensor, generator: torch.Generator) -> None:
    """Give unused codes the values of residuals that the scales had to quantize."""
    unused = (used_V == 0).nonzero().flatten()
    if len(unused) == 0:
        return
    r, residuals = f, []
    for k, index_Bpp in enumerate(model.quantize.split(model.tokenize(f))):
        residuals.append(model.quantize.residual(k, r))
        r = r - model.quantize.contribution(k, index_Bpp)
    pool = torch.cat(residuals)
    chosen = torch.randint(len(pool), (len(unused),), generator=generator)
    model.quantize.embedding.weight[unused] = pool[chosen.to(pool.device)]
