"""Whether a cascade of precisions predicts what fp32 predicts: random weights, whose classes lie close together.

Each seed makes new weights, images and smoothing neighbours (a tenth of their tokens differ). Prints how many images
had the same prediction, for how many fp32 was needed, and the smallest lead of a winner. IMAGES are of each seed.
With --near-ties, half of a VAR's candidates are the other half with noise of 1e-3 added to their embeddings.
Results: docs/cascade.md.

usage: python tests/benchmarks/cascade_agreement.py [SHAPE] [SEEDS] [IMAGES] [CLASSES] [PRECISION] [--near-ties]
       [--json]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from figure_tables import Cell, Table, say, show, wants_json

sys.path.insert(0, str(Path(__file__).parents[1]))

from avarc_cli.family import BenchWorkload
from avarc_cli.layers.precision import low_precision
from avarc_cli.layers.random_weights import random_weights
from avarc_cli.likelihood import LikelihoodModel
from avarc_cli.models.llamagen.benchmark import LlamaGenWorkload
from avarc_cli.models.rar import benchmark as rar
from avarc_cli.models.rar.network import RAR
from avarc_cli.models.var import benchmark as var
from avarc_cli.scoring.batching import auto_tokens, cached_tokens_per_batch
from avarc_cli.scoring.cascade import Cascade, score_in_two_precisions
from avarc_cli.scoring.engine import score_group
from avarc_cli.scoring.plan import Plan, parse_plan
from avarc_cli.scoring.request import ScoringRequest
from avarc_cli.scoring.rounding_noise import LEAST_IMAGES, measure
from avarc_cli.scoring.scores import score_function

CPU = torch.device("cpu")


def random_workload(shape: str, seed: int, *, near_ties: bool = False) -> BenchWorkload:
    """A VAR of a shape like d16, a "rar-b" or a "llamagen-l" with random weights.

    Args:
        near_ties: give every odd class of a VAR nearly the embedding of the even class before it.
    """
    family, _, size = shape.rpartition("-")
    if family == "llamagen":
        config = LlamaGenWorkload.parse_shape(size)
        return LlamaGenWorkload(random_weights(LlamaGenWorkload.network(config), seed), CPU)
    if family == "rar":
        return rar.RARWorkload(random_weights(RAR(rar.parse_shape(size)), seed), CPU)
    network = var.random_var(var.parse_shape(shape), seed)
    if near_ties:
        rows = network.class_emb.weight.data
        even, generator = rows[: len(rows) // 2 * 2 : 2], torch.Generator().manual_seed(seed)
        rows[1::2] = even[: len(rows[1::2])] + 1e-3 * torch.randn(rows[1::2].shape, generator=generator)
    return var.VARWorkload(network, CPU)


def some_classes(of: int, count: int, seed: int, *, near_ties: bool) -> np.ndarray:
    """Random class ids; with near-ties, half of them even and the others the odd ones after these."""
    rng = np.random.default_rng(seed)
    if not near_ties:
        return rng.permutation(of)[:count]
    even = 2 * rng.permutation(of // 2)[: count // 2]
    return np.concatenate([even, even + 1])


def random_tokens(like_L: np.ndarray, images: int, seed: int) -> np.ndarray:
    """Images of shuffled tokens with two neighbours each, (images, 3, L)."""
    rng = np.random.default_rng(seed)
    tokens = np.stack([np.stack([rng.permutation(like_L)] * 3) for _ in range(images)])
    other = rng.permuted(tokens, axis=-1)
    changed = rng.random(tokens.shape) < 0.1
    changed[:, 0] = False
    return np.where(changed, other, tokens)


def plan_of(model: LikelihoodModel, classes: int) -> Plan:
    """The paper's plan: 6 tenths of the segments, then all, then all of three samples."""
    segments = len(model.segment_ends)
    text = f"{-(-6 * segments // 10)}:10,{segments}:3,{segments}:1:3"
    return parse_plan(text, segments=segments, candidates=classes, samples=3)


def agreement(
    shape: str, seed: int, images: int, classes: int, cheap: str, *, near_ties: bool
) -> list[tuple[bool, bool, float]]:
    """Of each image: whether the prediction is fp32's, whether fp32 was needed, and the winner's lead in fp32."""
    workload = random_workload(shape, seed, near_ties=near_ties)
    exact, fast = (workload.model(name, "torch") for name in ("fp32", cheap))
    plan = plan_of(exact, classes)
    request = ScoringRequest(
        candidates=some_classes(workload.num_classes, classes, seed, near_ties=near_ties),
        plan=plan,
        score=score_function("log-likelihood"),
        log_prior=np.zeros(classes),
        tokens_per_batch=auto_tokens(exact, plan, CPU, fixed=True),
        cached_tokens_per_batch=cached_tokens_per_batch(exact, CPU),
    )
    tokens = random_tokens(workload.tokens_L.numpy(), LEAST_IMAGES + images, seed)
    noise = measure(fast, exact, tokens[:LEAST_IMAGES], request)
    cascade = Cascade(cheap, noise.slacks(plan, classes, exact.segment_ends))
    found = []
    for tokens_SL in tokens[LEAST_IMAGES:]:
        (wanted,) = score_group(exact, tokens_SL[None], request)
        (got,) = score_in_two_precisions(fast, lambda: exact, tokens_SL[None], request, cascade)
        before_last = np.sort(wanted.stages[-1].scores)
        lead = float(before_last[-1] - before_last[-2])
        assert got.settled is not None
        found.append((int(got.order[0]) == int(wanted.order[0]), got.settled.tokens > 0, lead))
    return found


def main(shape: str, seeds: int, images: int, classes: int, cheap: str, *, near_ties: bool, as_json: bool) -> None:
    rows: list[list[Cell]] = []
    for seed in range(seeds):
        say(f"seed {seed} of {seeds}")
        same, needed, lead = zip(*agreement(shape, seed, images, classes, cheap, near_ties=near_ties), strict=True)
        rows.append([str(seed), f"{sum(same)} of {images}", sum(needed), min(lead)])
    columns = [("seed", ""), ("predicted as in fp32", ""), ("with fp32's help", ""), ("smallest lead, nats", ".3g")]
    about = {"shape": shape, "classes": classes, "cheap": cheap, "near_ties": near_ties}
    show(Table(columns, rows), as_json=as_json, **about)


if __name__ == "__main__":
    as_json = wants_json(sys.argv)
    near_ties = "--near-ties" in sys.argv
    words = [word for word in sys.argv[1:] if word != "--near-ties"]
    defaults = "d16", "5", "4", "20", low_precision(CPU) or "int8"
    shape, seeds, images, classes, cheap = [*words, *defaults[len(words) :]]
    if near_ties and ("-" in shape or int(classes) % 2):
        sys.exit("--near-ties needs a VAR and an even number of classes")
    main(shape, int(seeds), int(images), int(classes), cheap, near_ties=near_ties, as_json=as_json)
