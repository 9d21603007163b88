"""Training of MaskGen KL: some tokens are hidden, and the head learns the noise in them.

Each hidden token is tried `TRIES` times, at a uniformly drawn step of its diffusion. The loss of a try is the mean
squared error of the noise, plus the term of the lower bound in bits a channel, by which only the variance is learned
(arXiv:2102.09672, but that the bound is not rescaled, as in 1d-tokenizer's code).

Shapes: B images, L tokens, M tries, N tries of all hidden tokens, Z channels of a token, C width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avarc_cli.models.maskgen.diffusion import STEPS, Process
from avarc_cli.models.maskgen.latent_head import TokenHead
from avarc_cli.objective import Draw, StepLoss

TRIES = 4  # of the published training


def draw(count: int, length: int, channels: int, generator: torch.Generator) -> Draw:
    """What is random in the loss of a batch.

    As many tokens are hidden in every image: the fraction arccos(u) / (pi / 2) for one uniform u, rounded up.
    """
    ratio = torch.rand((), generator=generator).acos().item() / (math.pi / 2)
    hidden = min(length, max(1, math.ceil(length * ratio)))
    shape = (count, length, TRIES)
    return Draw(
        hidden_BL=torch.rand(count, length, generator=generator).argsort(dim=1).argsort(dim=1) < hidden,
        step_BLM=torch.randint(STEPS, shape, generator=generator),
        noise_BLMZ=torch.randn(*shape, channels, generator=generator),
    )


def token_loss(
    head: TokenHead, process: Process, x_BLZ: Tensor, z_BLC: Tensor, hidden_BL: Tensor, draw: Draw
) -> StepLoss:
    """The mean over the tries of all hidden tokens.

    The reference's bound at the first step, of bins as for pixels, is left out: it trains the variance of that step
    alone, in which samples get no noise.

    Args:
        x_BLZ: tokens as the head reads them. z_BLC: what the transformer says of each.
    """
    assert draw.step_BLM is not None and draw.noise_BLMZ is not None, "of another model"
    t_NM, noise_NMZ = draw.step_BLM.to(x_BLZ.device)[hidden_BL], draw.noise_BLMZ.to(x_BLZ.device)[hidden_BL]
    t_N, noise_NZ = t_NM.flatten(), noise_NMZ.flatten(0, 1)
    tries = t_NM.shape[1]
    x_t_NZ = process.noised(x_BLZ[hidden_BL].repeat_interleave(tries, dim=0), t_N, noise_NZ)
    condition_NW = head.conditions(z_BLC[hidden_BL]).repeat_interleave(tries, dim=0)
    eps_NZ, v_NZ = (each.float() for each in head(x_t_NZ, process.timestep[t_N], condition_NW))
    error_NZ = eps_NZ - noise_NZ
    bits_N = process.divergence(t_N, error_NZ.detach(), v_NZ) / (error_NZ.shape[1] * math.log(2))
    mse, bound = error_NZ.square().mean(), bits_N.masked_fill(t_N == 0, 0.0).mean()
    return StepLoss(mse + bound, mse.new_zeros(()), {"mse": mse.item(), "bound": bound.item()})
