"""A training step of VAR, LlamaGen and MaskGIT as one writes it down first, in eager PyTorch.

`training.py` times our trainer against it. The forward pass is that of the families' `reference` modules.

Shapes: B images, L tokens, T of the scales after the first, C width, Z latent channels, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.models.llamagen import reference as plain_llamagen
from avarc_cli.models.masked.loss import random_masks
from avarc_cli.models.maskgit import reference as plain_maskgit
from avarc_cli.models.var import reference as plain_var
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.train.recipe import Recipe
from avarc_cli.trainable import TrainableModel


class PlainLoop:
    """A step of training as one writes it down first."""

    def __init__(self, model: TrainableModel, tokenizer: TokenizerNetwork, recipe: Recipe) -> None:
        self.recipe, self.classes = recipe, model.num_classes
        self.weights = {name: p.detach().clone().requires_grad_() for name, p in model.network.named_parameters()}
        self.average = {name: p.detach().clone() for name, p in self.weights.items()}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=recipe.lr, betas=recipe.betas, weight_decay=0.0)
        self.loss = {"var": _var_loss, "llamagen": _llamagen_loss, "maskgit": _maskgit_loss}[model.family]
        self.about = {"tokenizer": tokenizer, "config": model.config}

    def step(self, tokens_BL: Tensor, labels_B: Tensor, generator: torch.Generator) -> float:
        """The loss before the update."""
        dropped_B = torch.rand(len(labels_B), generator=generator) < self.recipe.class_dropout
        class_B = torch.where(dropped_B, self.classes, labels_B)
        loss = self.loss(self.weights, tokens_BL, class_B, generator, **self.about)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights.values(), 2.0)
        self.optimizer.step()
        with torch.no_grad():
            for name, weight in self.weights.items():
                self.average[name].mul_(0.999).add_(weight, alpha=0.001)
        return loss.item()


def _var_loss(
    w: Mapping[str, Tensor], tokens_BL: Tensor, class_B: Tensor, _: torch.Generator, *, tokenizer: Any, config: Any
) -> Tensor:
    counts = torch.tensor([side * side for side in config.patch_nums])
    levels = {"lvl_1L": torch.arange(len(counts)).repeat_interleave(counts)}
    with torch.no_grad():
        teacher_BTZ = tokenizer.quantize.teacher_input(tokens_BL)
    logits_BLV = plain_var.logits({**w, **levels}, teacher_BTZ, class_B)
    return F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten())


def _llamagen_loss(
    w: Mapping[str, Tensor], tokens_BL: Tensor, class_B: Tensor, _: torch.Generator, *, tokenizer: Any, config: Any
) -> Tensor:
    first_BC = w["cls_embedding.embedding_table.weight"][class_B]
    x = torch.cat([first_BC[:, None], w["tok_embeddings.weight"][tokens_BL[:, :-1]]], dim=1)
    turns = plain_llamagen.rotations(tokens_BL.shape[1], config.width // config.heads, x)[:-1]
    logits_BLV = plain_llamagen.transformer(w, x, turns, config.heads)
    return F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten())


def _maskgit_loss(
    w: Mapping[str, Tensor], tokens_BL: Tensor, class_B: Tensor, draw: torch.Generator, *, tokenizer: Any, config: Any
) -> Tensor:
    hidden_BL = random_masks(*tokens_BL.shape, draw)
    ids = torch.cat([config.first_class + class_B[:, None], tokens_BL.masked_fill(hidden_BL, config.mask)], dim=1)
    logits_BLV = plain_maskgit.logits(w, ids, config.heads)
    return F.cross_entropy(logits_BLV[hidden_BL], tokens_BL[hidden_BL])
