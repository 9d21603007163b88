"""Training of a tokenizer by reconstruction: pixels, codebook, and the replacement of codes that fall out of use.

The perceptual and adversarial losses of the published recipes are in `train.adversarial`, which builds on this.
Shapes: B images, Z channels of latents and codes, V codes, N latents of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.layers.code_usage import Reanchoring, RecentCodes
from avarc_cli.layers.collectives import add_up, concatenate
from avarc_cli.layers.loss_weights import LossWeights
from avarc_cli.layers.rows import Rows

COMMITMENT = 0.25  # weight of pulling the latents to the codes; pulling the codes to the latents weighs 1
REVIVE_EVERY = 100  # steps between replacements of unused codes
NEAR = 100  # codes of which a perturbed token takes one; falls to half between these fractions of the steps,
ANNEALED = (0.2, 0.6)  # as does the probability with which it does, from 1
REVIVE_UNTIL = 0.6  # fraction of the steps after which codes are left to settle


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What else is done against codes that fall out of use."""

    revive: bool = True
    """Replace unused codes by vectors of a batch now and then."""
    reanchor: bool = False
    """Move rarely used codes to vectors of every batch, rather than replace unused ones now and then."""
    scale_dropout: float = 0.0
    """Fraction of the images of which a random number of the first scales counts, at least 3."""
    perturbation: float = 0.0
    """Fraction of the images that are decoded from codes near the nearest ones (`NEAR`)."""


class Quantized(NamedTuple):
    """What a quantizer made of latents."""

    latents: Tensor
    """What was quantized, (B, Z, h, w)."""
    codes: Tensor
    """What stands for it, (B, Z, h, w)."""
    loss: Tensor
    """The codebook loss."""
    used_N: Tensor
    """The chosen codes, int64, of all images."""


class Reconstruction(NamedTuple):
    """What a tokenizer made of a batch."""

    images: Tensor
    """Decoded, (B, 3, H, H), not clamped."""
    loss: Tensor
    """The codebook loss; zero where no code is trained."""
    shown: dict[str, float]


def codebook_loss(latents: Tensor, codes: Tensor, commitment: float = COMMITMENT) -> Tensor:
    """Codes are drawn to the latents, and latents to the codes (arXiv:1711.00937, equation 3)."""
    return F.mse_loss(codes, latents.detach()) + commitment * F.mse_loss(latents, codes.detach())


