"""How a tokenizer uses its codes while it is trained, and how codes that fall out of use are brought back.

Shapes: M vectors of a batch, N chosen codes of it, Z channels, V codes, K scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_cli.layers.collectives import add_up
from avarc_kernels import nearest_code

WINDOW = 65536  # indices
DECAY = 0.99  # of the shares by which codes are moved
SLOPE = 10.0  # how soon a code that is used stays where it is
FIRST, LATER, FIRST_UPDATES = 0.9, 0.99, 100  # decay of the counts per scale, and how long the first one holds
MARGIN = 0.08  # of a uniform share of the counts, from which a code is in use


class RecentCodes:
    """The last 65,536 chosen codes, as LlamaGen's tokenizer keeps them: at first all are code 0."""

    def __init__(self, vocab_size: int, device: torch.device | None = None) -> None:
        self.vocab_size = vocab_size
        self.window = torch.zeros(WINDOW, dtype=torch.int64, device=device)

    def add(self, tokens_N: Tensor) -> None:
        self.window = torch.cat([self.window, tokens_N])[-WINDOW:]

    def share(self) -> float:
        """Fraction of the codes that occur in the window."""
        return len(self.window.unique()) / self.vocab_size


class ScaleUsage:
    """Moving averages of how often each scale chooses each code, as VAR's quantizer keeps them.

    It counts updates over all scales, so that only the first update of the first scale is copied.
    """

    def __init__(self, num_scales: int, vocab_size: int, device: torch.device | None = None) -> None:
        self.counts_KV = torch.zeros(num_scales, vocab_size, device=device)
        self.updates = 0

    def add(self, scale: int, tokens_N: Tensor) -> None:
        """Count the codes that this scale chose for a batch, in all processes."""
        counts_V = add_up(tokens_N.flatten().bincount(minlength=self.counts_KV.shape[1]))
        decay = 0.0 if self.updates == 0 else FIRST if self.updates < FIRST_UPDATES else LATER
        self.counts_KV[scale].mul_(decay).add_(counts_V, alpha=1 - decay)
        self.updates += 1

    def percent(self, cells: int) -> Tensor:
        """Percentage of codes in use at each scale, (K,).

        Args:
            cells: latents of the batches of all processes, at the last scale. Scales of few cells cannot reach 100 %.
        """
        return 100 * (self.counts_KV >= MARGIN * cells / self.counts_KV.shape[1]).float().mean(1)


class Reanchoring:
    """Moves codes that are rarely used to the nearest vectors of the batch (CVQ-VAE, arXiv:2307.15139; TA-TiTok)."""

    def __init__(self, codebook_VZ: Tensor) -> None:
        """codebook_VZ: the network's own, which is changed in place."""
        self.codebook_VZ = codebook_VZ
        self.share_V = torch.zeros(len(codebook_VZ), device=codebook_VZ.device)

    @torch.no_grad()
    def update(self, vectors_MZ: Tensor, tokens_N: Tensor) -> None:
        """After the loss of a batch: `vectors_MZ` is what the codes had to stand for, `tokens_N` what was chosen.

        Of all processes.
        """
        count = len(self.share_V)
        share_V = tokens_N.bincount(minlength=count) / len(tokens_N)
        self.share_V.mul_(DECAY).add_(share_V, alpha=1 - DECAY)
        moved_V1 = torch.exp(-SLOPE * count * self.share_V / (1 - DECAY) - 1e-3)[:, None]
        nearest_VZ = vectors_MZ[nearest_code(self.codebook_VZ.data, vectors_MZ)]
        # Behind autograd's back, before the backward pass, which needs the codes as they were only by value.
        self.codebook_VZ.data = torch.lerp(self.codebook_VZ.data, nearest_VZ, moved_V1)
