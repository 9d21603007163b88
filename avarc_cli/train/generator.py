"""Training of VAR: mean cross-entropy over positions, the class dropped to "unconditional" now and then."""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.models.var import VAR, VARConfig
from avarc_cli.models.vqvae import VQVAE
from avarc_cli.train.images import TrainingImages
from avarc_cli.train.loop import Progress, Recipe, train


def train_var(
    config: VARConfig,
    tokenizer: VQVAE,
    images: TrainingImages,
    recipe: Recipe,
    checkpoint: Path,
    progress: Progress,
    *,
    class_dropout: float = 0.1,
) -> VAR:
    """A VAR fitted to the tokens of augmented `images`, on the tokenizer's device; resumes from `checkpoint`.

    Raises: as `train`.
    """
    torch.manual_seed(recipe.seed)
    device = tokenizer.quant_conv.weight.device
    model = initialise(VAR(config)).to(device)

    def loss_of_step(step: int) -> tuple[Tensor, dict[str, float]]:
        x, label_B, generator = images.batch(step, recipe.batch_size)
        with torch.no_grad():
            tokens_BL = tokenizer.tokenize(tokenizer.encode(x.to(device)))
            teacher = tokenizer.quantize.teacher_input(tokens_BL)
        dropped_B = torch.rand(len(label_B), generator=generator) < class_dropout
        class_B = torch.where(dropped_B, config.num_classes, label_B).to(device)
        x_BLC = torch.cat([model.embed_start(class_B), model.embed_rest(teacher)], dim=1)
        hidden_BLC, _ = model.hidden(x_BLC, model.condition(class_B), config.ends)
        loss = F.cross_entropy(model.head(hidden_BLC).flatten(0, 1), tokens_BL.flatten())
        return loss, {"bits/token": loss.item() / math.log(2)}

    subject = f"{config} on {images}, class dropout {class_dropout}"
    train(model, loss_of_step, recipe, checkpoint, progress, subject=subject)
    return model


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
