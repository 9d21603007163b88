"""MaskGen KL behind the LikelihoodModel interface (`masked.likelihood`): a lower bound of a density, in nats.

log p of a token, given visible tokens and the caption, is bounded by the evidence lower bound of its diffusion
(`diffusion`), a sum over 1000 steps. What is estimated, by importance sampling (`latent_noise`), is its difference to
the bound of a network for standard normal tokens, which is exactly their log density: the noise of the estimate mostly
cancels. Masks, steps and noise are the same for all captions. The densities are those of the latents as the tokenizer
gives them: the logarithm of the factor that the network multiplies them by is included.

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
from avarc_cli.models.maskgen import latent_loss, latent_noise
from avarc_cli.models.maskgen.captioned import CaptionedLikelihood, CaptionTable
from avarc_cli.models.maskgen.config import MaskGenKLConfig
from avarc_cli.models.maskgen.diffusion import Process
from avarc_cli.models.maskgen.latent_network import MaskGenKL
from avarc_cli.models.maskgen.latent_sampling import SCHEDULE, TokenSampler, sample
from avarc_cli.objective import Draw, Objective, StepLoss
from avarc_cli.text.features import CaptionFeatures


class MaskGenKLLikelihood(CaptionedLikelihood):
    """A bound of log p(tokens of a block | tokens of the blocks before, caption), for any order."""

    family = "maskgen-kl"
    is_bound = True
    trained_with: frozenset[str] = frozenset()
    default_guidance = SCHEDULE.guidance
    transformer: MaskGenKL
    config: MaskGenKLConfig

    def __init__(
        self, network: MaskGenKL, steps: int | None = None, *, unsmooth: float = 0.0, table: CaptionTable | None = None
    ) -> None:
        """As `CaptionedLikelihood`. Raises: UsageError also for `unsmooth`."""
        if unsmooth:
            why = "label smoothing is about codes"
            raise UsageError("--unsmooth is not for a model of continuous tokens", why, "leave out --unsmooth")
        super().__init__(network, steps, table=table)
        self.channels = self.config.channels
        self.sampler = SCHEDULE.settings(self.config.num_tokens)
        process = Process.cosine()
        self.process, self.probability = process.to(self.device), latent_noise.step_probabilities(process)
        self.flops_per_token += self.steps * latent_noise.EVALUATIONS * network.head.flops

    def score_block(self, state: MaskedState, start: int, end: int) -> Tensor:
        head, process, row_P = self.transformer.head, self.process, state.sequence_P
        x_BLZ = state.tokens_BL * self.config.scale_factor
        z_PLC = self.transformer.conditions(self.captions, state.class_id_P, x_BLZ[row_P], state.visible(start)[row_P])
        asked_BT = state.order_BL[:, start:end]
        x_BTZ, condition_PTW = _at(x_BLZ, asked_BT), head.conditions(_at(z_PLC, asked_BT[row_P]))
        order_BL = state.given_order().cpu().numpy()
        drawn = latent_noise.draw(order_BL, start, end, self.channels, self.probability).to(self.device)
        x_t_BSZ = process.noised(_at(x_BTZ, drawn.token_BS), drawn.t_BS, drawn.noise_BSZ)
        standard_BS = process.standard_divergence(drawn.t_BS, x_t_BSZ, drawn.noise_BSZ)
        bound_PT = _log_standard_normal(x_BTZ)[row_P] + self.channels * math.log(self.config.scale_factor)
        for part in torch.arange(len(drawn.t_BS[0]), device=self.device).split(self.config.num_tokens):
            t_PS, token_PS = drawn.t_BS[:, part][row_P], drawn.token_BS[:, part][row_P]
            rows = x_t_BSZ[:, part][row_P], process.timestep[t_PS], _at(condition_PTW, token_PS)
            eps_PSZ, v_PSZ = (x.unflatten(0, t_PS.shape) for x in head(*(x.flatten(0, 1) for x in rows)))
            gain_PS = standard_BS[:, part][row_P]
            gain_PS = gain_PS - process.divergence(t_PS, eps_PSZ - drawn.noise_BSZ[:, part][row_P], v_PSZ)
            bound_PT = bound_PT + (drawn.weight_BTS[:, :, part][row_P] @ gain_PS[..., None])[..., 0]
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

    def draw(self, count: int, objective: Objective, generator: torch.Generator) -> Draw:
        """Tokens that are hidden, and the steps and the noise of their diffusions."""
        return latent_loss.draw(count, self.config.num_tokens, self.channels, generator)

    def caption_loss(
        self,
        tokens_BL: Tensor,
        features: CaptionFeatures,
        dropped_B: Tensor,
        objective: Objective,
        draw: Draw,
        *,
        score_B: Tensor | None = None,
    ) -> StepLoss:
        """The loss of the hidden tokens' diffusions (`latent_loss`); a dropped caption is the empty one.

        Raises: as `trained_captions`.
        """
        assert draw.hidden_BL is not None, "of another model"
        hidden_BL, device = draw.hidden_BL.to(self.device), self.device
        x_BLZ, row_B = tokens_BL.to(device) * self.config.scale_factor, torch.arange(len(tokens_BL), device=device)
        captions = self.trained_captions(features, dropped_B, score_B)
        z_BLC = self.transformer.conditions(captions, row_B, x_BLZ, ~hidden_BL)
        loss = latent_loss.token_loss(self.transformer.head, self.process, x_BLZ, z_BLC, hidden_BL, draw)
        return loss._replace(mean=self.with_unread(loss.mean))

    def checkpoint_metadata(self) -> dict[str, str]:
        return super().checkpoint_metadata() | {"scale_factor": repr(self.config.scale_factor)}


def _log_standard_normal(x: Tensor) -> Tensor:
    """Log density of (..., Z), (...)."""
    return -0.5 * (x**2 + math.log(2 * math.pi)).sum(-1)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Rows of values (N, M, X) at these places (N, K), (N, K, X)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
