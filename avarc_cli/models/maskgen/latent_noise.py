"""The random numbers of MaskGen KL's bound: at which steps of the diffusion each token is tried, with what noise.

A pass evaluates the head EVALUATIONS * L times, whatever the number k of tokens that it scores. So few tokens, which
count L / k each in a draw of the order-agnostic bound, have many evaluations each.

Shapes: B token sequences, L tokens, T tokens of a block, S evaluations, Z channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avarc_cli.models.maskgen.diffusion import Process

FloatT = npt.NDArray[np.float64]

# Evaluations of the head per pass and token of the sequence: a quarter of the transformer's operations.
EVALUATIONS = 4
# The mean squared error of the noise that steps are drawn for, beyond that of a token of unit variance. A choice: it
# gives a tenth of the draws to the last step, where errors count 500-fold.
ERROR_FLOOR = 1e-3


def step_probabilities(process: Process) -> FloatT:
    """How often each step of the diffusion is drawn: in proportion to what it is expected to take from the bound.

    That is, by the network that is right for a standard normal distribution: the squared error of its noise at t is
    abar_t on average, and its variance beta_t.
    """
    every, squared = torch.arange(len(process.abar)), process.abar + ERROR_FLOOR
    expected: FloatT = process.divergence(every, squared.sqrt()[:, None], torch.ones(len(every), 1)).numpy()
    return expected / expected.sum()


@dataclass(frozen=True)
class Draws:
    """The evaluations of one pass."""

    t_BS: Tensor
    """Steps of the diffusion, int64."""
    noise_BSZ: Tensor
    """Standard normal, float32."""
    weight_BTS: Tensor
    """What an evaluation counts in a token's sum over all steps, float32; 0 in other tokens'."""
    token_BS: Tensor
    """Which token of the block is evaluated, int64."""

    def to(self, device: torch.device) -> Draws:
        return Draws(**{name: x.to(device) for name, x in vars(self).items()})


def draw(order_BL: npt.NDArray[np.int64], start: int, end: int, channels: int, probability: FloatT) -> Draws:
    """The evaluations of the block from start to before end: a function of each sequence's order and the block alone.

    Args:
        order_BL: as `LikelihoodModel.begin` is given it: ~p for a token at p that is given, and not evaluated.
    """
    evaluations, cumulated = EVALUATIONS * order_BL.shape[1], probability.cumsum()
    number = np.arange(evaluations)
    t_BS = np.empty((len(order_BL), evaluations), dtype=np.int64)
    token_BS, noise_BSZ = np.empty_like(t_BS), np.empty((*t_BS.shape, channels), dtype=np.float32)
    weight_BTS = np.zeros((len(order_BL), end - start, evaluations), dtype=np.float32)
    for b, row in enumerate(order_BL):
        generator = _generator(row, start)
        scored = np.flatnonzero(row[start:end] >= 0)
        which, rank = number % len(scored), number // len(scored)
        times = np.bincount(which)[which]
        # Stratified: the draws of a token are one in each of as many equal parts of the distribution of steps.
        u = (rank + generator.random(len(scored))[which]) / times
        t_BS[b] = np.minimum(np.searchsorted(cumulated, u, side="right"), len(cumulated) - 1)
        token_BS[b] = scored[which]
        weight_BTS[b, token_BS[b], number] = 1 / (times * probability[t_BS[b]])
        noise_BSZ[b] = generator.standard_normal((evaluations, channels), dtype=np.float32)
    return Draws(*map(torch.from_numpy, (t_BS, noise_BSZ, weight_BTS, token_BS)))


def _generator(row_L: npt.NDArray[np.int64], start: int) -> np.random.Generator:
    """A counter-based stream of its own for each order and block."""
    digest = hashlib.blake2b(row_L.astype("<i8").tobytes(), digest_size=16).digest()
    key, counter = np.frombuffer(digest, dtype="<u8"), np.array([0, 0, 0, start], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))
