"""The diffusion process of MaskGen KL's tokens (arXiv:2006.11239, 2102.09672), and the terms of its lower bound.

A token x is noised in T steps, x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps, t = 0 .. T - 1, with abar = 1 before the
first. A network predicts eps, and a number v per channel that interpolates between the logarithms of beta_t and of the
variance of q(x_{t-1} | x_t, x).

    log p(x) >= - KL(q(x_{T-1} | x) || N(0, I)) - sum over t >= 1 of E KL(q(x_{t-1} | x_t, x) || p(x_{t-1} | x_t))
                + E log N(x; mean(x_0), beta_0)

The means differ by a multiple of eps_hat - eps, so every term is computed from that difference, without the division by
sqrt(abar_t), which is 5e-5 at the last step. The last term is a density with a fixed variance: the reference trains v
at t = 0 on bins of pixels, which mean nothing for latents. The first term, and the normalization of the last, are the
same for all networks (`Process.standard_divergence`).

Shapes: tokens are (..., Z), their steps of the diffusion (...) int64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 1000
MAX_BETA = 0.999
OFFSET = 0.008  # of the cosine schedule


class Process(NamedTuple):
    """T steps of noise, as tables (T,)."""

    abar: Tensor
    """How much of the token is in x_t, in squared size."""
    timestep: Tensor
    """int64: what the network is given for t."""
    signal: Tensor
    """sqrt(abar)."""
    noise: Tensor
    """sqrt(1 - abar)."""
    scale: Tensor
    """mean(x_t) = scale x_t - shift eps_hat."""
    shift: Tensor
    log_posterior: Tensor
    """Log variance of q(x_{t-1} | x_t, x). At t = 0, where it is -inf, that of t = 1 stands in its place."""
    log_ratio: Tensor
    """log beta_t minus `log_posterior`."""
    error_weight: Tensor
    """Nats that |eps_hat - eps|^2 costs with the variance of q(x_{t-1} | x_t, x), or beta_0 at t = 0."""

    @classmethod
    def of(cls, abar: Tensor, timestep: Tensor) -> Process:
        """The process with this abar, (T,) float64; its tables are float64 too."""
        before = torch.cat([abar.new_ones(1), abar[:-1]])
        beta = 1 - abar / before
        log_posterior = (beta * (1 - before) / (1 - abar)).log()
        log_posterior[0] = log_posterior[1]
        shift = beta / ((1 - beta) * (1 - abar)).sqrt()
        variance = torch.cat([beta[:1], log_posterior[1:].exp()])
        return cls(
            abar=abar,
            timestep=timestep,
            signal=abar.sqrt(),
            noise=(1 - abar).sqrt(),
            scale=(1 - beta).rsqrt(),
            shift=shift,
            log_posterior=log_posterior,
            log_ratio=beta.log() - log_posterior,
            error_weight=shift**2 / (2 * variance),
        )

    @classmethod
    def cosine(cls, steps: int = STEPS) -> Process:
        """The process of the training."""
        s = torch.arange(steps + 1, dtype=torch.float64) / steps
        curve = ((s + OFFSET) / (1 + OFFSET) * math.pi / 2).cos() ** 2
        beta = (1 - curve[1:] / curve[:-1]).clamp(max=MAX_BETA)
        return cls.of((1 - beta).cumprod(0), torch.arange(steps))

    def respaced(self, steps: int) -> Process:
        """A process of fewer steps, evenly among these, the first and the last included."""
        last = len(self.abar) - 1
        kept = [round(i * last / (steps - 1)) for i in range(steps)]
        return Process.of(self.abar[kept], self.timestep[kept])

    def to(self, device: torch.device) -> Process:
        """On this device, in float32."""
        return Process(*(x.to(device, torch.float32 if x.is_floating_point() else x.dtype) for x in self))

    def noised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t."""
        return self.signal[t][..., None] * x + self.noise[t][..., None] * noise

    def mean(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Of p(x_{t-1} | x_t), for the noise that the network predicts."""
        return self.scale[t][..., None] * x_t - self.shift[t][..., None] * eps

    def log_variance(self, t: Tensor, v: Tensor) -> Tensor:
        """Of p(x_{t-1} | x_t)."""
        return self.log_posterior[t][..., None] + (v + 1) / 2 * self.log_ratio[t][..., None]

    def divergence(self, t: Tensor, error: Tensor, v: Tensor) -> Tensor:
        """What step t takes from the bound, but for what no network changes, (...) nats.

        Args:
            error: eps_hat - eps. v: not used at t = 0.
        """
        wider = ((v + 1) / 2 * self.log_ratio[t][..., None]).masked_fill(t[..., None] == 0, 0.0)
        of_error = self.error_weight[t][..., None] * error**2 * (-wider).exp()
        return (0.5 * (wider + torch.expm1(-wider)) + of_error).sum(-1)

    def standard_divergence(self, t: Tensor, x_t: Tensor, noise: Tensor) -> Tensor:
        """The same of the network that is right if x has a standard normal distribution, (...) nats.

        Its noise is sqrt(1 - abar_t) x_t, its variance beta_t. All x_t are standard normal then, so its bound is the
        log density of x itself, and log p(x) of another network is at least

            log N(x; 0, I) + sum over t of E (standard_divergence - divergence).
        """
        error = self.noise[t][..., None] * x_t - noise
        return self.divergence(t, error, torch.ones_like(error))
