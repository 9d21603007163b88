"""Training of the multi-scale VQ-VAE (arXiv:2404.02905, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avarc_cli.layers import collectives
from avarc_cli.layers.code_usage import ScaleUsage
from avarc_cli.layers.loss_weights import Adversary, LossWeights
from avarc_cli.layers.rows import Rows
from avarc_cli.layers.vq_loss import Quantized, ReconstructionLoss, codebook_loss, nearest
from avarc_cli.tokenizers.vqvae.network import VQVAE

LEAST_SCALES = 3  # of an image of which not all count


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
        self.by_scale = ScaleUsage(len(network.config.patch_nums), network.vocab_size, self.used_V.device)
        self._cells = 0  # of the last scale of a batch
        self._kept_B: Tensor | None = None  # how many scales of each image count; None for all

    def encode(self, images: Tensor) -> Tensor:
        return self.network.encode(images)

    def draw(self, rows: Rows, generator: torch.Generator) -> None:
        """As `ReconstructionLoss.draw`."""
        super().draw(rows, generator)
        drops = self.measures.scale_dropout > 0 and torch.is_grad_enabled()  # and not on validation images
        self._kept_B = rows.take(self._draw_kept(rows.of, generator)) if drops else None

    def _draw_kept(self, count: int, generator: torch.Generator) -> Tensor:
        scales = len(self.network.config.patch_nums)
        fewer_B = torch.randint(min(LEAST_SCALES, scales), scales + 1, (count,), generator=generator)
        return torch.where(torch.rand(count, generator=generator) < self.measures.scale_dropout, fewer_B, scales)

    def quantize(self, latents: Tensor) -> Quantized:
        with torch.no_grad():
            tokens_BL = self.network.tokenize(latents)
        steps = list(self.network.quantize.accumulate(tokens_BL))
        if self._kept_B is None:
            loss = torch.stack([codebook_loss(latents, f_hat, self.commitment) for f_hat in steps]).mean()
            return Quantized(latents, steps[-1], loss, tokens_BL.flatten())
        kept_B = self._kept_B.to(latents.device)
        # As in XQ-GAN's code (lxa9867/ImageFolder): later scales of an image are in neither its latents nor its loss.
        loss_KB = torch.stack([self._loss_of_each(latents, f_hat) for f_hat in steps])
        counts_KB = torch.arange(len(steps), device=latents.device)[:, None] < kept_B
        loss = ((loss_KB * counts_KB).sum(0) / kept_B).mean()
        images_B = torch.arange(len(latents), device=latents.device)
        return Quantized(latents, torch.stack(steps)[kept_B - 1, images_B], loss, tokens_BL.flatten())

    def _loss_of_each(self, latents: Tensor, f_hat: Tensor) -> Tensor:
        """`codebook_loss` of each image, (B,)."""
        to_latents = (f_hat - latents.detach()).square().mean((1, 2, 3))
        return to_latents + self.commitment * (latents - f_hat.detach()).square().mean((1, 2, 3))

    def count(self, used_N: Tensor) -> None:
        """As `ReconstructionLoss.count`, by scale."""
        tokens_BL = used_N.view(-1, self.network.layout.num_tokens)
        for k, tokens in enumerate(self.network.quantize.split(tokens_BL)):
            self.by_scale.add(k, tokens)
        self._cells = collectives.count() * len(tokens_BL) * self.network.config.patch_nums[-1] ** 2

    def usage(self) -> str:
        """In words, how many codes each scale uses, by VAR's measure."""
        percents = self.by_scale.percent(self._cells).tolist()
        sides = self.network.config.patch_nums
        return "codes in use by scale: " + ", ".join(
            f"{side}x{side} {percent:.0f} %" for side, percent in zip(sides, percents, strict=True)
        )

    def state_dict(self) -> dict[str, Any]:
        """As `ReconstructionLoss.state_dict`, and the usage by scale."""
        by_scale = {"counts": self.by_scale.counts_KV, "updates": self.by_scale.updates, "cells": self._cells}
        return super().state_dict() | {"by_scale": by_scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `ReconstructionLoss.load_state_dict`."""
        super().load_state_dict(state)
        by_scale = state["by_scale"]
        self.by_scale.counts_KV.copy_(by_scale["counts"])
        self.by_scale.updates, self._cells = int(by_scale["updates"]), int(by_scale["cells"])

    def codes_of(self, tokens_BL: Tensor) -> Tensor:
        *_, f_hat = self.network.quantize.accumulate(tokens_BL)
        return f_hat

    def near(self, latents: Tensor, count: int) -> Tensor:
        codes_VZ = self.network.quantize.embedding.weight
        scales = [nearest(r, codes_VZ, count).unflatten(0, (len(latents), -1)) for r in self._residuals(latents)]
        return torch.cat(scales, dim=1)

    def vectors(self, latents: Tensor) -> Tensor:
        """The residuals that the scales had to quantize, (M, Z)."""
        return torch.cat(self._residuals(latents))

    def _residuals(self, latents: Tensor) -> list[Tensor]:
        """Those of each scale, (B p_k^2, Z)."""
        quantizer, r, residuals = self.network.quantize, latents, []
        for k, index_Bpp in enumerate(quantizer.split(self.network.tokenize(latents))):
            residuals.append(quantizer.residual(k, r))
            r = r - quantizer.contribution(k, index_Bpp)
        return residuals

    def decode(self, codes: Tensor) -> Tensor:
        return self.network.decode(codes)

    @property
    def last_weight(self) -> Tensor:
        return self.network.decoder.conv_out.weight
