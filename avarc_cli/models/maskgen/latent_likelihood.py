"""MaskGen KL behind the LikelihoodModel interface (`masked.likelihood`): a lower bound of a density, in nats.

log p of a token, given visible tokens and the caption, is bounded by the evidence lower bound of its diffusion
(`diffusion`), a sum over 1000 steps that is estimated by importance sampling (`latent_noise`). Masks, steps and noise
are the same for all captions. The densities are those of the latents as the tokenizer gives them: the logarithm of the
factor that the network multiplies them by is included.

Shapes: B token sequences, P pairs, L tokens, T tokens of a block, S evaluations of the head, Z channels of a token,
C width, W width of the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from avarc_cli.errors import UsageError
from avarc_cli.layers.precision import inference
from avarc_cli.models.masked.likelihood import MaskedState
from avarc_cli.models.maskgen import latent_noise
from avarc_cli.models.maskgen.captioned import CaptionedLikelihood, CaptionTable
from avarc_cli.models.maskgen.diffusion import Process
from avarc_cli.models.maskgen.latent_network import MaskGenKL
from avarc_cli.models.maskgen.latent_sampling import SCHEDULE, TokenSampler, sample


class MaskGenKLLikelihood(CaptionedLikelihood):
    """A bound of log p(tokens of a block | tokens of the blocks before, caption), for any order."""

    family = "maskgen-kl"
    is_bound = True
    default_guidance = SCHEDULE.guidance
    transformer: MaskGenKL

    def __init__(
        self, network: MaskGenKL, steps: int | None = None, *, unsmooth: float = 0.0, table: CaptionTable | None = None
    ) -> None:
        """As `CaptionedLikelihood`. Raises: UsageError also for `unsmooth`."""
        if unsmooth:
            why = "label smoothing is about codes"
            raise UsageError("--unsmooth is not for a model of continuous tokens", why, "leave out --unsmooth")
        super().__init__(network, steps, table=table)
        self.config = network.config
        self.channels = self.config.channels
        self.process = Process.cosine()
        self.probabilities = latent_noise.step_probabilities(self.process)
        self.process = self.process.to(self.device)
        self.flops_per_token += self.steps * latent_noise.EVALUATIONS * network.head.flops

    def score_block(self, state: MaskedState, start: int, end: int) -> Tensor:
        head, process, row_P = self.transformer.head, self.process, state.sequence_P
        x_BLZ = state.tokens_BL * self.config.scale_factor
        asked_BT = state.order_BL[:, start:end]
        x_BTZ = _at(x_BLZ, asked_BT)
        z_PLC = self.transformer.conditions(self.captions, state.class_id_P, x_BLZ[row_P], state.visible(start)[row_P])
        condition_PTW = head.conditions(_at(z_PLC, asked_BT[row_P]))
        drawn = latent_noise.draw(state.given_order().cpu().numpy(), start, end, self.channels, self.probabilities).to(
            self.device
        )
        t_N = drawn.t_BS.flatten()
        x_t_BSZ = process.noised(_at(x_BTZ, drawn.token_BS).flatten(0, 1), t_N, drawn.noise_BSZ.flatten(0, 1))
        x_t_BSZ = x_t_BSZ.view_as(drawn.noise_BSZ)
        bound_PT = (process.constant(x_BTZ) + self.channels * math.log(self.config.scale_factor))[row_P]
        for part in torch.arange(drawn.t_BS.shape[1], device=self.device).split(self.config.num_tokens):
            t_N, token_PS = drawn.t_BS[:, part][row_P].flatten(), drawn.token_BS[:, part][row_P]
            eps_NZ, v_NZ = head(
                x_t_BSZ[:, part][row_P].flatten(0, 1), process.timestep[t_N], _at(condition_PTW, token_PS).flatten(0, 1)
            )
            error_NZ = eps_NZ - drawn.noise_BSZ[:, part][row_P].flatten(0, 1)
            cost_PS1 = process.divergence(t_N, error_NZ, v_NZ).view_as(token_PS)[..., None]
            bound_PT = bound_PT - (drawn.weight_BTS[:, :, part][row_P] @ cost_PS1)[..., 0]
        return bound_PT

    @inference
    def sample(
        self,
        class_id_B: Tensor,
        *,
        generators: Sequence[torch.Generator],
        guidance: float = SCHEDULE.guidance,
        top_k: int = 0,
        top_p: float = 0.0,
    ) -> Tensor:
        """Continuous tokens (B, L, Z) float32, by the reference's sampler; otherwise as `LikelihoodModel.sample`.

        Raises: UsageError for guidance without the features of the empty caption, for `top_k` and for `top_p`.
        """
        if top_k or top_p:
            option = "--top-k" if top_k else "--top-p"
            raise UsageError(f"{option} restricts codes", "the tokens of this model are continuous", "leave it out")
        rows = class_id_B.to(self.device), self.unconditional
        tokens = TokenSampler(self.transformer.head, generators, self.device)
        return sample(self.transformer, self.captions, *rows, SCHEDULE, generators, guidance, tokens)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Rows of values (N, M, X) at these places (N, K), (N, K, X)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
