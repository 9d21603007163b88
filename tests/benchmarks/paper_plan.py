"""The paper's plan on the d16 shape: avarc in every precision against plain PyTorch, which starts every stage anew.

Random weights (those of the golden file), random latents and their smoothing neighbours, alternating in one run.
Plain PyTorch is what a straightforward script does: one masked pass a batch of pairs, all logits.
PRECISIONS may be cascades like bf16+fp32, whose rounding noise is measured first, on other images.
With --tiny, a small model of four scales and a plan like the paper's: whether it works, not how fast it is.
Results: docs/performance.md.

usage: python tests/benchmarks/paper_plan.py [IMAGES] [CLASSES] [PRECISIONS] [SEED] [--device cuda] [--tiny] [--json]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

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

PAIRS = {"cpu": 2, "cuda": 10}  # of a plain pass; on a CPU 10 were slower
TINY_PLAN = "3:5,4:3,4:1:3"
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
            for pairs in torch.from_numpy(class_id).to(tokens_L.device).split(PAIRS[tokens_L.device.type])
        ]
        return torch.cat(rows).cpu().numpy()


class Ours:
    """avarc in one precision, or in a cascade of two."""

    def __init__(
        self, name: str, model_in: Callable[[str], VARLikelihood], plan: Plan, classes: int, device: torch.device
    ) -> None:
        cheap, plus, exact = name.partition("+")
        self.model, self.exact = model_in(cheap), partial(model_in, exact)
        self.request = ScoringRequest(
            candidates=np.arange(classes),
            plan=plan,
            score=score_function("log-likelihood"),
            log_prior=np.zeros(classes),
            tokens_per_batch=auto_tokens(self.model, plan, device, fixed=True),
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
def main(asked: argparse.Namespace, names: list[str]) -> None:
    """Print times and survivors, or one JSON object of them to stdout and what is done in between to stderr."""
    images, classes, device = asked.images, asked.classes, asked.device
    say = partial(print, flush=True, file=sys.stderr if asked.json else sys.stdout)
    golden = load_golden("var_tiny" if asked.tiny else "var_d16")
    channels, side, segments = golden.meta["config"]["z_channels"], golden.patch_nums[-1], len(golden.patch_nums)
    plan = parse_plan(TINY_PLAN if asked.tiny else "paper", segments=segments, candidates=classes, samples=3)
    quantizer = golden.vqvae().quantize.to(device)
    generator, measured = torch.Generator().manual_seed(asked.seed), LEAST_IMAGES if any("+" in n for n in names) else 0
    latents = torch.randn(images + measured, 1, channels, side, side, generator=generator)
    noise = 0.1 * torch.randn(images + measured, 3, channels, side, side, generator=generator)
    noise[:, 0] = 0
    tokens = quantizer.tokenize((latents + noise).flatten(0, 1).to(device)).view(images + measured, 3, -1)

    @cache
    def model_in(name: str) -> VARLikelihood:
        return VARLikelihood(golden.var().to(device).set_precision(find(name, device)), quantizer)

    ways = {name: Ours(name, model_in, plan, classes, device) for name in names}
    weights = {name: tensor.to(device) for name, tensor in golden.tensors("var").items()}
    plain = Plain(weights, quantizer, ways[names[0]].model.segment_ends)
    for way in ways.values():
        if said := way.measure(tokens[images:].cpu().numpy()):
            say(said)
    tokens = tokens[:images]
    shared = shared_segments(tokens.cpu().numpy(), None, plain.ends)[:, 0, 1:]
    say(f"{images} images, {classes} classes, {torch.get_num_threads()} threads; segments shared with the image:",
        np.bincount(shared.flatten(), minlength=1).tolist())  # fmt: skip
    seconds, same, winners = (
        {"plain": 0.0} | dict.fromkeys(names, 0.0),
        dict.fromkeys(names, 0),
        dict.fromkeys(names, 0),
    )
    if device.type == "cuda":  # whose first calls load libraries
        plain.predict(tokens[0], plan, classes)
        for way in ways.values():
            way.score(tokens[[0]].cpu().numpy())
    for i in range(images):
        expected, spent = timed(partial(plain.predict, tokens[i], plan, classes))
        seconds["plain"] += spent
        line = f"image {i}: plain {spent:.1f} s"
        for name, way in ways.items():
            result, spent = timed(partial(way.score, tokens[[i]].cpu().numpy()))
            seconds[name] += spent
            survivors = [tuple(sorted(stage.survivors.tolist())) for stage in result.stages]
            same[name] += survivors == expected
            winners[name] += int(result.order[0]) == expected[-1][0]
            line += f"; {name} {spent:.1f} s, {describe(result)}"
        say(line)
    cases = summary(seconds, same, winners, images)
    for case in cases[1:]:
        say(f"{case['name']}: {case['speedup']:.2f} times as fast as plain; prediction the same on "
            f"{case['same_prediction']} of {images}, survivors of every stage on {case['same_survivors']}")  # fmt: skip
    if asked.json:
        print(json.dumps({"device": str(device), "images": images, "classes": classes, "cases": cases}))


def summary(
    seconds: Mapping[str, float], same: Mapping[str, int], winners: Mapping[str, int], images: int
) -> list[dict[str, Any]]:
    """Plain PyTorch and each way, with the images whose prediction, and all of whose survivors, are plain PyTorch's."""
    cases: list[dict[str, Any]] = [{"name": "plain PyTorch, fp32"}]
    cases += [{"name": f"avarc, {w}", "same_prediction": winners[w], "same_survivors": same[w]} for w in same]
    for case, spent in zip(cases, seconds.values(), strict=True):
        case |= {"seconds_per_image": spent / images, "speedup": seconds["plain"] / spent}
    return cases


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__.partition("usage: ")[2].strip())
    for of, default in (("images", 2), ("classes", 100)):
        parser.add_argument(of, nargs="?", type=int, default=default)
    parser.add_argument("precisions", nargs="?")
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    wanted = asked.precisions.split(",") if asked.precisions else [n for n in available(asked.device) if n != "fp16"]
    main(asked, wanted)
