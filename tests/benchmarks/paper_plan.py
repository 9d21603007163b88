"""The paper's plan: avarc in every precision against plain PyTorch, which starts each stage from the first token.

Random weights, images and smoothing neighbours; all ways take turns, an image each. avarc scores as many images
together as a run over a folder would (1, but for models whose images share work): its time is divided by their number,
and its memory is not. Memory is what the process takes at most beyond what it has before an image. Plain PyTorch is
what a straightforward script does: one masked pass a batch of pairs, all logits. SHAPE is d16, llamagen-l, rar-b or the
like; a model that reads rows has a plan of as many tenths. PRECISIONS may be cascades like bf16+fp32, whose rounding
noise is measured first, on other images. With --tiny, a small VAR of four scales: whether it works, not how fast it is.
With --avx2, PyTorch and its libraries use no instructions beyond AVX2, as on a processor without them.
Results: docs/performance.md.

usage: python tests/benchmarks/paper_plan.py [IMAGES] [CLASSES] [PRECISIONS] [SEED] [--shape SHAPE] [--device cuda]
       [--avx2] [--tiny] [--json]
"""

import argparse
import json
import statistics
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

from avx2 import limit_to_avx2
from staged_models import Subject, subject

from avarc_cli.bench.timing import peak_memory
from avarc_cli.layers.precision import available
from avarc_cli.scoring.batching import auto_tokens, cached_tokens_per_batch
from avarc_cli.scoring.cache_policy import shared_segments
from avarc_cli.scoring.cascade import Cascade, score_in_two_precisions
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.rounding_noise import LEAST_IMAGES, measure
from avarc_cli.scoring.scores import ImageScores, score_function

PAIRS = {"cpu": 2, "cuda": 10}  # of a plain pass; on a CPU 10 were slower
T = TypeVar("T")


def predict_plainly(of: Subject, tokens_SL: Tensor, plan: Plan, classes: int) -> list[tuple[int, ...]]:
    """The survivors of each stage, sorted. Every stage scores its survivors' samples from the first token on."""

    def score(tokens_L: Tensor, segments: int, class_id: np.ndarray) -> np.ndarray:
        pairs = torch.from_numpy(class_id).to(tokens_L.device).split(PAIRS[tokens_L.device.type])
        rows = [of.plain(tokens_L, of.ends[segments - 1], each).double().sum(1) for each in pairs]
        return torch.cat(rows).cpu().numpy()

    left, survivors = np.arange(classes), []
    for stage in plan.stages:
        scores = np.mean([score(tokens_SL[s], stage.segments, left) for s in range(stage.samples)], 0)
        left = left[np.argsort(-scores, kind="stable")[: stage.keep]]
        survivors.append(tuple(sorted(left.tolist())))
    return survivors


class Ours:
    """avarc in one precision, or in a cascade of two."""

    def __init__(self, name: str, of: Subject, plan: Plan, classes: int, device: torch.device) -> None:
        cheap, plus, exact = name.partition("+")
        self.model, self.exact = of.model(cheap), cache(partial(of.model, exact))
        if plus:
            self.exact()  # so that loading it is no part of the first image
        self.request = ScoringRequest(
            candidates=np.arange(classes),
            plan=plan,
            score=score_function("log-likelihood"),
            log_prior=np.zeros(classes),
            tokens_per_batch=auto_tokens(self.model, plan, device, fixed=False),
            cached_tokens_per_batch=cached_tokens_per_batch(self.model, device),
        )
        self.cascade = Cascade(cheap, ()) if plus else None
        self.group = self.request.images_per_group(self.model)

    def measure_noise(self, tokens_GSL: np.ndarray) -> str:
        """Measure the noise of a cascade; says what it is."""
        if self.cascade is None:
            return ""
        noise = measure(self.model, self.exact(), tokens_GSL, self.request)
        slacks = noise.slacks(self.request.plan, len(self.request.candidates), self.model.segment_ends)
        self.cascade = Cascade(self.cascade.cheap, slacks)
        shown = ", ".join(f"{sd:.2g}" for sd in noise.segments)
        return f"{self.cascade.cheap}: noise {shown} nats; slack {', '.join(f'{s:.2g}' for s in slacks)} nats"

    def score(self, tokens_GSL: np.ndarray) -> list[ImageScores]:
        if self.cascade is None:
            return score_group(self.model, tokens_GSL, self.request)
        return score_in_two_precisions(self.model, self.exact, tokens_GSL, self.request, self.cascade)


def describe(scores: ImageScores) -> str:
    """Candidates that each stage kept, and what the exact precision did."""
    kept = "-".join(str(len(stage.survivors)) for stage in scores.stages)
    exact = f", {scores.settled.tokens} of them exact" if scores.settled else ""
    return f"{scores.tokens_scored} tokens{exact}, kept {kept}"