def pixel_error(decoded: Tensor, images: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Absolute and squared error, and what to show of them."""
    squared = F.mse_loss(decoded, images)
    return F.l1_loss(decoded, images) + squared, {"rmse": squared.item() ** 0.5}


def entropy_loss(latents_NZ: Tensor, codes_VZ: Tensor, temperature: float = 0.01) -> Tensor:
    """Small when each latent is near one code, and all codes are near some (LlamaGen, with weight 0)."""
    squares = latents_NZ.square().sum(1, keepdim=True) + codes_VZ.square().sum(1)
    affinity = (2 * latents_NZ @ codes_VZ.T - squares) / temperature
    p_NV = affinity.softmax(1)
    mean_V = p_NV.mean(0)
    of_each = -(p_NV * affinity.log_softmax(1)).sum(1).mean()
    return of_each + (mean_V * (mean_V + 1e-5).log()).sum()


def nearest(vectors_NZ: Tensor, codes_VZ: Tensor, count: int) -> Tensor:
    """The nearest codes of each vector, nearest first, (N, count)."""
    return torch.cdist(vectors_NZ, codes_VZ).topk(count, largest=False).indices


class ReconstructionLoss(ABC):
    """Absolute and squared error of the pixels, and the codebook loss. Codes that fall out of use are replaced."""

    published: ClassVar[LossWeights]
    commitment = COMMITMENT

    def __init__(self, codebook_VZ: Tensor) -> None:
        """codebook_VZ: the network's own, which is changed in place."""
        self.codebook_VZ = codebook_VZ
        self.used_V = torch.zeros(len(codebook_VZ), device=codebook_VZ.device)
        self.recent = RecentCodes(len(codebook_VZ), codebook_VZ.device)
        self.measures = Measures()
        self.moving: Reanchoring | None = None
        self._encoded: list[Tensor] = []  # of the parts of a step that changes codes
        self._used: list[Tensor] = []  # by these parts
        self._is_drawn = False  # for the part that comes next
        self._state = torch.empty(0)  # of the step's generator, in which all parts and processes find it
        self._seed_B = torch.empty(0)  # of each image's perturbation; -1 for none

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, Z, h, w) of images (B, 3, H, H)."""

    @abstractmethod
    def quantize(self, latents: Tensor) -> Quantized:
        """The codes of latents, and the codebook loss, with gradients for both."""

    @abstractmethod
    def codes_of(self, tokens_BL: Tensor) -> Tensor:
        """What stands for latents that have these tokens, (B, Z, h, w)."""

    @abstractmethod
    def near(self, latents: Tensor, count: int) -> Tensor:
        """The nearest codes of every token, (B, L, count)."""

    @abstractmethod
    def vectors(self, latents: Tensor) -> Tensor:
        """The vectors that codes had to stand for, (M, Z)."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, H, H), not clamped, from codes (B, Z, h, w)."""

    def use(self, measures: Measures) -> None:
        """Take these measures from now on."""
        self.measures = measures
        self.moving = Reanchoring(self.codebook_VZ) if measures.reanchor else None

    def usage(self) -> str:
        """In words, how many codes were chosen lately, by this process."""
        return f"{self.recent.share():.0%} of the codes are in use"

    @property
    @abstractmethod
    def last_weight(self) -> Tensor:
        """The weight of the decoder's last convolution."""

    def draw(self, rows: Rows, generator: torch.Generator) -> None:
        """As `family.DrawnLoss`, what the measures need; where nothing was drawn, a call draws for its images alone."""
        self._is_drawn, self._state = True, generator.get_state()
        if self.measures.perturbation:
            chosen_B = torch.rand(rows.of, generator=generator) < self.measures.perturbation
            seed_B = torch.randint(2**62, (rows.of,), generator=generator)
            self._seed_B = rows.take(torch.where(chosen_B, seed_B, -1))

    def __call__(
        self, images: Tensor, step: int, steps: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """As `family.TokenizerLoss`."""
        made = self.reconstruct(images, step, steps, generator)
        error, shown = self.error(made.images, images)
        return error + made.loss, shown | made.shown

    def reconstruct(self, images: Tensor, step: int, steps: int, generator: torch.Generator) -> Reconstruction:
        """What is made of a batch; arguments as of `family.TokenizerLoss`."""
        if not self._is_drawn:
            self.draw(Rows.whole(len(images)), generator)
        self._is_drawn = False
        encoded = self.encode(images)
        with torch.autocast(images.device.type, enabled=False):  # half precision would choose other codes
            encoded = encoded.float()
            latents, codes, vq_loss, used_N = self.quantize(encoded)
            if self.measures.perturbation and torch.is_grad_enabled():
                codes = self._perturbed(encoded.detach(), codes, used_N, step / steps)
        if torch.is_grad_enabled():  # and not on validation images
            self._remember(step, encoded.detach(), used_N)
        # Straight through: the decoder sees the codes, the gradient goes to the latents.
        decoded = self.decode(latents + (codes - latents).detach())
        return Reconstruction(decoded, vq_loss, {"vq": vq_loss.item()})

    def error(self, decoded: Tensor, images: Tensor) -> tuple[Tensor, dict[str, float]]:
        """How far what was decoded is from the images, and what to show of it."""
        return pixel_error(decoded, images)

    def _remember(self, step: int, encoded: Tensor, used_N: Tensor) -> None:
        """Count the codes of a part of a batch, and keep what changes of the codebook will need."""
        self.used_V.add_(add_up(used_N.bincount(minlength=len(self.used_V))))
        self.count(used_N)
        if self.moving or self._revives(step):
            self._encoded.append(encoded)
            self._used.append(used_N)

    def count(self, used_N: Tensor) -> None:
        """Count the chosen codes of images, for `usage`."""
        self.recent.add(used_N)

    @torch.no_grad()
    def _perturbed(self, encoded: Tensor, codes: Tensor, used_N: Tensor, done: float) -> Tensor:
        """Codes of which those of some images are near ones (RobustTok), without gradients.

        Args:
            done: fraction of the training.
        """
        rows = (self._seed_B >= 0).nonzero().flatten()
        if len(rows) == 0:
            return codes
        generators = [torch.Generator().manual_seed(seed) for seed in self._seed_B[rows].tolist()]
        rows = rows.to(codes.device)
        first, last = ANNEALED
        share = 1 - 0.5 * min(1.0, max(0.0, (done - first) / (last - first)))
        near_BLn = self.near(encoded[rows], min(len(self.codebook_VZ), round(share * NEAR)))
        tokens_BL = used_N.view(len(encoded), -1)[rows]
        tokens, count = tokens_BL.shape[1], near_BLn.shape[-1]
        pick_BL = torch.stack([torch.randint(count, (tokens,), generator=each) for each in generators])
        changes_BL = torch.stack([torch.rand(tokens, generator=each) < share for each in generators])
        near_BL = near_BLn.gather(2, pick_BL[..., None].to(codes.device))[..., 0]
        chosen_BL = torch.where(changes_BL.to(codes.device), near_BL, tokens_BL)
        return codes.detach().index_copy(0, rows, self.codes_of(chosen_BL).to(codes.dtype))

    def before_update(self, step: int, steps: int) -> None:
        """As `family.TokenizerLoss.before_update`: codes that fell out of use are replaced."""
        if self._encoded:
            encoded = concatenate(torch.cat(self._encoded))
            if self.moving:
                self.moving.update(self.vectors(encoded), concatenate(torch.cat(self._used)))
            elif step < REVIVE_UNTIL * steps:
                generator = torch.Generator()
                generator.set_state(self._state)
                self._revive(encoded, generator)
        if self._revives(step):
            self.used_V.zero_()
        self._encoded, self._used = [], []

    def _revives(self, step: int) -> bool:
        return self.measures.revive and step % REVIVE_EVERY == REVIVE_EVERY - 1

    def state_dict(self) -> dict[str, Any]:
        """How often each code was used lately."""
        moving = {"share": self.moving.share_V} if self.moving else {}
        return {"used": self.used_V, "recent": self.recent.window, **moving}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises: what a wrong type or shape raises."""
        self.used_V.copy_(state["used"])
        self.recent.window.copy_(state["recent"])
        if self.moving:
            self.moving.share_V.copy_(state["share"])

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
