"""Images drawn a second: avarc's batches with KV caches against a plain loop, in one run.

usage: python tests/benchmarks/sampling.py [--images N] [--batch-size B] [--rounds R] [--json] [MODEL ...]

The plain loop draws one image after the other, evaluates all tokens so far for each new one (of a VAR: for each scale)
by the plain networks of `models/*/reference.py`, and decodes the image. Both draw with the same guidance and the same
random numbers, so they should draw the same tokens, up to roundings that decide otherwise; the share that agrees is
printed. MODEL: digits (a VAR), digits-llamagen, or var-d16 in its published shape with random weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import load_golden
from figure_tables import Cell, Table, say, show

from avarc_cli.layers.sampling import draw, generator_of
from avarc_cli.likelihood import NetworkModel
from avarc_cli.loading import load_model
from avarc_cli.models.llamagen import reference as llamagen
from avarc_cli.models.llamagen.likelihood import LlamaGenLikelihood
from avarc_cli.models.var import reference as var
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.tokens.reconstruct import to_pixels

GUIDANCE = 1.5


def plain_var(model: VARLikelihood, class_id: int, generator: torch.Generator) -> Tensor:
    """Tokens (1, L) of one image."""
    weights, quantizer, sides = model.checkpoint_tensors(), model.quantizer, model.config.patch_nums
    ids, tokens = torch.tensor([class_id, model.num_classes]), torch.empty(1, 0, dtype=torch.int64)
    inputs, latents = torch.empty(1, 0, model.config.z_channels), torch.zeros(())
    for k, side in enumerate(sides):
        logits = var.logits(weights, inputs, ids)[:, -(side**2) :]
        t = GUIDANCE * k / (len(sides) - 1)
        drawn = draw((1 + t) * logits[:1] - t * logits[1:], [generator])
        tokens = torch.cat([tokens, drawn], dim=1)
        latents = latents + quantizer.contribution(k, drawn.unflatten(1, (side, side)))
        if k + 1 < len(sides):
            inputs = torch.cat([inputs, quantizer.shrink(k + 1, latents).flatten(2).transpose(1, 2)], dim=1)
    return tokens


def plain_llamagen(model: LlamaGenLikelihood, class_id: int, generator: torch.Generator) -> Tensor:
    """Tokens (1, L) of one image."""
    weights, length, heads = model.checkpoint_tensors(), model.segment_ends[-1], model.config.heads
    x = weights["cls_embedding.embedding_table.weight"][[class_id, model.num_classes]][:, None]
    turn, tokens = llamagen.rotations(length, model.config.width // heads, x), list[Tensor]()
    for j in range(length):
        logits = llamagen.transformer(weights, x, turn[: j + 1], heads)[:, -1:]
        tokens.append(draw((1 + GUIDANCE) * logits[:1] - GUIDANCE * logits[1:], [generator]))
        x = torch.cat([x, weights["tok_embeddings.weight"][tokens[-1].expand(2, 1)]], dim=1)
    return torch.cat(tokens, dim=1)


def open_model(name: str) -> tuple[NetworkModel, Callable[[Tensor], Tensor]]:
    """A model, and what decodes its tokens."""
    if name == "var-d16":
        golden = load_golden("var_d16")
        vqvae = golden.vqvae()
        return VARLikelihood(golden.var(), vqvae.quantize), vqvae.reconstruct
    loaded = load_model(name)
    assert isinstance(loaded.likelihood, NetworkModel)
    return loaded.likelihood, loaded.tokenizer.decode


def plain(model: NetworkModel, class_id: int, generator: torch.Generator) -> Tensor:
    """Tokens (1, L) of one image, by the plain loop of the model's family."""
    if isinstance(model, VARLikelihood):
        return plain_var(model, class_id, generator)
    assert isinstance(model, LlamaGenLikelihood)
    return plain_llamagen(model, class_id, generator)


@torch.inference_mode()
def measure(
    model: NetworkModel, decode: Callable[[Tensor], Tensor], images: int, batch_size: int
) -> tuple[float, float, float]:
    """Images a second of avarc and of the plain loop, and the share of tokens on which they agree."""
    ids = [i % model.num_classes for i in range(images)]

    def streams(rows: range) -> list[torch.Generator]:
        return [generator_of(0, ids[i], i) for i in rows]

    started = time.perf_counter()
    ours = []
    for start in range(0, images, batch_size):
        rows = range(start, min(start + batch_size, images))
        classes = torch.tensor([ids[i] for i in rows])
        ours.append(model.sample(classes, generators=streams(rows), guidance=GUIDANCE))
        to_pixels(decode(ours[-1]))
    our_seconds = time.perf_counter() - started
    started = time.perf_counter()
    theirs = []
    for i in range(images):
        theirs.append(plain(model, ids[i], streams(range(i, i + 1))[0]))
        to_pixels(decode(theirs[-1]))
    seconds = time.perf_counter() - started
    agreement = (torch.cat(ours) == torch.cat(theirs)).double().mean()
    return images / our_seconds, images / seconds, float(agreement)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["digits", "digits-llamagen"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    rows: list[list[Cell]] = []
    for name in asked.models:
        opened = open_model(name)  # not in inference mode, else decoding cannot use the weights
        rounds = [measure(*opened, asked.images, asked.batch_size) for _ in range(asked.rounds)]
        ratios = sorted(ours / loop for ours, loop, _ in rounds)
        ours, loop, agreement = (statistics.median(numbers) for numbers in zip(*rounds, strict=True))
        rows.append([f"`{name}`", ours, loop, ratios[0], statistics.median(ratios), ratios[-1], agreement])
        say(f"{name} measured")
    columns = [("", ""), ("avarc, images/s", ".3g"), ("plain loop, images/s", ".3g")]
    columns += [("times as fast, least", ".2f"), ("median", ".2f"), ("most", ".2f"), ("tokens that agree", ".1%")]
    show(Table(columns, rows), as_json=asked.json)


if __name__ == "__main__":
    main()
