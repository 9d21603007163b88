"""Training of a tokenizer by reconstruction: pixels, codebook, and the replacement of codes that fall out of use.

The perceptual and adversarial losses of the published recipes are left out.
Shapes: B images, Z channels of latents and codes, V codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.layers.collectives import add_up, concatenate

COMMITMENT = 0.25  # weight of pulling the latents to the codes; pulling the codes to the latents weighs 1
REVIVE_EVERY = 100  # steps between replacements of unused codes
REVIVE_UNTIL = 0.6  # fraction of the steps after which codes are left to settle


class Quantized(NamedTuple):
    """What a quantizer made of latents."""

    latents: Tensor
    """What was quantized, (B, Z, h, w)."""
    codes: Tensor
    """What stands for it, (B, Z, h, w)."""
    loss: Tensor
    """The codebook loss."""
    used_N: Tensor
    """The chosen codes, int64."""


def codebook_loss(latents: Tensor, codes: Tensor) -> Tensor:
    """Codes are drawn to the latents, and latents to the codes (arXiv:1711.00937, equation 3)."""
    return F.mse_loss(codes, latents.detach()) + COMMITMENT * F.mse_loss(latents, codes.detach())


class ReconstructionLoss(ABC):
    """Absolute and squared error of the pixels, and the codebook loss. Codes that fall out of use are replaced."""

    def __init__(self, codebook_VZ: Tensor) -> None:
        """codebook_VZ: the network's own, which is changed in place."""
        self.codebook_VZ = codebook_VZ
        self.used_V = torch.zeros(len(codebook_VZ), device=codebook_VZ.device)
        self._encoded: list[Tensor] = []  # of the parts of a step that revives codes
        self._generator: torch.Generator | None = None  # the step's own

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, Z, h, w) of images (B, 3, H, H)."""

    @abstractmethod
    def quantize(self, latents: Tensor) -> Quantized:
        """The codes of latents, and the codebook loss, with gradients for both."""

    @abstractmethod
    def vectors(self, latents: Tensor) -> Tensor:
        """The vectors that codes had to stand for, (M, Z)."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, H, H), not clamped, from codes (B, Z, h, w)."""

    def __call__(
        self, images: Tensor, step: int, steps: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """As `family.TokenizerLoss`."""
        encoded = self.encode(images)
        with torch.autocast(images.device.type, enabled=False):  # half precision would choose other codes
            encoded = encoded.float()
            latents, codes, vq_loss, used_N = self.quantize(encoded)
        self.used_V.add_(add_up(used_N.bincount(minlength=len(self.used_V))))
        if self._revives(step):
            self._encoded.append(encoded.detach())
            self._generator = generator
        # Straight through: the decoder sees the codes, the gradient goes to the latents.
        decoded = self.decode(latents + (codes - latents).detach())
        error, shown = self.error(decoded, images)
        return error + vq_loss, shown | {"vq": vq_loss.item()}

    def error(self, decoded: Tensor, images: Tensor) -> tuple[Tensor, dict[str, float]]:
        """How far what was decoded is from the images, and what to show of it."""
        squared = F.mse_loss(decoded, images)
        return F.l1_loss(decoded, images) + squared, {"rmse": squared.item() ** 0.5}

    def before_update(self, step: int, steps: int) -> None:
        """As `family.TokenizerLoss.before_update`: every so often, codes that fell out of use are replaced."""
        if not self._revives(step):
            return
        if step < REVIVE_UNTIL * steps and self._generator is not None:
            self._revive(concatenate(torch.cat(self._encoded)), self._generator)
        self.used_V.zero_()
        self._encoded, self._generator = [], None

    def _revives(self, step: int) -> bool:
        return step % REVIVE_EVERY == REVIVE_EVERY - 1

    def state_dict(self) -> dict[str, Any]:
        """How often each code was used lately."""
        return {"used": self.used_V}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: what a wrong type or shape raises."""
        self.used_V.copy_(state["used"])

    @torch.no_grad()
    def _revive(self, encoded: Tensor, generator: torch.Generator) -> None:
        """Give unused codes the values of vectors of this batch."""
        unused = (self.used_V == 0).nonzero().flatten()
        if len(unused) == 0:
            return
        pool = self.vectors(encoded)
        chosen = torch.randint(len(pool), (len(unused),), generator=generator)
        # Behind autograd's back: rows that this step did not use have no gradient.
        self.codebook_VZ.data[unused] = pool[chosen.to(pool.device)]
