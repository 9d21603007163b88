"""VAR's log-likelihood with gradients, and the loss that its published training minimizes.

Shapes: B token sequences, L tokens, T of them in the scales that are trained, D blocks, V codes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avarc_cli.layers.precision import check_gradients, tf32
from avarc_cli.models.var.config import VARConfig
from avarc_cli.models.var.network import VAR
from avarc_cli.objective import Draw, Objective, Stage, StepLoss, token_losses
from avarc_cli.tokenizers.vqvae.network import MultiScaleQuantizer

# Of VAR's code, anywhere in a name: class_emb and word_embed do decay.
UNDECAYED = ("bias", "pos_start", "pos_1LC", "lvl_embed", "gamma", "beta", "ada_gss", "scale_mul")


def token_logits(
    var: VAR,
    quantizer: MultiScaleQuantizer,
    tokens_BL: Tensor,
    class_id_B: Tensor,
    *,
    scales: int | None = None,
    branches_D2B: Tensor | None = None,
) -> Tensor:
    """Logits of the tokens of all scales, each given the coarser ones and the class, (B, T, V) with gradients.

    Args:
        scales: how many are evaluated, from the coarsest on; None for all.
        branches_D2B: what the output of each block's attention and MLP is multiplied by; None for 1.
    Raises: UsageError for a model in 8 bits, whose products have no gradients.
    """
    check_gradients(var.precision)
    ends = var.config.ends[:scales]
    with torch.no_grad(), tf32(False), torch.autocast(tokens_BL.device.type, enabled=False):
        teacher = quantizer.teacher_input(tokens_BL)
    x_BTC = torch.cat([var.embed_start(class_id_B), var.embed_rest(teacher)], dim=1)[:, : ends[-1]]
    condition = var.condition(class_id_B)
    if branches_D2B is not None:
        condition = condition.skipping(branches_D2B)
    # Our own kernels have no gradients. Torch's run here also without gradients, so that losses are comparable.
    logits: Tensor = var.head(var.hidden(x_BTC, condition, ends, kernels="torch"))
    return logits


def training_loss(
    var: VAR,
    quantizer: MultiScaleQuantizer,
    tokens_BL: Tensor,
    class_id_B: Tensor,
    objective: Objective,
    draw: Draw,
) -> StepLoss:
    """The mean over images of the sum of cross-entropies over L, whatever scales are trained (arXiv:2404.02905)."""
    config, factor_D2B = var.config, None
    if draw.kept_D2B is not None:
        kept_D2B = draw.kept_D2B.to(tokens_BL.device)
        rate_D11 = path_rates(config.depth, objective.drop_path).to(kept_D2B.device)[:, None, None]
        factor_D2B = torch.where(rate_D11 > 0, kept_D2B / (1 - rate_D11), 1.0)
    scales = None if objective.stage is None else objective.stage.segments
    logits_BTV = token_logits(var, quantizer, tokens_BL, class_id_B, scales=scales, branches_D2B=factor_D2B)
    losses_BT, correct_BT = token_losses(logits_BTV, tokens_BL[:, : logits_BTV.shape[1]], objective.smoothing)
    if objective.stage is None:
        loss = losses_BT.mean()
    else:
        loss = (losses_BT * stage_weights(config, objective.stage).to(losses_BT.device)).sum(1).mean()
    return StepLoss(loss, correct_BT.float().mean())


def stage_weights(config: VARConfig, stage: Stage) -> Tensor:
    """Weight of every trained position in the loss of one image, (T,)."""
    weight_T = torch.full((config.ends[stage.segments - 1],), 1 / config.ends[-1])
    weight_T[-(config.patch_nums[stage.segments - 1] ** 2) :] *= stage.newest
    return weight_T


def path_rates(depth: int, rate: float) -> Tensor:
    """How often each block's branches are skipped, (D,): from 0 in the first block linearly to `rate` in the last."""
    return torch.linspace(0.0, rate, depth)


def kept_branches(depth: int, count: int, rate: float, generator: torch.Generator) -> Tensor | None:
    """Which of each block's branches each of `count` sequences takes, (D, 2, count) bool; None where all are taken."""
    if not rate:
        return None
    return torch.rand(depth, 2, count, generator=generator) >= path_rates(depth, rate)[:, None, None]
