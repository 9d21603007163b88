"""Drawing continuous tokens from a MaskGen KL: in random order, each by a diffusion of its own.

Shapes: B images, L tokens, T tokens of a step, Z channels of a token, C width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from avarc_cli.likelihood import SamplerSettings
from avarc_cli.models.maskgen.diffusion import Process
from avarc_cli.models.maskgen.joint import Captions
from avarc_cli.models.maskgen.latent_head import TokenHead
from avarc_cli.models.maskgen.latent_network import MaskGenKL
from avarc_cli.models.maskgen.sampling import empty_rows

DIFFUSION_STEPS = 100  # of the published sampler


@dataclass(frozen=True)
class Schedule:
    """How the steps of the sampler differ."""

    steps: int = 32
    """Passes, at most one for each token; after each, fewer tokens are hidden."""
    guidance: float = 2.0
    """The strength that it is meant for."""

    def settings(self, length: int) -> SamplerSettings:
        """As presets state them, for this number of tokens."""
        return SamplerSettings(schedule="linear", steps=min(self.steps, length))

    def hidden_after(self, step: int, hidden: int, length: int) -> int:
        """How many tokens are hidden after this step, of those that are before it. The last step shows all."""
        count = math.floor(length * math.cos(math.pi / 2 * (step + 1) / min(self.steps, length)))
        return max(1, min(hidden - 1, count))

    def weight(self, guidance: float, hidden: int, length: int) -> float:
        """How far to go from the noise of the empty caption (0) over the caption's (1).

        It grows to 1 + guidance, which is what the reference calls its scale. hidden: tokens after the step.
        """
        return 1 + guidance * (length - hidden) / length


SCHEDULE = Schedule()
"""That of the published models."""


class DrawsTokens(Protocol):
    """Draws tokens (B, T, Z) for conditions (B, T, C) of the captions and, with guidance, of the empty caption."""

    def __call__(self, of_caption_BTC: Tensor, of_none_BTC: Tensor | None, weight: float) -> Tensor: ...


class TokenSampler:
    """Draws tokens by the head's reverse diffusion in `DIFFUSION_STEPS` steps."""

    def __init__(self, head: TokenHead, generators: Sequence[torch.Generator], device: torch.device) -> None:
        self.head, self.generators = head, generators
        self.process = Process.cosine().respaced(DIFFUSION_STEPS).to(device)

    def __call__(self, of_caption_BTC: Tensor, of_none_BTC: Tensor | None, weight: float) -> Tensor:
        shape = (*of_caption_BTC.shape[:2], self.head.input_proj.in_features)
        conditions = [self.head.conditions(z).flatten(0, 1) for z in (of_caption_BTC, of_none_BTC) if z is not None]
        x_NZ, process = self._noise(shape), self.process
        for step in reversed(range(DIFFUSION_STEPS)):
            t_N = torch.full((len(x_NZ),), step, device=x_NZ.device)
            eps_NZ, v_NZ = self.head(x_NZ, process.timestep[t_N], conditions[0])
            if len(conditions) > 1:  # the variance stays the caption's
                of_none, _ = self.head(x_NZ, process.timestep[t_N], conditions[1])
                eps_NZ = of_none + weight * (eps_NZ - of_none)
            x_NZ = process.mean(x_NZ, t_N, eps_NZ)
            if step:
                x_NZ = x_NZ + (0.5 * process.log_variance(t_N, v_NZ)).exp() * self._noise(shape)
        return x_NZ.view(shape)

    def _noise(self, shape: tuple[int, int, int]) -> Tensor:
        """Standard normal (B * T, Z), each image's from its own generator."""
        each = [torch.randn(shape[1:], generator=g, device=g.device) for g in self.generators]
        return torch.cat(each)


@torch.inference_mode()
def sample(
    network: MaskGenKL,
    captions: Captions,
    row_B: Tensor,
    empty: int | None,
    schedule: Schedule,
    generators: Sequence[torch.Generator],
    guidance: float,
    tokens: DrawsTokens,
) -> Tensor:
    """Tokens (B, L, Z) float32, one image for each caption.

    Args:
        row_B: caption of each image. empty: row of the empty caption, None where it is not there.
        generators, guidance: as `LikelihoodModel.sample`. tokens: draws the tokens of a step.
    Raises: UsageError for guidance without the empty caption.
    """
    length, channels = network.config.num_tokens, network.config.channels
    null_B = empty_rows(row_B, empty, guidance)
    rows = row_B if null_B is None else torch.cat([row_B, null_B])
    order_BL = torch.stack([torch.randperm(length, generator=g, device=g.device) for g in generators])
    x_BLZ = torch.zeros(len(row_B), length, channels, device=row_B.device)
    visible_BL = torch.zeros(x_BLZ.shape[:2], dtype=torch.bool, device=row_B.device)
    hidden, steps = length, min(schedule.steps, length)
    for step in range(steps):
        left = schedule.hidden_after(step, hidden, length)
        weight = schedule.weight(guidance, left, length)
        shown_BT = order_BL[:, 0 if step + 1 == steps else left : hidden]
        copies = len(rows) // len(row_B)
        z = network.conditions(captions, rows, x_BLZ.repeat(copies, 1, 1), visible_BL.repeat(copies, 1))
        z = z.gather(1, shown_BT.repeat(copies, 1)[..., None].expand(-1, -1, z.shape[-1]))
        of_caption, of_none = (z, None) if null_B is None else z.chunk(2)
        drawn_BTZ = tokens(of_caption, of_none, weight)
        x_BLZ = x_BLZ.scatter(1, shown_BT[..., None].expand_as(drawn_BTZ), drawn_BTZ)
        visible_BL = visible_BL.scatter(1, shown_BT, True)
        hidden = left
    return x_BLZ / network.config.scale_factor
