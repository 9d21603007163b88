"""The paper's plan on the d16 shape: avarc in every precision against plain PyTorch, which starts every stage anew.

Random weights (those of the golden file), random latents and their smoothing neighbours, alternating in one run.
Plain PyTorch is what a straightforward script does: one masked pass a batch of pairs, all logits.
PRECISIONS may be cascades like bf16+fp32, whose rounding noise is measured first, on other images.
Results: docs/performance.md.

usage: python tests/benchmarks/paper_plan.py [IMAGES] [CLASSES] [PRECISIONS] [SEED]
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import load_golden

from avarc_cli.layers.precision import available, find
from avarc_cli.models.var.likelihood import VARLikelihood
from avarc_cli.models.var.reference import token_log_probs
from avarc_cli.scoring.batching import auto_tokens
from avarc_cli.scoring.cache_policy import shared_segments
from avarc_cli.scoring.cascade import Cascade, score_in_two_precisions
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.rounding_noise import LEAST_IMAGES, measure
from avarc_cli.scoring.scores import ImageScores, score_function
from avarc_cli.tokenizers.vqvae.network import MultiScaleQuantizer

CPU = torch.device("cpu")
PAIRS = 2  # of a plain pass: 10 were slower
T = TypeVar("T")


class Plain:
    """Every stage scores its survivors' samples from the first token on."""

    def __init__(self, weights: Mapping[str, Tensor], quantizer: MultiScaleQuantizer, ends: tuple[int, ...]) -> None:
        self.weights, self.quantizer, self.ends = weights, quantizer, ends

    def predict(self, tokens_SL: Tensor, plan: Plan, classes: int) -> list[tuple[int, ...]]:
        """The survivors of each stage, sorted."""
        left, survivors = np.arange(classes), []
        for stage in plan.stages:
            scores = np.mean([self.score(tokens_SL[s], stage.segments, left) for s in range(stage.samples)], 0)
            left = left[np.argsort(-scores, kind="stable")[: stage.keep]]
            survivors.append(tuple(sorted(left.tolist())))
        return survivors

    def score(self, tokens_L: Tensor, segments: int, class_id: np.ndarray) -> np.ndarray:
        end = self.ends[segments - 1]
        teacher = self.quantizer.teacher_input(tokens_L[None])[:, : end - 1]
        rows = [
            token_log_probs(self.weights, tokens_L[:end], teacher, pairs).double().sum(1)
            for pairs in torch.from_numpy(class_id).split(PAIRS)
        ]
        return torch.cat(rows).numpy()


class Ours:
    """avarc in one precision, or in a cascade of two."""

    def __init__(self, name: str, model_in: Callable[[str], VARLikelihood], plan: Plan, classes: int) -> None:
        cheap, plus, exact = name.partition("+")
        self.model, self.exact = model_in(cheap), partial(model_in, exact)
        self.request = ScoringRequest(
            candidates=np.arange(classes),
            plan=plan,
            score=score_function("log-likelihood"),
            log_prior=np.zeros(classes),
            tokens_per_batch=auto_tokens(self.model, plan, CPU, fixed=True),
        )
        self.cascade = Cascade(cheap, ()) if plus else None

    def measure(self, tokens_GSL: np.ndarray) -> str:
        """Measure the noise of a cascade; says what it is."""
        if self.cascade is None:
            return ""
        noise = measure(self.model, self.exact(), tokens_GSL, self.request)
        slacks = noise.slacks(self.request.plan, len(self.request.candidates), self.model.segment_ends)
        self.cascade = Cascade(self.cascade.cheap, slacks)
        shown = ", ".join(f"{sd:.2g}" for sd in noise.segments)
        return f"{self.cascade.cheap}: noise {shown} nats; slack {', '.join(f'{s:.2g}' for s in slacks)} nats"

    def score(self, tokens_1SL: np.ndarray) -> ImageScores:
        if self.cascade is None:
            (scores,) = score_group(self.model, tokens_1SL, self.request)
        else:
            (scores,) = score_in_two_precisions(self.model, self.exact, tokens_1SL, self.request, self.cascade)
        return scores


def describe(scores: ImageScores) -> str:
    """Candidates that each stage kept, and what the exact precision did."""
    kept = "-".join(str(len(stage.survivors)) for stage in scores.stages)
    exact = f", {scores.settled.tokens} of them exact" if scores.settled else ""
    return f"{scores.tokens_scored} tokens{exact}, kept {kept}"


def timed(function: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


@torch.inference_mode()
def main(images: int, classes: int, names: list[str], seed: int) -> None:
    golden, plan = load_golden("var_d16"), parse_plan("paper", segments=10, candidates=classes, samples=3)
    quantizer = golden.vqvae().quantize
    generator, measured = torch.Generator().manual_seed(seed), LEAST_IMAGES if any("+" in n for n in names) else 0
    latents = torch.randn(images + measured, 1, 32, 16, 16, generator=generator)
    noise = 0.1 * torch.randn(images + measured, 3, 32, 16, 16, generator=generator)
    noise[:, 0] = 0
    tokens = quantizer.tokenize((latents + noise).flatten(0, 1)).view(images + measured, 3, -1)

    @cache
    def model_in(name: str) -> VARLikelihood:
        return VARLikelihood(golden.var().set_precision(find(name, CPU)), quantizer)

    ways = {name: Ours(name, model_in, plan, classes) for name in names}
    plain = Plain(golden.tensors("var"), quantizer, ways[names[0]].model.segment_ends)
    for way in ways.values():
        if said := way.measure(tokens[images:].numpy()):
            print(said, flush=True)
    tokens = tokens[:images]
    shared = shared_segments(tokens.numpy(), None, plain.ends)[:, 0, 1:]
    print(f"{images} images, {classes} classes, {torch.get_num_threads()} threads; segments shared with the image:",
          np.bincount(shared.flatten(), minlength=1).tolist())  # fmt: skip
    seconds, same, winners = (
        {"plain": 0.0} | dict.fromkeys(names, 0.0),
        dict.fromkeys(names, 0),
        dict.fromkeys(names, 0),
    )
    for i in range(images):
        expected, spent = timed(partial(plain.predict, tokens[i], plan, classes))
        seconds["plain"] += spent
        line = f"image {i}: plain {spent:.1f} s"
        for name, way in ways.items():
            result, spent = timed(partial(way.score, tokens[[i]].numpy()))
            seconds[name] += spent
            survivors = [tuple(sorted(stage.survivors.tolist())) for stage in result.stages]
            same[name] += survivors == expected
            winners[name] += int(result.order[0]) == expected[-1][0]
            line += f"; {name} {spent:.1f} s, {describe(result)}"
        print(line, flush=True)
    for name in names:
        print(f"{name}: {seconds['plain'] / seconds[name]:.2f} times as fast as plain; prediction the same on "
              f"{winners[name]} of {images}, survivors of every stage on {same[name]}")  # fmt: skip


if __name__ == "__main__":
    arguments = sys.argv[1:]
    wanted = arguments[2].split(",") if len(arguments) > 2 else [n for n in available(CPU) if n != "fp16"]
    numbers = [int(arguments[i]) if len(arguments) > i else default for i, default in ((0, 2), (1, 100), (3, 0))]
    main(numbers[0], numbers[1], wanted, numbers[2])
