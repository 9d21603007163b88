"""RandAR's transformer (arXiv:2412.01827): p(token | tokens before it in any order, class).

Checkpoint-compatible with the published models. The network is LlamaGen's; what differs is the sequence that it reads.
An order o lists the L cells of the grid. Every token is preceded by an instruction, which says the cell that it is of:

    [class, q(o_0), x(o_0), q(o_1), x(o_1), ..., q(o_L-1)]

The hidden state of an instruction scores the token after it. All instructions are one vector, turned by the rotation of
their cell. In attention, instruction and token are turned by that rotation as well; the place in the sequence plays no
part. Only the class depends on the class: the inputs of all other positions are computed once per image and order.

Steps count the tokens from 0. Step t has the positions 2t + 1 (instruction) and 2t + 2 (token).

Shapes: B sequences, T positions, L cells or steps, C width, H heads, D head width, J = D / 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avarc_cli.models.llamagen.config import LlamaGenConfig
from avarc_cli.models.llamagen.network import Inputs, LlamaGen
from avarc_kernels import rotary


class RandAR(LlamaGen):
    """The transformer. Class id `num_classes` is the unconditional class."""

    drops_class = False

    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__(config)
        self.pos_instruct_embeddings = nn.Parameter(torch.zeros(1, config.width))

    def instructions(self) -> Tensor:
        """The instruction of every cell, (L, C)."""
        heads_11HD = self.pos_instruct_embeddings.view(1, 1, self.config.heads, self.config.head_width)
        cells = len(self.table_LJ2) - 1
        return rotary(heads_11HD.expand(1, cells, -1, -1), self.table_LJ2[1:])[0].flatten(1)

    def step_inputs(
        self, order_BL: Tensor, tokens_BL: Tensor, step_T: Tensor, asks_T: Tensor, *, kernels: str | None = None
    ) -> Inputs:
        """Of these positions of the sequence.

        Args:
            order_BL: cell of each step. tokens_BL: token of each step; those of steps that are only asked for are not
                looked at.
            step_T: of each position. asks_T: whether the position is the step's instruction, else its token.
            kernels: as for `hidden`.
        """
        cell_BT = order_BL[:, step_T]
        embedded_BTC = self.drop(self.tok_embeddings(tokens_BL[:, step_T]))
        x_BTC = torch.where(asks_T[:, None], self.instructions()[cell_BT], embedded_BTC)
        return self.with_qkv(x_BTC, self.table_LJ2[1 + cell_BT], kernels)


def steps(start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Step of the positions start .. stop - 1 (T,) without the class at 0, and whether it is the step's instruction."""
    position_T = torch.arange(max(start, 1), stop, device=device)
    return (position_T - 1) // 2, position_T % 2 == 1
