"""A training step of VAR, LlamaGen and MaskGIT as one writes it down first, in eager PyTorch.

`training.py` times our trainer against it, with the network as modules, which are our own, and as functions of a dict
of tensors, which are those of the families' `reference` and have less to look up.

Shapes: B images, L tokens, V codes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avarc_cli.models.llamagen import reference as llamagen
from avarc_cli.models.masked.loss import random_masks
from avarc_cli.models.maskgit import reference as maskgit
from avarc_cli.models.var import reference as var
from avarc_cli.tokenizer import TokenizerNetwork
from avarc_cli.train.recipe import Recipe
from avarc_cli.trainable import AutoregressiveModel, TrainableModel

CLIP, KEPT = 2.0, 0.999  # largest norm of the gradient, and what the average of the weights keeps


@dataclass(frozen=True)
class PlainNetwork:
    """A network to train."""

    weights: Mapping[str, Tensor]
    """By name; leaves with gradients."""
    logits: Callable[[Tensor, Tensor], Tensor]
    """(tokens (B, L), class ids (B,)) -> (B, L, V)."""
    classes: int
    """Which is the id of the unconditional class."""
    mask: int | None
    """Id of hidden tokens; None for an autoregressive model."""


def as_modules(model: TrainableModel) -> PlainNetwork:
    """A copy of the model's own network."""
    network: Any = copy.deepcopy(model.network).requires_grad_(True).train()
    twin, mask = model.with_network(network), None
    if isinstance(twin, AutoregressiveModel):

        def logits(tokens_BL: Tensor, class_B: Tensor) -> Tensor:
            return twin.token_logits(tokens_BL, class_B)[0]
    else:
        mask = network.config.mask

        def logits(tokens_BL: Tensor, class_B: Tensor) -> Tensor:
            logits_BLV: Tensor = network.logits(class_B, tokens_BL)
            return logits_BLV

    return PlainNetwork(dict(network.named_parameters()), logits, model.num_classes, mask)


def as_functions(model: TrainableModel, tokenizer: TokenizerNetwork) -> PlainNetwork:
    """The family's reference with a copy of the model's weights."""
    w = {name: p.detach().clone().requires_grad_() for name, p in model.network.named_parameters()}
    of_family = {"var": _var_logits, "llamagen": _llamagen_logits, "maskgit": _maskgit_logits}[model.family]
    config: Any = model.config

    def logits(tokens_BL: Tensor, class_B: Tensor) -> Tensor:
        return of_family(w, tokens_BL, class_B, config, tokenizer)

    return PlainNetwork(w, logits, model.num_classes, config.mask if model.family == "maskgit" else None)


def _var_logits(w: Mapping[str, Tensor], tokens_BL: Tensor, class_B: Tensor, config: Any, tokenizer: Any) -> Tensor:
    counts = torch.tensor([side * side for side in config.patch_nums])
    levels = {"lvl_1L": torch.arange(len(counts)).repeat_interleave(counts)}
    with torch.no_grad():
        teacher = tokenizer.quantize.teacher_input(tokens_BL)
    return var.logits({**w, **levels}, teacher, class_B)


def _llamagen_logits(w: Mapping[str, Tensor], tokens_BL: Tensor, class_B: Tensor, config: Any, _: Any) -> Tensor:
    first = w["cls_embedding.embedding_table.weight"][class_B]
    x = torch.cat([first[:, None], w["tok_embeddings.weight"][tokens_BL[:, :-1]]], dim=1)
    turns = llamagen.rotations(tokens_BL.shape[1], config.width // config.heads, x)[:-1]
    return llamagen.transformer(w, x, turns, config.heads)


def _maskgit_logits(w: Mapping[str, Tensor], tokens_BL: Tensor, class_B: Tensor, config: Any, _: Any) -> Tensor:
    return maskgit.logits(w, torch.cat([config.first_class + class_B[:, None], tokens_BL], dim=1), config.heads)


class PlainLoop:
    """Trains a network, step by step."""

    def __init__(self, network: PlainNetwork, recipe: Recipe) -> None:
        """recipe: its peak learning rate, betas and class dropout are used."""
        self.network, self.class_dropout = network, recipe.class_dropout
        self.average = {name: weight.detach().clone() for name, weight in network.weights.items()}
        parameters = network.weights.values()
        self.optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=recipe.betas, weight_decay=0.0)

    def step(self, tokens_BL: Tensor, labels_B: Tensor, generator: torch.Generator) -> float:
        """The loss before the update."""
        dropped_B = torch.rand(len(labels_B), generator=generator) < self.class_dropout
        class_B = torch.where(dropped_B, self.network.classes, labels_B)
        loss = self._loss(tokens_BL, class_B, generator)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.weights.values(), CLIP)
        self.optimizer.step()
        with torch.no_grad():
            for name, weight in self.network.weights.items():
                self.average[name].mul_(KEPT).add_(weight, alpha=1 - KEPT)
        return loss.item()

    def _loss(self, tokens_BL: Tensor, class_B: Tensor, generator: torch.Generator) -> Tensor:
        if self.network.mask is None:
            logits_BLV = self.network.logits(tokens_BL, class_B)
            return F.cross_entropy(logits_BLV.flatten(0, 1), tokens_BL.flatten())
        count, length = tokens_BL.shape
        hidden_BL = random_masks(count, length, generator)
        logits_BLV = self.network.logits(tokens_BL.masked_fill(hidden_BL, self.network.mask), class_B)
        return F.cross_entropy(logits_BLV[hidden_BL], tokens_BL[hidden_BL])
