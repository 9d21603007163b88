"""Training of VAR: mean cross-entropy over positions, the class dropped to "unconditional" now and then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.layers.precision import tf32
from avarc_cli.models.var.network import VAR, VARConfig
from avarc_cli.tokenizers.vqvae import VQVAE, MultiScaleQuantizer
from avarc_cli.train.images import TrainingImages
from avarc_cli.train.loop import Progress, Recipe, fingerprint, train


class TokenBatches(Protocol):
    """What a generator is trained on; `str` of it says what that is."""

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """Tokens (B, L), class ids (B,), and the step's own generator: a function of the step alone."""
        ...


@dataclass(frozen=True)
class EncodedImages:
    """Batches of tokens that are made of augmented images when they are needed."""

    tokenizer: VQVAE
    images: TrainingImages

    def __str__(self) -> str:
        return str(self.images)

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, Tensor, torch.Generator]:
        """As TokenBatches; on the tokenizer's device."""
        x, label_B, generator = self.images.batch(step, batch_size)
        with torch.no_grad(), tf32(False):
            tokens_BL = self.tokenizer.tokenize(self.tokenizer.encode(x.to(self.tokenizer.quant_conv.weight.device)))
        return tokens_BL, label_B, generator


def train_var(
    config: VARConfig,
    tokenizer: VQVAE,
    data: TokenBatches,
    recipe: Recipe,
    checkpoint: Path,
    progress: Progress,
    *,
    class_dropout: float = 0.1,
    start: VAR | None = None,
) -> VAR:
    """A VAR fitted to the tokens of `data`, on the tokenizer's device; resumes from `checkpoint`.

    `start`: a VAR of that shape, which is trained further, in place; None begins anew.
    Raises: as `train`.
    """
    torch.manual_seed(recipe.seed)
    device = tokenizer.quant_conv.weight.device
    model = (initialise(VAR(config)) if start is None else start.requires_grad_(True)).to(device)

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        tokens_BL, label_B, generator = data.batch(step, recipe.batch_size)
        dropped_B = torch.rand(len(label_B), generator=generator) < class_dropout
        class_B = torch.where(dropped_B, config.num_classes, label_B)
        loss = token_loss(model, tokenizer.quantize, tokens_BL.to(device), class_B.to(device))
        return loss, {"bits/token": loss.item() / math.log(2)}

    made_of = f"tokens of {fingerprint(tokenizer)}, starting from {fingerprint(model)}"
    subject = f"{config} on {data}, {made_of}, class dropout {class_dropout}"
    train(model, loss_of_step, recipe, checkpoint, progress, subject=subject)
    return model


def token_loss(model: VAR, quantizer: MultiScaleQuantizer, tokens_BL: Tensor, class_B: Tensor) -> Tensor:
    """-log p(token | before, class) in nats, averaged over batch and positions; with gradients."""
    return -token_log_prob(model, quantizer, tokens_BL, class_B).mean()


def token_log_prob(model: VAR, quantizer: MultiScaleQuantizer, tokens_BL: Tensor, class_B: Tensor) -> Tensor:
    """log p(token | before, class) in nats, (B, L); with gradients."""
    with torch.no_grad(), tf32(False):
        teacher = quantizer.teacher_input(tokens_BL)
    x_BLC = torch.cat([model.embed_start(class_B), model.embed_rest(teacher)], dim=1)
    hidden_BLC = model.hidden(x_BLC, model.condition(class_B), model.config.ends)
    logits = model.head(hidden_BLC).flatten(0, 1)
    return -F.cross_entropy(logits, tokens_BL.flatten(), reduction="none").view_as(tokens_BL)


@torch.no_grad()
def initialise(model: VAR) -> VAR:
    """VAR's initialisation: truncated normal of std sqrt(1 / 3C); residual branches and the head start small."""
    c = model.config
    std = math.sqrt(1 / c.width / 3)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    for position in (model.pos_start, model.pos_1LC):
        nn.init.trunc_normal_(position, std=std)
    model.head.weight.mul_(0.02)
    _scale(model.head_nm.ada_lin, 0.5)
    for block in model.layers:
        block.attn.proj.weight.div_(math.sqrt(2 * c.depth))
        block.ffn.fc2.weight.div_(math.sqrt(2 * c.depth))
        if c.shared_aln:
            gates, others = block.ada_gss.normal_(std=1 / math.sqrt(c.width)).split([2, 4], dim=2)
            gates.mul_(1e-5)
            others.mul_(0.5)
        else:
            _scale(block.ada_lin, 0.5, gates=1e-5)
    return model


def _scale(ada_lin: nn.Sequential, factor: float, *, gates: float | None = None) -> None:
    """Scale the weights of a class modulation; its gates, the first third of six vectors, by their own factor."""
    weight = cast("nn.Linear", ada_lin[1]).weight
    count = 0 if gates is None else len(weight) // 3
    weight[count:].mul_(factor)
    weight[:count].mul_(gates or 1.0)
