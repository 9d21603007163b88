"""Images drawn a second: avarc's batches with KV caches against a plain loop, in one run.

usage: python tests/benchmarks/sampling.py [--images N] [--batch-size B] [--rounds R] [--json] [MODEL ...]

The plain loop (`plain_sampling`) draws one image after the other, evaluates the whole sequence in each pass, and
decodes the image. Both draw with the same guidance and the same random numbers, so they should draw the same tokens, up
to roundings that decide otherwise; the share that agrees is printed. MODEL: an included one (digits, digits-llamagen,
digits-randar, digits-titok, digits-captions); rar, maskgen or maskgen-kl, which are small, with random weights and a
tokenizer of digits, the last with none; or var-d16 in its published shape with random weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import load_golden
from figure_tables import Cell, Table, say, show
from plain_sampling import GUIDANCE, Loop, loop_of

from avarc_cli.layers.random_weights import random_weights
from avarc_cli.layers.sampling import generator_of
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.loading import load_model, load_tokenizer
from avarc_cli.models.maskgen.config import DEFAULT_SCORE, MaskGenConfig, MaskGenKLConfig
from avarc_cli.models.maskgen.latent_likelihood import MaskGenKLLikelihood
from avarc_cli.models.maskgen.latent_network import MaskGenKL
from avarc_cli.models.maskgen.likelihood import MaskGenLikelihood
from avarc_cli.models.maskgen.network import MaskGen
from avarc_cli.models.rar.config import RARConfig
from avarc_cli.models.rar.likelihood import RARLikelihood
from avarc_cli.models.rar.network import RAR
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.text import encoders
from avarc_cli.text.features import CaptionFeatures
from avarc_cli.tokens.reconstruct import to_pixels

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEXT_POSITIONS, TEXT_WIDTH = 77, 768  # what MaskGen VQ reads of a caption
NEAR = 1e-2  # continuous tokens that differ by less agree: a hundred steps of a diffusion magnify roundings


def open_model(name: str) -> tuple[LikelihoodModel, Callable[[Tensor], Tensor], Loop]:
    """A model, what decodes its tokens, and its plain loop."""
    if name == "var-d16":
        golden = load_golden("var_d16")
        vqvae = golden.vqvae()
        d16 = VARLikelihood(golden.var(), vqvae.quantize)
        return d16, vqvae.reconstruct, loop_of(d16, None)
    if name == "rar":
        vq = load_tokenizer("digits-vq")
        config = RARConfig(depth=4, width=256, heads=8, hidden=1024, num_classes=10, vocab_size=vq.vocab_size, side=8)
        rar = RARLikelihood(random_weights(RAR(config)))
        return rar, vq.decode, loop_of(rar, None)
    if name in ("maskgen", "maskgen-kl"):
        return _maskgen(kl=name == "maskgen-kl")
    texts = tuple(f"a handwritten {digit}" for digit in DIGITS)
    loaded = load_model(name, words=texts)
    model, features = loaded.likelihood, None
    if model.text is not None:
        features = encoders.encode_once(encoders.find(model.text.encoder), texts, torch.device("cpu")).features
    return model, loaded.tokenizer.decode, loop_of(model, features)


def _maskgen(*, kl: bool) -> tuple[LikelihoodModel, Callable[[Tensor], Tensor], Loop]:
    """A MaskGen VQ or KL with captions of random features."""
    titok = load_tokenizer("digits-titok")
    shape: dict[str, Any] = {
        "depth": 4,
        "width": 256,
        "heads": 8,
        "hidden": 1024,
        "num_tokens": titok.layout.num_tokens,
        "text_width": TEXT_WIDTH,
        "text_positions": TEXT_POSITIONS,
        "score_width": 256,
        "aesthetic_score": DEFAULT_SCORE,
    }
    generator = torch.Generator().manual_seed(1)

    def features(captions: tuple[str, ...], empty: CaptionFeatures | None) -> CaptionFeatures:
        count = len(captions)
        return CaptionFeatures(
            captions=captions,
            sequence_RTD=torch.randn(count, TEXT_POSITIONS, TEXT_WIDTH, generator=generator),
            length_R=torch.full((count,), TEXT_POSITIONS),
            pooled_RE=torch.randn(count, TEXT_WIDTH, generator=generator),
            empty=empty,
        )

    read = features(DIGITS, features(("",), None))
    if kl:
        latent = MaskGenKLConfig(**shape, channels=16, head_width=256, head_depth=4, scale_factor=1.0)
        of_latents = MaskGenKLLikelihood(random_weights(MaskGenKL(latent))).with_captions(read)
        return of_latents, lambda tokens_BLZ: tokens_BLZ.new_zeros(len(tokens_BLZ), 3, 1, 1), loop_of(of_latents, read)
    config = MaskGenConfig(**shape, vocab_size=titok.vocab_size, rows=titok.vocab_size + 2)
    model = MaskGenLikelihood(random_weights(MaskGen(config))).with_captions(read)
    return model, titok.decode, loop_of(model, read)


@torch.inference_mode()
def measure(
    model: LikelihoodModel, decode: Callable[[Tensor], Tensor], loop: Loop, images: int, batch_size: int
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
        theirs.append(loop(ids[i], *streams(range(i, i + 1))))
        to_pixels(decode(theirs[-1]))
    seconds = time.perf_counter() - started
    ours_BL, theirs_BL = torch.cat(ours), torch.cat(theirs)
    same = torch.isclose(ours_BL, theirs_BL, atol=NEAR) if ours_BL.is_floating_point() else ours_BL == theirs_BL
    return images / our_seconds, images / seconds, float(same.double().mean())


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
