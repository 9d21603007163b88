"""Losses of a discriminator and of what it judges.

Shapes: any; logits are larger for what looks real.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

LECAM_DECAY = 0.999


def hinge(real: Tensor, fake: Tensor, *, halved: bool) -> Tensor:
    """The discriminator's loss from its logits (arXiv:1705.02894); LlamaGen and TiTok halve it, VAR does not."""
    loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    return loss / 2 if halved else loss


class LeCam:
    """Keeps logits near the averages of the other kind (arXiv:2104.03310): for small data sets."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.real, self.fake = torch.zeros((), device=device), torch.zeros((), device=device)

    def __call__(self, real: Tensor, fake: Tensor) -> Tensor:
        """The regularizer for these logits, which then enter the averages."""
        real_mean, fake_mean = real.mean(), fake.mean()
        loss = F.relu(real_mean - self.fake).square() + F.relu(self.real - fake_mean).square()
        self.real = torch.lerp(real_mean.detach(), self.real, LECAM_DECAY)
        self.fake = torch.lerp(fake_mean.detach(), self.fake, LECAM_DECAY)
        return loss


def adaptive_weight(error: Tensor, judged: Tensor, last: Tensor, bounds: tuple[float, float], epsilon: float) -> Tensor:
    """The factor of the loss `judged` that makes its gradient as long as that of `error` (arXiv:2012.09841, eq. 7).

    Args:
        last: the weight at which gradients are compared, that of the decoder's last convolution. Neither loss has
            gone backward yet.
    """
    lengths = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (error, judged)]
    return (lengths[0] / (lengths[1] + epsilon)).clamp(*bounds)
