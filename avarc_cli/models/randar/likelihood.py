"""RandAR behind the LikelihoodModel interface: the segments are runs of positions along the order, one for each row.

Shapes: B token sequences, P pairs, L tokens, M of them that are not revealed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli.layers.kv_cache import Workspace
from avarc_cli.layers.precision import inference
from avarc_cli.likelihood import SamplerSettings
from avarc_cli.models.llamagen.likelihood import LlamaGenLikelihood
from avarc_cli.models.llamagen.network import Inputs
from avarc_cli.models.randar.network import RandAR, steps
from avarc_cli.models.randar.sampling import default_steps, sample
from avarc_cli.objective import Draw, Objective


class RandARLikelihood(LlamaGenLikelihood):
    """log p(tokens of a run | runs before in the order, class), for any runs.

    To score tokens start .. stop - 1 of an order, the network evaluates two positions for each: the token before (the
    class before the first one), and the instruction that asks for it.
    """

    family = "randar"
    any_order = True
    default_orders = 20  # arXiv:2603.19122
    has_block_parallel = True
    gpt: RandAR

    def __init__(self, network: RandAR, workspace: Workspace | None = None) -> None:
        super().__init__(network, workspace)
        passes = default_steps(self.segment_ends[-1])
        self.sampler = SamplerSettings(schedule="linear over the tokens, from 0", steps=passes)

    def _token_inputs(
        self, tokens_BL: Tensor, order_BL: Tensor | None, start: int, end: int, *, kernels: str | None = None
    ) -> Inputs:
        positions = steps(2 * start, 2 * end, tokens_BL.device)
        return self.gpt.step_inputs(_given(order_BL, tokens_BL), tokens_BL, *positions, kernels=kernels)

    @inference
    def block_parallel(
        self,
        tokens_BL: Tensor,
        sequence_P: Tensor,
        class_id_P: Tensor,
        order_BL: Tensor | None = None,
        *,
        revealed: int,
    ) -> Tensor:
        state = self.begin(tokens_BL, sequence_P, class_id_P, order_BL)
        device, length = state.tokens_BL.device, self.segment_ends[-1]
        if not 0 <= revealed < length:
            raise ValueError(f"{revealed} tokens cannot be revealed of {length}")
        prefix = 1 + 2 * revealed
        step_T, asks_T = steps(0, prefix, device)
        hidden_M = torch.arange(revealed, length, device=device)
        step_T, asks_T = torch.cat([step_T, hidden_M]), torch.cat([asks_T, torch.ones_like(hidden_M, dtype=torch.bool)])
        inputs = self.gpt.step_inputs(_given(state.order_BL, state.tokens_BL), state.tokens_BL, step_T, asks_T)
        inputs = inputs.rows(state.sequence_P).after(self.gpt.class_inputs(state.class_id_P))
        visible_TT = torch.ones(1 + len(step_T), 1 + len(step_T), dtype=torch.bool, device=device).tril()
        visible_TT[prefix:, prefix:] = torch.eye(length - revealed, dtype=torch.bool, device=device)
        hidden = self.gpt.hidden(inputs, mask_TT=visible_TT, returned=1 + asks_T.nonzero()[:, 0])
        return self._log_prob(hidden, state.tokens_BL[state.sequence_P])

    @inference
    def sample(
        self,
        class_id_B: Tensor,
        *,
        generators: Sequence[torch.Generator],
        guidance: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
    ) -> Tensor:
        return sample(self.gpt, class_id_B, generators=generators, guidance=guidance, top_k=top_k, top_p=top_p)

    def draw(self, count: int, objective: Objective, generator: torch.Generator) -> Draw:
        """Random orders, whatever `objective.permuted`."""
        return Draw(torch.stack([torch.randperm(self.segment_ends[-1], generator=generator) for _ in range(count)]))


def _given(order_BL: Tensor | None, tokens_BL: Tensor) -> Tensor:
    """The order, or that of the positions."""
    if order_BL is not None:
        return order_BL
    return torch.arange(tokens_BL.shape[1], device=tokens_BL.device).expand_as(tokens_BL)