class Spent:
    """Seconds of each image, and the most memory that one took beyond the loaded models."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.bytes = device, list[float](), list[int]()

    def call(self, score: Callable[[], T], images: int = 1) -> T:
        """The result of a function that scores this many images together."""

        def timed() -> T:
            started = time.perf_counter()
            result = score()
            self.seconds.append((time.perf_counter() - started) / images)
            return result

        memory, result = peak_memory(timed, self.device)
        if memory is not None:
            self.bytes.append(memory)
        return result


@torch.inference_mode()
def main(asked: argparse.Namespace, names: list[str]) -> None:
    """Print times and survivors, or one JSON object of them to stdout and what is done in between to stderr."""
    images, classes, device = asked.images, asked.classes, asked.device
    say = partial(print, flush=True, file=sys.stderr if asked.json else sys.stdout)
    of = subject("tiny" if asked.tiny else asked.shape, device)
    plan = parse_plan(of.plan, segments=len(of.ends), candidates=classes, samples=3)
    ways = {name: Ours(name, of, plan, classes, device) for name in names}
    measured = LEAST_IMAGES if any("+" in n for n in names) else 0
    together = max(way.group for way in ways.values())
    drawn = of.images(images * together + measured, asked.seed)
    tokens = drawn[: images * together].unflatten(0, (images, together))
    for way in ways.values():
        if said := way.measure_noise(drawn[images * together :].cpu().numpy()):
            say(said)
    shared = shared_segments(tokens[:, 0].cpu().numpy(), None, of.ends)[:, 0, 1:]
    say(f"{images} images, {classes} classes, {torch.get_num_threads()} threads; segments shared with the image:",
        np.bincount(shared.flatten(), minlength=1).tolist(),
        "; images at once:", {name: way.group for name, way in ways.items()})  # fmt: skip
    plainly, spent = Spent(device), {name: Spent(device) for name in names}
    same, winners = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    if device.type == "cuda":  # whose first calls load libraries
        plainly.call(partial(predict_plainly, of, tokens[0, 0], plan, classes))
        for name, way in ways.items():
            spent[name].call(partial(way.score, tokens[0, : way.group].cpu().numpy()))
        for each in (plainly, *spent.values()):
            each.seconds.clear()
    for i in range(images):
        expected = plainly.call(partial(predict_plainly, of, tokens[i, 0], plan, classes))
        line = f"image {i}: plain {plainly.seconds[-1]:.1f} s"
        for name, way in ways.items():
            result, *_ = spent[name].call(partial(way.score, tokens[i, : way.group].cpu().numpy()), way.group)
            survivors = [tuple(sorted(stage.survivors.tolist())) for stage in result.stages]
            same[name] += survivors == expected
            winners[name] += int(result.order[0]) == expected[-1][0]
            line += f"; {name} {spent[name].seconds[-1]:.1f} s, {describe(result)}"
        say(line)
    cases = summary(plainly, spent, same, winners)
    for case in cases[1:]:
        say(f"{case['name']}: {case['speedup']:.2f} times as fast as plain; prediction the same on "
            f"{case['same_prediction']} of {images}, survivors of every stage on {case['same_survivors']}")  # fmt: skip
    if asked.json:
        about = {"device": str(device), "shape": asked.shape, "images": images, "classes": classes}
        about["images_together"] = {name: way.group for name, way in ways.items()}
        print(json.dumps(about | {"cases": cases}))


def summary(
    plainly: Spent, spent: Mapping[str, Spent], same: Mapping[str, int], winners: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Plain PyTorch and each way, with the images whose prediction, and all of whose survivors, are plain PyTorch's.

    Times and speedups are medians over the images.
    """
    cases: list[dict[str, Any]] = [{"name": "plain PyTorch, fp32"}]
    cases += [{"name": f"avarc, {w}", "same_prediction": winners[w], "same_survivors": same[w]} for w in same]
    for case, own in zip(cases, (plainly, *spent.values()), strict=True):
        ratios = [plain / ours for plain, ours in zip(plainly.seconds, own.seconds, strict=True)]
        case |= {"seconds_per_image": statistics.median(own.seconds), "speedup": statistics.median(ratios)}
        case["bytes"] = max(own.bytes, default=None)
    return cases


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=__doc__.partition("usage: ")[2].strip())
    for of, default in (("images", 2), ("classes", 100)):
        parser.add_argument(of, nargs="?", type=int, default=default)
    parser.add_argument("precisions", nargs="?")
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("--shape", default="d16")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.avx2:
        limit_to_avx2()
    wanted = asked.precisions.split(",") if asked.precisions else [n for n in available(asked.device) if n != "fp16"]
    main(asked, wanted)
