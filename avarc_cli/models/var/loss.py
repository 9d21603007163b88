"""VAR's log-likelihood with gradients, which its training losses are made of.

Shapes: B token sequences, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avarc_cli.layers.precision import check_gradients, tf32
from avarc_cli.models.var.network import VAR
from avarc_cli.tokenizers.vqvae.network import MultiScaleQuantizer


def token_log_prob(var: VAR, quantizer: MultiScaleQuantizer, tokens_BL: Tensor, class_id_B: Tensor) -> Tensor:
    """log p(token | coarser scales, class) in nats, (B, L).

    Raises: UsageError for a model in 8 bits, whose products have no gradients.
    """
    check_gradients(var.precision)
    with torch.no_grad(), tf32(False):
        teacher = quantizer.teacher_input(tokens_BL)
    x_BLC = torch.cat([var.embed_start(class_id_B), var.embed_rest(teacher)], dim=1)
    # Our own kernels have no gradients. Torch's run here also without gradients, so that losses are comparable.
    hidden_BLC = var.hidden(x_BLC, var.condition(class_id_B), var.config.ends, kernels="torch")
    logits = var.head(hidden_BLC).flatten(0, 1)
    return -F.cross_entropy(logits, tokens_BL.flatten(), reduction="none").view_as(tokens_BL)
