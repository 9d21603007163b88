"""Training of the multi-scale VQ-VAE (arXiv:2404.02905, section 3.2, without the perceptual and adversarial losses)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.tokenizers.vqvae import VQVAE, VQVAEConfig
from avarc_cli.train.images import TrainingImages
from avarc_cli.train.loop import Progress, Recipe, train

COMMITMENT = 0.25  # weight of pulling the latents to the codes; pulling the codes to the latents weighs 1
REVIVE_EVERY = 100  # steps between replacements of codes that nobody chose
REVIVE_UNTIL = 0.6  # share of the training after which codes are left to settle


def train_tokenizer(
    config: VQVAEConfig,
    images: TrainingImages,
    recipe: Recipe,
    checkpoint: Path,
    progress: Progress,
    *,
    device: torch.device,
) -> VQVAE:
    """A VQ-VAE on `device` that reconstructs `images`; resumes from `checkpoint`.

    On a CPU the same seed and number of threads give the same weights, bit for bit.
    Raises: as `train`.
    """
    torch.manual_seed(recipe.seed)
    model = VQVAE(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    nn.init.normal_(model.quantize.embedding.weight, std=0.5)
    model.to(device)  # only now: the CPU's generator makes the same first weights for every device
    used_V = torch.zeros(config.vocab_size, device=device)

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        x, _, generator = images.batch(step, recipe.batch_size)
        x = x.to(device).contiguous(memory_format=torch.channels_last)
        f = model.encode(x)
        f_hat, vq_loss, index_N = _quantize_with_loss(model, f)
        used_V.add_(index_N.bincount(minlength=config.vocab_size))
        if step % REVIVE_EVERY == REVIVE_EVERY - 1:
            if step < REVIVE_UNTIL * recipe.steps:
                _revive(model, f.detach(), used_V, generator)
            used_V.zero_()
        image = model.decoder(model.post_quant_conv(f + (f_hat - f).detach()))
        error = F.mse_loss(image, x)
        loss = F.l1_loss(image, x) + error + vq_loss
        return loss, {"rmse": error.item() ** 0.5, "vq": vq_loss.item()}

    train(model, loss_of_step, recipe, checkpoint, progress, subject=f"{config} on {images}")
    return model


def _quantize_with_loss(model: VQVAE, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantised latents, the codebook loss averaged over scales, and the chosen codes (all scales, flat)."""
    with torch.no_grad():
        tokens_BL = model.tokenize(f)
    losses = []
    f_hat = f
    for f_hat in model.quantize.accumulate(tokens_BL):
        losses.append(F.mse_loss(f_hat, f.detach()) + COMMITMENT * F.mse_loss(f, f_hat.detach()))
    return f_hat, torch.stack(losses).mean(), tokens_BL.flatten()


@torch.no_grad()
def _revive(model: VQVAE, f: Tensor, used_V: Tensor, generator: torch.Generator) -> None:
    """Give unused codes the value of a residual that some scale had to quantise."""
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
