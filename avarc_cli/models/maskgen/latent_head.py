"""The head of MaskGen KL: a small network that predicts the noise in one token, given what the transformer says of it.

Shapes: N rows (a noised token each), Z channels of a token, C width of the transformer, W width of the head.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.linears import linear
from avarc_cli.layers.precision import Precision

FREQUENCIES = 256  # sinusoids of a time step
BASE = 10000.0
EPS = 1e-6


def _mlp(width_in: int, width: int) -> nn.ModuleList:
    """Linear, SiLU, linear, under the published names."""
    return nn.ModuleList([nn.Linear(width_in, width), nn.Identity(), nn.Linear(width, width)])


def _modulation(width: int, vectors: int) -> nn.ModuleList:
    """SiLU and linear, under the published names."""
    return nn.ModuleList([nn.Identity(), nn.Linear(width, vectors * width)])


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = _mlp(FREQUENCIES, width)

    def forward(self, t_N: Tensor) -> Tensor:
        """Time steps (N,) as (N, W)."""
        half = FREQUENCIES // 2
        exponent = -math.log(BASE) * torch.arange(half, dtype=torch.float32, device=t_N.device) / half
        angle = t_N[:, None].float() * exponent.exp()
        return linear(self.mlp[2], F.silu(linear(self.mlp[0], torch.cat([angle.cos(), angle.sin()], dim=-1))))


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, EPS)
        self.mlp, self.adaLN_modulation = _mlp(width, width), _modulation(width, 3)

    def forward(self, x_NW: Tensor, condition_NW: Tensor) -> Tensor:
        """The residual stream (N, W) float32 after the block; condition: SiLU applied."""
        shift, scale, gate = linear(self.adaLN_modulation[1], condition_NW).float().chunk(3, dim=-1)
        normed = torch.addcmul(shift, self.in_ln(x_NW), 1 + scale)
        y_NW = linear(self.mlp[2], F.silu(linear(self.mlp[0], normed)))
        return torch.addcmul(x_NW, gate, y_NW.float())


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.adaLN_modulation = nn.Linear(width, outputs), _modulation(width, 2)

    def forward(self, x_NW: Tensor, condition_NW: Tensor) -> Tensor:
        """(N, outputs) float32."""
        shift, scale = linear(self.adaLN_modulation[1], condition_NW).chunk(2, dim=-1)
        return linear(self.linear, torch.addcmul(shift, F.layer_norm(x_NW, x_NW.shape[-1:], eps=EPS), 1 + scale))


class TokenHead(nn.Module):
    """`net` holds it under the published names."""

    def __init__(self, channels: int, width: int, depth: int, condition: int) -> None:
        super().__init__()
        self.time_embed, self.cond_embed = TimeEmbedding(width), nn.Linear(condition, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def conditions(self, z: Tensor) -> Tensor:
        """What the head reads of the transformer's output (..., C), the same for every time step: (..., W)."""
        return linear(self.cond_embed, z)

    def forward(self, x_NZ: Tensor, t_N: Tensor, condition_NW: Tensor) -> tuple[Tensor, Tensor]:
        """The noise in x_t, and how its variance interpolates (`diffusion.Process.log_variance`), both (N, Z) float32.

        Args:
            t_N: time steps of 0 .. 999. condition_NW: of `conditions`.
        """
        condition_NW = F.silu(self.time_embed(t_N) + condition_NW)
        x_NW = linear(self.input_proj, x_NZ)
        for block in self.res_blocks:
            x_NW = block(x_NW, condition_NW)
        eps_NZ, v_NZ = self.final_layer(x_NW, condition_NW).chunk(2, dim=-1)
        return eps_NZ, v_NZ

    def set_precision(self, precision: Precision) -> None:
        """Run the blocks in the dtype of activations, never in 8 bits; what reads and writes tokens stays float32.

        At the last time step, squared errors of the noise count 500-fold.
        """
        for block in cast("list[ResidualBlock]", list(self.res_blocks)):
            for layer in (block.mlp[0], block.mlp[2], block.adaLN_modulation[1]):
                layer.to(precision.activations)

    @property
    def flops(self) -> int:
        """Operations of one row; a multiply-add counts as 2."""
        return 2 * sum(p.numel() for p in self.parameters() if p.ndim == 2)
