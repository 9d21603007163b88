"""Plain loops that draw one image: every pass evaluates the whole sequence by a plain network, without a KV cache.

They are what `sampling.py` measures avarc against: the networks of `models/*/reference.py`, with the guidance, the
passes and the random numbers of avarc's samplers. Those of hidden tokens also share `unmask`, which chooses the tokens.
A MaskGen KL has no such network: its loop is avarc's sampler, image by image, which caches nothing either.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from avarc_cli.layers.sampling import draw
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.llamagen import reference as llamagen
from avarc_cli.models.llamagen.likelihood import LlamaGenLikelihood
from avarc_cli.models.llamagen_t2i import reference as llamagen_t2i
from avarc_cli.models.llamagen_t2i.config import NULL
from avarc_cli.models.llamagen_t2i.likelihood import CaptionLlamaGenLikelihood
from avarc_cli.models.masked.sampling import unmask
from avarc_cli.models.maskgen import reference as maskgen
from avarc_cli.models.maskgen.latent_likelihood import MaskGenKLLikelihood
from avarc_cli.models.maskgen.likelihood import MaskGenLikelihood
from avarc_cli.models.maskgen.sampling import SCHEDULE
from avarc_cli.models.maskgit import reference as maskgit
from avarc_cli.models.maskgit.likelihood import MaskGITLikelihood
from avarc_cli.models.randar import reference as randar
from avarc_cli.models.randar.likelihood import RandARLikelihood
from avarc_cli.models.randar.sampling import block_sizes, default_steps
from avarc_cli.models.rar import reference as rar
from avarc_cli.models.rar.likelihood import RARLikelihood
from avarc_cli.models.var import reference as var
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.text.features import CaptionFeatures

GUIDANCE = 1.5
Loop: TypeAlias = Callable[[int, torch.Generator], Tensor]
"""Class and random stream of an image -> its tokens (1, L)."""


def loop_of(model: LikelihoodModel, features: CaptionFeatures | None) -> Loop:
    """The plain loop of a model.

    Args:
        features: of its captions, and of the empty one for a MaskGen; None for a model of classes.
    """
    if features is not None:
        if isinstance(model, MaskGenLikelihood):
            return partial(_maskgen, model, features)
        if isinstance(model, MaskGenKLLikelihood):
            return partial(_maskgen_kl, model)
        assert isinstance(model, CaptionLlamaGenLikelihood)
        return partial(_captions, model, features)
    loops: dict[type[LikelihoodModel], Callable[..., Tensor]] = {
        VARLikelihood: _var,
        LlamaGenLikelihood: _llamagen,
        RandARLikelihood: _randar,
        RARLikelihood: _rar,
        MaskGITLikelihood: _maskgit,
    }
    return partial(loops[type(model)], model)


def guided(logits_2TV: Tensor, strength: float) -> Tensor:
    """(1, T, V) from those of the class and those without it."""
    return (1 + strength) * logits_2TV[:1] - strength * logits_2TV[1:]


def _var(model: VARLikelihood, class_id: int, generator: torch.Generator) -> Tensor:
    weights, quantizer, sides = model.checkpoint_tensors(), model.quantizer, model.config.patch_nums
    ids, tokens = torch.tensor([class_id, model.num_classes]), torch.empty(1, 0, dtype=torch.int64)
    inputs, latents = torch.empty(1, 0, model.config.z_channels), torch.zeros(())
    for k, side in enumerate(sides):
        logits = var.logits(weights, inputs, ids)[:, -(side**2) :]
        drawn = draw(guided(logits, GUIDANCE * k / (len(sides) - 1)), [generator])
        tokens = torch.cat([tokens, drawn], dim=1)
        latents = latents + quantizer.contribution(k, drawn.unflatten(1, (side, side)))
        if k + 1 < len(sides):
            inputs = torch.cat([inputs, quantizer.shrink(k + 1, latents).flatten(2).transpose(1, 2)], dim=1)
    return tokens


def _llamagen(model: LlamaGenLikelihood, class_id: int, generator: torch.Generator) -> Tensor:
    weights, length, heads = model.checkpoint_tensors(), model.segment_ends[-1], model.config.heads
    x = weights["cls_embedding.embedding_table.weight"][[class_id, model.num_classes]][:, None]
    turn, tokens = llamagen.rotations(length, model.config.width // heads, x), list[Tensor]()
    for j in range(length):
        logits = llamagen.transformer(weights, x, turn[: j + 1], heads)[:, -1:]
        tokens.append(draw(guided(logits, GUIDANCE), [generator]))
        x = torch.cat([x, weights["tok_embeddings.weight"][tokens[-1].expand(2, 1)]], dim=1)
    return torch.cat(tokens, dim=1)


def _captions(
    model: CaptionLlamaGenLikelihood, features: CaptionFeatures, class_id: int, generator: torch.Generator
) -> Tensor:
    weights, config = model.checkpoint_tensors(), model.config
    lengths, tokens = features.length_R[[class_id, class_id]], torch.empty(1, 0, dtype=torch.int64)
    padded = llamagen_t2i.padded_left(features.sequence_RTD[[class_id]], lengths[:1], config.positions)
    both = torch.cat([padded, weights[NULL][None]])
    for _ in range(config.ends[-1]):
        logits = llamagen_t2i.logits(weights, tokens[0], both, lengths, heads=config.heads, length=config.ends[-1])
        tokens = torch.cat([tokens, draw(guided(logits[:, -1:], GUIDANCE), [generator])], dim=1)
    return tokens


def _randar(model: RandARLikelihood, class_id: int, generator: torch.Generator) -> Tensor:
    weights, length, heads = model.checkpoint_tensors(), model.segment_ends[-1], model.config.heads
    ids, order = torch.tensor([class_id, model.num_classes]), torch.randperm(length, generator=generator)
    tokens = torch.empty(1, 0, dtype=torch.int64)
    for count in block_sizes(length, default_steps(length)):
        logits = randar.logits(weights, tokens[0], ids, order, heads=heads, asked=count)[:, -count:]
        drawn = draw(guided(logits, GUIDANCE * tokens.shape[1] / length), [generator])
        tokens = torch.cat([tokens, drawn], dim=1)
    return torch.empty_like(tokens).scatter_(1, order[None], tokens)


def _rar(model: RARLikelihood, class_id: int, generator: torch.Generator) -> Tensor:
    weights, length, schedule = model.checkpoint_tensors(), model.segment_ends[-1], model.schedule
    ids, tokens = torch.tensor([class_id, model.num_classes]), torch.empty(1, 0, dtype=torch.int64)
    for j in range(length):
        logits = guided(rar.logits(weights, tokens[0], ids)[:, -1:], schedule.weight(GUIDANCE, j / length) - 1)
        tokens = torch.cat([tokens, draw(logits / schedule.temperature, [generator])], dim=1)
    return tokens


def _maskgit(model: MaskGITLikelihood, class_id: int, generator: torch.Generator) -> Tensor:
    weights, config, schedule = model.transformer.state_dict(), model.config, model.schedule
    classes = config.first_class + torch.tensor([[class_id], [model.num_classes]])

    def logits(ids_1L: Tensor, step: int) -> Tensor:
        both = maskgit.logits(weights, torch.cat([classes, ids_1L.expand(2, -1)], dim=1), config.heads)
        return guided(both, schedule.weight(GUIDANCE, step) - 1)

    hidden = torch.full((1, config.num_tokens), config.mask)
    steps, temperature = schedule.steps, schedule.temperature
    return unmask(logits, hidden, [generator], mask=config.mask, steps=steps, temperature=temperature)


def _maskgen(model: MaskGenLikelihood, features: CaptionFeatures, class_id: int, generator: torch.Generator) -> Tensor:
    weights, config, empty = model.transformer.state_dict(), model.config, features.empty
    assert empty is not None and empty.pooled_RE is not None and features.pooled_RE is not None
    sequences = torch.cat([features.sequence_RTD[[class_id]], empty.sequence_RTD])
    pooled = torch.cat([features.pooled_RE[[class_id]], empty.pooled_RE])

    def logits(ids_1L: Tensor, step: int) -> Tensor:
        ids_2L, score = ids_1L.expand(2, -1), config.aesthetic_score
        both = maskgen.logits(weights, ids_2L, sequences, pooled, score, heads=config.heads, codes=config.vocab_size)
        return guided(both, SCHEDULE.weight(GUIDANCE, step) - 1)

    hidden = torch.full((1, config.num_tokens), config.mask)
    steps, temperature = SCHEDULE.steps, SCHEDULE.temperature
    return unmask(logits, hidden, [generator], mask=config.mask, steps=steps, temperature=temperature)


def _maskgen_kl(model: MaskGenKLLikelihood, class_id: int, generator: torch.Generator) -> Tensor:
    return model.sample(torch.tensor([class_id]), generators=[generator], guidance=GUIDANCE)
