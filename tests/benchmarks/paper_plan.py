"""The paper's plan on the d16 shape: avarc in every precision against plain PyTorch, which starts every stage anew.

Random weights (those of the golden file), random latents and their smoothing neighbours, alternating in one run.
Plain PyTorch is what a straightforward script does: one masked pass a batch of pairs, all logits.
Results: docs/performance.md.

usage: python tests/benchmarks/paper_plan.py [IMAGES] [CLASSES] [PRECISIONS]
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
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
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.scores import score_function
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


def timed(function: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


@torch.inference_mode()
def main(images: int, classes: int, names: list[str]) -> None:
    golden, plan = load_golden("var_d16"), parse_plan("paper", segments=10, candidates=classes, samples=3)
    quantizer = golden.vqvae().quantize
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(images, 1, 32, 16, 16, generator=generator)
    noise = 0.1 * torch.randn(images, 3, 32, 16, 16, generator=generator)
    noise[:, 0] = 0
    tokens = quantizer.tokenize((latents + noise).flatten(0, 1)).view(images, 3, -1)
    models = {name: VARLikelihood(golden.var().set_precision(find(name, CPU)), quantizer) for name in names}
    plain = Plain(golden.tensors("var"), quantizer, models[names[0]].segment_ends)
    requests = {
        name: ScoringRequest(
            candidates=np.arange(classes),
            plan=plan,
            score=score_function("log-likelihood"),
            log_prior=np.zeros(classes),
            tokens_per_batch=auto_tokens(model, plan, CPU, fixed=True),
        )
        for name, model in models.items()
    }
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
        for name, model in models.items():
            (result,), spent = timed(partial(score_group, model, tokens[[i]].numpy(), requests[name]))
            seconds[name] += spent
            survivors = [tuple(sorted(stage.survivors.tolist())) for stage in result.stages]
            same[name] += survivors == expected
            winners[name] += survivors[-1] == expected[-1]
            line += f"; {name} {spent:.1f} s, {result.tokens_scored} tokens"
        print(line, flush=True)
    for name in names:
        print(f"{name}: {seconds['plain'] / seconds[name]:.2f} times as fast as plain; prediction the same on "
              f"{winners[name]} of {images}, survivors of every stage on {same[name]}")  # fmt: skip


if __name__ == "__main__":
    arguments = sys.argv[1:]
    wanted = arguments[2].split(",") if len(arguments) > 2 else [n for n in available(CPU) if n != "fp16"]
    main(int((arguments or ["2"])[0]), int(arguments[1]) if len(arguments) > 1 else 100, wanted)
