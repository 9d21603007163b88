"""Training of a TiTok: of one stage on its pixels (arXiv:2501.07730), or of two stages (arXiv:2406.07550).

Shapes: B images, L latent tokens, M latents of a batch, Z channels of latents and codes, U codes of the teacher, g side
of its grid.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.family import TokenizerLoss
from avarc_cli.layers.loss_weights import Adversary, LossWeights
from avarc_cli.layers.precision import tf32
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.vq_loss import Quantized, Reconstruction, ReconstructionLoss, codebook_loss, nearest, pixel_error
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.tokenizers.maskgit_vqgan.network import Decoder as PixelDecoder
from avarc_cli.tokenizers.titok.network import Codebook, Posterior, TiTok

DIVERGENCE = 1e-6  # weight of a VAE's divergence from its prior, as in 1d-tokenizer's code


def _weights(lpips: float, weight: float, start: float) -> LossWeights:
    """What both published trainings share (1d-tokenizer's code). They weigh squared errors of pixels in [0, 1]."""
    adversary = Adversary(kind="blur", weight=weight, start=start, lecam=0.001, weight_decay=1e-4, own_schedule=True)
    return LossWeights(squared=0.25, lpips=lpips, logits=0.1, adversary=adversary)


class TiTokLoss(ReconstructionLoss):
    """The loss of a single-stage TiTok."""

    published = _weights(lpips=1.0, weight=0.1, start=0.31)  # that of TA-TiTok, from step 200,000 of 650,000

    def __init__(self, network: TiTok) -> None:
        self.codebook = cast("Codebook", network.quantize)
        super().__init__(self.codebook.embedding.weight)
        self.network = network

    def encode(self, images: Tensor) -> Tensor:
        latents = self.network.encoder((images + 1) / 2, self.network.latent_tokens)
        return F.normalize(latents, dim=1) if self.network.config.l2_norm else latents

    def quantize(self, latents: Tensor) -> Quantized:
        with torch.no_grad():
            tokens_BL = self.network.tokenize(latents)
        codes = self.codebook.lookup(tokens_BL)
        return Quantized(latents, codes, codebook_loss(latents, codes, self.commitment), tokens_BL.flatten())

    def codes_of(self, tokens_BL: Tensor) -> Tensor:
        return self.codebook.lookup(tokens_BL)

    def near(self, latents: Tensor, count: int) -> Tensor:
        return nearest(self.vectors(latents), self.codebook.codes(), count).unflatten(0, (len(latents), -1))

    def vectors(self, latents: Tensor) -> Tensor:
        """The latents of every token, (M, Z)."""
        return latents[:, :, 0].transpose(1, 2).flatten(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.network.decode(codes)

    def read(self, text_BTD: Tensor) -> None:
        """As `family.CaptionedLoss`."""
        self.network = cast("TiTok", self.network.with_guidance(text_BTD))

    @property
    def last_weight(self) -> Tensor:
        return cast("nn.Conv2d", self.network.decoder.conv_out).weight


class VAELoss(TokenizerLoss):
    """The loss of a VAE: error of the pixels, and a little of the divergence of its tokens from their prior."""

    published = TiTokLoss.published

    def __init__(self, network: TiTok) -> None:
        self.network = network
        self._noise_BLZ: Tensor | None = None

    def draw(self, rows: Rows, generator: torch.Generator) -> None:
        """As `family.DrawnLoss`: the noise of the tokens."""
        config = self.network.config
        shape = (rows.of, config.num_tokens, config.code_channels)
        self._noise_BLZ = rows.take(torch.randn(shape, generator=generator))

    def read(self, text_BTD: Tensor) -> None:
        """As `family.CaptionedLoss`."""
        self.network = cast("TiTok", self.network.with_guidance(text_BTD))

    def __call__(
        self, images: Tensor, step: int, steps: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """As `family.TokenizerLoss`."""
        made = self.reconstruct(images, step, steps, generator)
        error, shown = pixel_error(made.images, images)
        return error + made.loss, shown | made.shown

    def reconstruct(self, images: Tensor, step: int, steps: int, generator: torch.Generator) -> Reconstruction:
        """As `family.PixelLoss`, after `draw`."""
        network, noise_BLZ = self.network, self._noise_BLZ
        posterior = cast("Posterior", network.quantize)
        assert noise_BLZ is not None, "nothing was drawn"
        latents = network.encoder((images + 1) / 2, network.latent_tokens)
        with torch.autocast(images.device.type, enabled=False):
            mean, logvar = posterior.moments(latents.float())
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
            tokens_BLZ = posterior.draw(latents.float(), noise_BLZ.to(images.device))
        decoded = network.decode(posterior.lookup(tokens_BLZ))
        return Reconstruction(decoded, DIVERGENCE * divergence, {"kl": divergence.item()})

    @property
    def last_weight(self) -> Tensor:
        return cast("nn.Conv2d", self.network.decoder.conv_out).weight

    def before_update(self, step: int, steps: int) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def one_stage_loss(network: TiTok) -> TokenizerLoss:
    """What trains a TiTok, or a TA-TiTok, in one stage."""
    return VAELoss(network) if network.config.is_vae else TiTokLoss(network)


class FirstStageLoss(TiTokLoss):
    """Cross-entropy of the teacher's tokens, a mean over cells, in place of the error of pixels."""

    def __init__(self, network: TiTok, teacher: TokenizerNetwork) -> None:
        super().__init__(network)
        self.teacher = teacher

    def decode(self, codes: Tensor) -> Tensor:
        """Logits of the teacher's codes, (B, U, g, g)."""
        return self.network.decoder(codes)

    def error(self, decoded: Tensor, images: Tensor) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad(), tf32(False), torch.autocast(images.device.type, enabled=False):
            tokens_BL = self.teacher.tokenize(self.teacher.encode(images))
        loss = F.cross_entropy(decoded.flatten(2), tokens_BL)
        right = (decoded.flatten(2).argmax(1) == tokens_BL).float().mean()
        return loss, {"nats/code": loss.item(), "right": right.item()}


class SecondStageLoss(TokenizerLoss):
    """Squared error of the pixels. Encoder and codes have learnt what they will."""

    published: ClassVar[LossWeights] = _weights(lpips=0.0, weight=0.01, start=0.04)  # from step 20,000 of 500,000

    def __init__(self, network: TiTok) -> None:
        self.network = network

    def __call__(
        self, images: Tensor, step: int, steps: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """As `family.TokenizerLoss`."""
        error = F.mse_loss(self.reconstruct(images, step, steps, generator).images, images)
        return error, {"rmse": error.item() ** 0.5}

    def reconstruct(self, images: Tensor, step: int, steps: int, generator: torch.Generator) -> Reconstruction:
        """As `family.PixelLoss`."""
        network = self.network
        with torch.no_grad():
            latents = network.encoder((images + 1) / 2, network.latent_tokens)
            codes = network.quantize.lookup(network.tokenize(latents))
        return Reconstruction(network.decode(codes), images.new_zeros(()), {})

    @property
    def last_weight(self) -> Tensor:
        return cast("PixelDecoder", self.network.pixel_decoder).conv_out.weight

    def before_update(self, step: int, steps: int) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
